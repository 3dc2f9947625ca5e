"""With a pass off the generated code is the plain form, and values and all gradients stay those of the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nsam
from nsam.api import compile_unit
from nsam.backends.reference.module import ReferenceModule
from nsam.compiler.passes import NAMES
from nsam.dsl.checked import Unit

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TOLERANCE = 1e-9
CHOICES = [(), *((name,) for name in NAMES), ("all",)]
PLANNED = ("chunk", "split", "exact", "share", "reuse", "stack", "rows", "hoist", "sink")
"""Passes that move or reshape work; the others choose how it is done where it stands."""
PAIRS = [*combinations(PLANNED, 2), ("chunk", "exact", "hoist", "sink"), ("all",)]

OMEGA = """nsam 1
use std.rules (gd)
system omega(dim: int) {
  input x: [dim]
  memory q, k, v : linear(dim -> dim)
  memory m : linear(dim -> dim) {
    learn normalize(k(x)) -> v(x) over last 3 tokens; minimize l2; by gd(lr = 0.1, retain = 0.95); every 4 tokens
    reads running; init zeros
  }
  output m(normalize(q(x))) + x
}
"""
APART = """nsam 1
use std.rules (gd, dgd)
system apart(dim: int) {
  input x: [dim]
  memory q, k, v : linear(dim -> dim)
  memory taps : conv(dim, 3)
  memory a : linear(dim -> dim) {
    learn normalize(k(x)) -> v(x); minimize l2; by dgd(lr = 0.2); every 3 tokens
  }
  memory b : mlp(dim -> dim -> dim, residual) {
    learn normalize(k(x)) -> a(v(x)); minimize l2; by gd(lr = 0.1, retain = 0.9); every 5 tokens; reads running
  }
  output b(normalize(q(taps(x)))) + rope(a(x))
}
"""
LONG = """nsam 1
use std.rules (dgd, momentum)
system long(dim: int) {
  input x: [dim]
  memory q, k, v : linear(dim -> dim)
  memory rate, keep : linear(dim -> 1)
  memory a, b : mlp(dim -> dim -> dim, residual, heads = 2) {
    learn normalize(k(x)) -> v(x); minimize l2; every 140 tokens
    by dgd(lr = sigmoid(rate(x)) / 4, retain = sigmoid(4 + keep(x)))
  }
  memory c : linear(dim -> dim, bias) {
    learn normalize(k(x)) -> v(x); minimize l2; every 70 tokens; reads running
    by momentum(lr = 0.01, beta = sigmoid(rate(x)), retain = 0.99)
  }
  output c(normalize(a(q(x)) + b(q(x))))
}
"""
TOGETHER = """nsam 1
use std.rules (gd, dgd, momentum)
system together(dim: int) {
  input x: [dim]
  memory q, k, u, v : linear(dim -> dim)
  memory rate, keep : linear(dim -> 2)
  memory a : linear(dim -> dim, heads = 2) {
    learn normalize(k(x), 2) -> u(x); minimize l2; by dgd(lr = sigmoid(rate(x)) / 4, retain = sigmoid(4 + keep(x)))
    every 4 tokens
  }
  memory b : linear(dim -> dim, heads = 2) {
    learn normalize(k(x), 2) -> v(x); minimize l2; by dgd(lr = sigmoid(rate(x)) / 4, retain = sigmoid(4 + keep(x)))
    every 4 tokens
  }
  memory c, d : mlp(dim -> dim -> dim, act = gelu, bias, residual, heads = 2) {
    learn normalize(k(x), 2) -> self(v(x)); minimize l2; by momentum(lr = 0.01, beta = sigmoid(rate(x)), retain = 0.9)
    every 4 tokens; reset never
  }
  memory e, f, g : mlp(dim -> dim -> dim, act = silu, heads = 2) {
    learn normalize(k(x), 2) -> v(x); minimize l2; by gd(lr = 0.1, retain = 0.9); every 4 tokens; reset never
  }
  output a(q(x)) + b(x) + d(c(q(x))) * e(x) + f(q(x)) - g(u(x))
}
"""
NESTED = """nsam 1
use std.rules (gd, dgd, momentum)
system nested(dim: int) {
  input x: [dim]
  memory k, v : linear(dim -> dim)
  memory a : linear(dim -> dim) { learn k(x) -> v(x); minimize l2; by dgd(lr = 0.1); every 1 token; reads running }
  memory b : linear(dim -> dim) {
    learn k(x) -> v(x); minimize l2; by momentum(lr = 0.1); every 2 tokens; reads running
  }
  memory c : vector(dim) { learn v(x); minimize l2; by gd(lr = 0.1); every 4 tokens; reads running }
  output a(x) * c + b(x) * a(k(x))
}
"""
CROSSED = """nsam 1
use std.rules (dgd, momentum)
system crossed(dim: int) {
  input x: [dim]
  memory k, v : linear(dim -> dim)
  memory a : mlp(dim -> dim -> dim) { learn k(x) -> v(x); minimize l2; by dgd(lr = 0.1); every 4 tokens; reads running }
  memory b : linear(dim -> dim) {
    learn k(x) -> a(x); minimize l2; by momentum(lr = 0.1); every 2 tokens; reads running
  }
  memory c : linear(dim -> dim) { learn b(x) -> v(x); minimize l2; by dgd(lr = 0.1); every 3 tokens }
  output a(x) + b(x) * c(k(x)) + c(a(x))
}
"""
PROGRAMS: dict[str, tuple[Path | str, str, int, dict[str, object]]] = {
    "omega": (OMEGA, "omega", 11, {"dim": 4}),
    "apart": (APART, "apart", 13, {"dim": 4}),
    "together": (TOGETHER, "together", 11, {"dim": 4}),
    "nested": (NESTED, "nested", 11, {"dim": 2}),
    "crossed": (CROSSED, "crossed", 11, {"dim": 2}),
    "long": (LONG, "long", 150, {"dim": 4}),
    "deltanet": (EXAMPLES / "linear_memories" / "linear_memories.nsam", "deltanet", 37, {"dim": 4}),
    "cms": (EXAMPLES / "continuum" / "continuum.nsam", "sequential_tokens", 11, {"dim": 4}),
    "momentum": (EXAMPLES / "linear_memories" / "linear_memories.nsam", "delta_momentum_inside", 10, {"dim": 4}),
    "long momentum": (
        EXAMPLES / "linear_memories" / "linear_memories.nsam",
        "delta_momentum_inside",
        80,
        {"dim": 4, "chunk": 70},
    ),
    "titans": (EXAMPLES / "hope" / "hope.nsam", "titans", 11, {"dim": 4, "heads": 2, "chunk": 4, "slow": 8}),
    "hope": (EXAMPLES / "hope" / "hope.nsam", "hope", 34, {"dim": 8, "vocab": 5, "layers": 1}),
}
SLOW = {"hope", "long", "long momentum"}


@dataclass
class Case:
    """A program, its inputs, and what the reference makes of them."""

    unit: Unit
    reference: ReferenceModule
    inputs: list[Tensor]
    wanted: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wanted = self.run(self.reference)

    def run(self, module: nn.Module) -> dict[str, Tensor]:
        """The output, and the gradients of a random linear loss by every parameter and every input that has them."""
        module.zero_grad()
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in self.inputs]
        y, _ = module(*leaves)
        (y * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))).sum().backward()
        tensors = {**dict(module.named_parameters()), **{f"input {i}": x for i, x in enumerate(leaves)}}
        found = {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in tensors.items() if t.requires_grad}
        return {"output": y.detach(), **{name: gradient.clone() for name, gradient in found.items()}}


def checked(name: str) -> Unit:
    source, system, _, parameters = PROGRAMS[name]
    program = nsam.load(source) if isinstance(source, Path) else nsam.loads(source)
    return program.instantiate(system, parameters)


@cache
def case(name: str) -> Case:
    torch.set_num_threads(1)
    unit, time = checked(name), PROGRAMS[name][2]
    draw = torch.Generator().manual_seed(1)
    reference = ReferenceModule(unit, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=parameter.dtype, generator=draw), alpha=0.1)
    return Case(unit, reference, list(inputs(unit, time, draw)))


def inputs(unit: Unit, time: int, draw: torch.Generator) -> Iterator[Tensor]:
    for given in unit.inputs:
        if given.type.vocab is None:
            yield torch.randn(2, time, *map(int, given.type.shape), dtype=torch.float64, generator=draw)
        else:
            yield torch.randint(0, int(given.type.vocab), (2, time), generator=draw)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in PROGRAMS])
def test_values_and_gradients_do_not_depend_on_passes(name: str) -> None:
    agree_without(name, CHOICES)


@pytest.mark.parametrize("name", ["nested", "crossed"])
def test_values_and_gradients_do_not_depend_on_two_passes(name: str) -> None:
    """Memories of several periods, running reads of slow ones used in the loops of fast ones among them."""
    agree_without(name, PAIRS)


def agree_without(name: str, choices: Sequence[tuple[str, ...]]) -> None:
    """Assert that a program is the reference's with each choice of passes switched off."""
    given = case(name)
    largest = max(float(t.abs().max()) for key, t in given.wanted.items() if key != "output")
    for off in choices:
        module = compile_unit(given.unit, compiled=False, without=off).double()
        module.load_state_dict(given.reference.state_dict())
        found = given.run(module)
        assert found.keys() == given.wanted.keys()
        for key, wanted in given.wanted.items():
            scale = max(float(wanted.abs().max()), 1e-3 * largest)
            gap = float((found[key] - wanted).abs().max()) / scale
            assert gap <= TOLERANCE, f"{name} without {off}: {key} differs by {gap:.1e}"


@pytest.mark.parametrize("name", ["momentum", "deltanet", "apart", "together"])
def test_a_state_goes_from_one_choice_of_passes_to_another(name: str) -> None:
    given = case(name)
    modules = [compile_unit(given.unit, compiled=False, without=off).double() for off in CHOICES]
    for module in modules:
        module.load_state_dict(given.reference.state_dict())
    (x,) = given.inputs
    with torch.no_grad():
        _, state = modules[0](x[:, :6])
        wanted, _ = modules[0](x[:, 6:], state)
        for off, module in zip(CHOICES, modules, strict=True):
            found, _ = module(x[:, 6:], state)
            assert float((found - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max()), off
            _, other = module(x[:, :6])
            found, _ = modules[0](x[:, 6:], other)
            assert float((found - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max()), off


def source(name: str, *off: str) -> str:
    """The generated code below its docstring."""
    found = compile_unit(checked(name), compiled=False, without=off)
    return str(found.nsam_source).split('"""', 2)[2]


def loops(text: str) -> str:
    """The functions of the loops: what stands between the states' start and the work after the loop."""
    return text.split("_initial(", 1)[1].split("@rt.stage", 1)[0].split("@rt.aligned", 1)[0].split("class ", 1)[0]


def made(text: str) -> tuple[int, int]:
    """How many triangles and decays are computed, in a loop or ahead of it."""
    return len(re.findall(r"rt\.triangle(?:_rows)?\(", text)), len(re.findall(r"rt\.decay(?:_rows)?\(", text))


def test_share_off() -> None:
    assert made(source("titans", "stack")) == (7, 2)
    plain = source("titans", "share")
    assert made(plain) == (10, 10)
    assert plain.count("rt.rank_one(") == 10


def test_triangles_ahead_of_the_loop() -> None:
    """Where keys and gates are known before a loop its decays and triangles are computed there, for all chunks."""
    found = source("titans")
    assert found.count("rt.triangle_rows(") == found.count("rt.decay_rows(") == 1  # of mem: one block makes its chunks'
    assert "_rows(" not in source("titans", "hoist")
    assert made(source("titans", "hoist")) == made(found)


def test_chunk_off() -> None:
    assert "rt.rank_one(" in source("apart")
    plain = source("apart", "chunk")
    assert "rt.rank_one(" not in plain
    assert plain.count("rt.Generic(") == 3


def test_split_off() -> None:
    assert source("long").count("piece=64") == 7  # what is made ahead of the loop, and what is taken from it there
    assert "piece=" not in source("long", "split")
    assert "piece=" not in source("titans")


def test_exact_off() -> None:
    assert "def deltanet_every_32(" in source("deltanet")
    assert "def deltanet_every_1(" in source("deltanet", "exact")


def test_reuse_off() -> None:
    assert source("titans", "stack").count("forward=") == 10
    assert source("titans").count("forward=") == 4
    assert "forward=" not in source("titans", "reuse")


def test_stack_off() -> None:
    found = source("together")
    assert re.findall(r'rt.together\(s, "([^"]*)"', found) == ["a+b", "c+d", "e+f+g"]
    assert len(re.findall(r"rt.rank_one_wide\(|rt.momentum_wide\(", found)) == 3
    assert re.search(r"rt\.(together|gather|across|\w+_wide)\(", source("together", "stack")) is None
    assert set(re.findall(r'"(k[+][^".]*)', source("titans"))) == {"k+v+eta+alpha"}


def test_rows_off() -> None:
    found = source("titans")
    assert found.count("rt.rows(") == 2  # of mem; of the memories that move as one
    assert source("titans", "stack").count("rt.rows(") == 3  # of mem; of k and v; of eta and alpha, read at x as well
    assert found.count("@ mem_w1.mT") == 1
    plain = source("titans", "rows")
    assert "rt.rows(" not in plain
    assert plain.count("@ mem_w1.mT") == 3


def test_hoist_off() -> None:
    project = "F.linear(x, k_weight)"
    assert project in source("apart").split("def apart_before", 1)[1]
    plain = source("apart", "hoist")
    assert project in loops(plain)
    assert "def apart_before" not in plain
    assert "rt.conv(" in loops(plain)


def test_sink_off() -> None:
    assert "rt.rope(" in source("apart").split("def apart_after", 1)[1]
    plain = source("apart", "sink")
    assert "def apart_after" not in plain
    assert "rt.rope(" in loops(plain)


def test_segment_off() -> None:
    assert "def titans_segment_32(" in source("titans")
    assert "segment" not in source("titans", "segment")


def test_inverse_off() -> None:
    assert "substitute=True" not in source("titans") + source("momentum")
    assert source("titans", "inverse").count("substitute=True") == 4
    assert "rt.momentum(" in source("momentum", "inverse")
    assert source("momentum", "inverse").count("substitute=True") == 1


def test_the_module_says_what_was_left_out() -> None:
    module = compile_unit(checked("omega"), compiled=False, without="sink, hoist")
    assert "\nPasses switched off: hoist, sink.\n" in module.nsam_source
    assert module.nsam_passes.without == ("hoist", "sink")
    assert "Passes" not in compile_unit(checked("omega"), compiled=False).nsam_source


def test_a_system_is_compiled_verified_and_written_without_passes() -> None:
    program = nsam.loads(OMEGA)
    assert nsam.compile(program, "omega", dim=4, without=["hoist"]).nsam_passes.without == ("hoist",)
    assert "Passes switched off: hoist." in nsam.api.source(program, "omega", dim=4, without="hoist")
    with pytest.raises(nsam.ProgramError, match="no pass `hoits`"):
        nsam.compile(program, "omega", dim=4, without="hoits")
