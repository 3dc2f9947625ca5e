"""Adaptive periods: compiled against the reference, against fixed periods, and against a loop written out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from nsam.backends.reference.module import ReferenceModule
from nsam.backends.reference.run import new_sequence as new_sequence_reference
from nsam.backends.torch.build import build
from nsam.backends.torch.runtime.system import System, new_sequence
from nsam.dsl.checked import Unit
from nsam.verification.samples import Samples, gap

UnitOf = Callable[[str], Unit]
TOKENS = 27
MEMORY = (
    "memory k, v : linear(4 -> 4)\n"
    "memory m : {structure} {{ learn {context}; minimize {objective}; by {rule}; {more} }}"
)
KEYED = "normalize(k(x)) -> v(x)"
LINEAR, DEEP = "linear(4 -> 4)", "mlp(4 -> 6 -> 4, residual)"
EVERY = "every 2..8 tokens when surprise > "


def one(
    every: str,
    structure: str = DEEP,
    rule: str = "dgd(lr = 0.2, retain = 0.98)",
    context: str = KEYED,
    objective: str = "l2",
    output: str = "m(x)",
) -> str:
    memory = MEMORY.format(structure=structure, context=context, objective=objective, rule=rule, more=every)
    return f"{memory}\noutput {output}"


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def sequences(tokens: int = TOKENS) -> Tensor:
    """Three sequences, one of small values, one of large ones, one that turns from small to large."""
    x = random(3, tokens, 4)
    x[0] *= 0.2
    x[2, : tokens // 2] *= 0.2
    return x


def pair(unit: Unit) -> tuple[System, ReferenceModule]:
    torch.manual_seed(0)
    module = build(unit, compiled=False).double()
    Samples(unit, 3).perturb(module)
    reference = ReferenceModule(unit)
    reference.load_state_dict(module.state_dict())
    return module, reference


def moves(module: System, x: Tensor, memory: str = "m") -> list[list[int]]:
    """The tokens after which each sequence has just moved."""
    found: list[list[int]] = [[] for _ in x]
    state = None
    with torch.no_grad():
        for t in range(x.shape[1]):
            _, state = module(x[:, t : t + 1], state=state)
            for i, waited in enumerate(state["sequence"][f"{memory}.waited"].tolist()):
                found[i] += [t + 1] if waited == 0 else []
    return found


def gradient(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def in_pieces(module: System, x: Tensor, sizes: list[int]) -> Tensor:
    state, pieces = None, []
    for piece in x.split(sizes, 1):
        y, state = module(piece, state=state)
        pieces.append(y)
    return torch.cat(pieces, 1)


def agree(unit: Unit, x: Tensor) -> System:
    """Check values and gradients against the reference, and every split against the whole."""
    module, reference = pair(unit)
    given, wanted = x.clone().requires_grad_(), x.clone().requires_grad_()
    (y, _), (expected, _) = module(given), reference(wanted)
    assert gap(y, expected) < 1e-9
    direction = random(*y.shape)
    (y * direction).sum().backward()
    (expected * direction).sum().backward()
    assert gap(given.grad, wanted.grad) < 1e-9
    for (name, p), q in zip(module.named_parameters(), reference.parameters(), strict=True):
        assert gap(gradient(p), gradient(q)) < 1e-9, name
    for sizes in ([1] * x.shape[1], [3, 5, 1, x.shape[1] - 9], [x.shape[1] - 4, 4]):
        assert gap(in_pieces(module, x, sizes), expected) < 1e-9
    return module


@pytest.mark.parametrize("threshold", ["-inf", "0.3", "2 / 4", "1", "2", "inf"])
def test_equals_the_reference(unit_of: UnitOf, threshold: str) -> None:
    agree(unit_of(one(EVERY + threshold)), sequences())


PROGRAMS = {
    "linear": one(EVERY + "0.2", LINEAR, "gd(lr = 0.2)"),
    "dot": one(EVERY + "0", LINEAR, "gd(lr = 0.2, retain = 0.9)", objective="dot"),
    "every token": one("every 1..3 tokens when surprise > 0.3", LINEAR, "gd(lr = 0.2)"),
    "running": one(f"{EVERY}0.3; reads running", LINEAR),
    "running, deep": one(f"{EVERY}0.3; reads running"),
    "momentum": one(EVERY + "0.3", LINEAR, "momentum(lr = 0.1, beta = 0.7, retain = 0.95)"),
    "momentum, running": one(f"{EVERY}0.3; reads running", LINEAR, "momentum(lr = 0.1, beta = 0.7)"),
    "generic": one(EVERY + "0.3", DEEP, "muon(lr = 0.05, iterations = 2)"),
    "generic, counted": one(EVERY + "0.3", LINEAR, "adamw(lr = 0.02)"),
    "window": one(EVERY + "0.3", LINEAR, "gd(lr = 0.1)", context=f"{KEYED} over last 3 tokens"),
    "heads": one(EVERY + "0.15", "mlp(4 -> 6 -> 4, heads = 2, bias)", "gd(lr = 0.2)"),
    "vector": one(EVERY + "0.3", "vector(4)", "gd(lr = 0.1)", context="v(x)", output="m * x"),
    "gates": one(EVERY + "0.3", LINEAR, "dgd(lr = 0.3 * sigmoid(sum(x)), retain = 0.9 + 0.1 * sigmoid(mean(x)))"),
    "own target": one(EVERY + "0.1", context="normalize(k(x)) -> self(v(x))"),
    "reset every": one(f"{EVERY}0.3; reset every 16 tokens"),
    "reset never": one(f"{EVERY}0.3; reset never"),
    "zeros": one(f"{EVERY}0.3; init zeros", LINEAR, "gd(lr = 0.2)"),
    "one period": one("every 4..4 tokens when surprise > 0.3"),
    "merged periods": (
        one(EVERY + "0.3", LINEAR)
        + " + f(x)\nmemory f : linear(4 -> 4) { learn normalize(k(x)) -> m(x); minimize l2; by gd(lr = 0.2); "
        "every 3 tokens }"
    ),
    "nested, both adaptive": (
        one("every 4..8 tokens when surprise > 0.4")
        + " + f(m(x))\nmemory f : mlp(4 -> 5 -> 4) { learn normalize(k(x)) -> m(v(x)); minimize l2; by gd(lr = 0.2); "
        "every 2..4 tokens when surprise > 0.3; reads running }"
    ),
    "around a fixed period": (
        one("every 4..8 tokens when surprise > 0.4")
        + " + f(m(x))\nmemory f : linear(4 -> 4) { learn normalize(k(x)) -> m(x); minimize l2; by gd(lr = 0.2); "
        "every 1 token }"
    ),
    "inside a fixed period": (
        one("every 1..2 tokens when surprise > 0.4")
        + " + f(m(x))\nmemory f : mlp(4 -> 5 -> 4) { learn normalize(k(x)) -> v(x); minimize l2; by gd(lr = 0.2); "
        "every 8 tokens summed }"
    ),
    "source of an initial state": (
        one(f"{EVERY}0.3; reads running", LINEAR)
        + " + f(x)\nmemory f : linear(4 -> 4) { learn normalize(k(x)) -> v(x); minimize l2; by gd(lr = 0.2); "
        "every 1 token; reset every 4 tokens; init m }"
    ),
    "started by another memory": (
        one(f"{EVERY}0.3; reset every 8 tokens; init f", LINEAR)
        + " + f(x)\nmemory f : linear(4 -> 4) { learn normalize(k(x)) -> v(x); minimize l2; by gd(lr = 0.2); "
        "every 4..8 tokens when surprise > 0.2 }"
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", PROGRAMS.values(), ids=PROGRAMS)
def test_programs_equal_the_reference(unit_of: UnitOf, text: str) -> None:
    agree(unit_of(text), sequences(21))


def test_sequences_decide_for_themselves(unit_of: UnitOf) -> None:
    module, _ = pair(unit_of(one(EVERY + "1")))
    small, large, turning = moves(module, sequences())
    assert small == [8, 16, 24]
    assert large[0] == 2
    assert turning[0] == 8
    assert len(turning) > len(small)
    for found in (small, large, turning):
        assert all(t % 2 == 0 for t in found)
        assert all(b - a <= 8 for a, b in pairwise(found))


@pytest.mark.parametrize(("threshold", "period"), [("-inf", 2), ("inf", 8)])
@pytest.mark.parametrize("reads", ["boundary", "running"])
@pytest.mark.parametrize("rule", ["dgd(lr = 0.2)", "momentum(lr = 0.05)", "adamw(lr = 0.02)"])
def test_extreme_thresholds_are_fixed_periods(
    unit_of: UnitOf, threshold: str, period: int, reads: str, rule: str
) -> None:
    adaptive, _ = pair(unit_of(one(f"{EVERY}{threshold}; reads {reads}", rule=rule)))
    fixed, _ = pair(unit_of(one(f"every {period} tokens; reads {reads}", rule=rule)))
    fixed.load_state_dict(adaptive.state_dict())
    x = sequences()
    (y, _), (expected, _) = adaptive(x), fixed(x)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert gap(y, expected) < 1e-12
    for p, q in zip(adaptive.parameters(), fixed.parameters(), strict=True):
        assert gap(gradient(p), gradient(q)) < 1e-10


def test_equals_the_loop_written_out(unit_of: UnitOf) -> None:
    module, _ = pair(unit_of(one(EVERY + "0.4", LINEAR, "gd(lr = 0.2, retain = 0.9)")))
    weights, x = module.state_dict(), sequences()
    y, _ = module(x)
    for i in range(3):
        boundary = running = weights["m.weight"]
        losses: list[Tensor] = []
        for t in range(TOKENS):
            assert gap(y[i, t], boundary @ x[i, t]) < 1e-12
            k = torch.nn.functional.normalize(weights["k.weight"] @ x[i, t], dim=0)
            error = boundary @ k - weights["v.weight"] @ x[i, t]
            losses.append(0.5 * error @ error)
            running = 0.9 * running - 0.2 * torch.outer(error, k)
            if (t + 1) % 2 == 0 and (sum(losses) / len(losses) > 0.4 or len(losses) == 8):
                boundary, losses = running, []


def test_the_counters_carry_no_gradient(unit_of: UnitOf) -> None:
    module, _ = pair(unit_of(one(EVERY + "0.4")))
    x = sequences().requires_grad_()
    _, state = module(x)
    assert not state["sequence"]["m.surprise"].requires_grad
    assert state["sequence"]["m.w1"].requires_grad


def test_surprise_is_kept_with_a_memory_that_is_never_reset(unit_of: UnitOf) -> None:
    unit = unit_of(one(f"{EVERY}0.5; reset never"))
    module, reference = pair(unit)
    x = sequences()
    _, state = module(x[:, :13])
    _, old = reference(x[:, :13])
    kept = new_sequence(state)
    assert {"m.w1", "m.w1.run", "m.surprise", "m.waited"} <= set(kept["kept"])
    y, _ = module(x[:, 13:], state=kept)
    expected, _ = reference(x[:, 13:], state=new_sequence_reference(old))
    assert gap(y, expected) < 1e-9


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
@pytest.mark.parametrize(
    "text",
    [PROGRAMS["nested, both adaptive"], one(f"{EVERY}0.4; reset every 16 tokens", LINEAR, "momentum(lr = 0.05)")],
    ids=["nested", "momentum"],
)
def test_through_inductor(text: str, unit_of: UnitOf, quick_kernels: None, short_calls: None) -> None:
    """One compiled function for every decision: values and gradients of the eager run, whoever moves when."""
    unit = unit_of(text)
    torch.manual_seed(0)
    module = build(unit, compiled=True).double()
    eager = build(unit, compiled=False).double()
    eager.load_state_dict(module.state_dict())
    torch._dynamo.utils.counters.clear()
    for x in (sequences(163), 0.3 * sequences(163)):
        for each in (module, eager):
            each.zero_grad()
            y, _ = each(x)
            y.square().sum().backward()
        assert gap(module(x)[0], eager(x)[0]) < 1e-9
        for p, q in zip(module.parameters(), eager.parameters(), strict=True):
            assert gap(gradient(p), gradient(q)) < 1e-9
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
