"""The predicted bytes of state of every system of the examples against the state of a real call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

from nsam.backends.torch.build import build
from nsam.compiler.cost import CHUNK, cost
from nsam.compiler.explain_cost import cost_text
from nsam.dsl import checked as c
from nsam.dsl.program import Program

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {"dim": 8, "vocab": 16, "classes": 4, "layers": 1, "fastest": 4, "slowest": 16, "chunk": 8, "slow": 8}
SMALL |= {"levels": 2, "fast": 4, "window": 5}
LABELLED = """nsam 1
use std.rules (momentum)
system labelled() {
  input x: [4]
  memory m : linear(4 -> 3, bias) { minimize task; by momentum(lr = 0.1, beta = 0.9); every 4 tokens }
  output m(x)
}
"""
PROGRAMS = sorted(EXAMPLES.glob("*/*.nsam"))


def small(program: Program, system: str) -> c.Unit:
    """A system with small sizes for what it declares as an integer parameter."""
    names = {p.name for p in program.parameters(system)}
    return program.instantiate(system, {name: size for name, size in SMALL.items() if name in names})


def state_bytes(unit: c.Unit, tokens: int, *, targets: bool = False) -> int:
    """Bytes of all tensors of the state after one call."""
    module = build(unit, compiled=False)
    inputs = []
    for given in unit.inputs:
        shape = (1, *((tokens,) if given.type.per == "token" else ()), *map(int, given.type.shape))
        inputs.append(torch.randn(shape) if given.type.vocab is None else torch.zeros(shape, dtype=torch.int64))
    more = {"targets": torch.zeros(1, tokens, dtype=torch.int64)} if targets else {}
    with torch.no_grad():
        _, state = module(*inputs, **more)
    tensors = [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("path", PROGRAMS, ids=[path.stem for path in PROGRAMS])
def test_state_bytes_are_those_of_a_real_call(path: Path) -> None:
    program = Program.load(path)
    units = {system: small(program, system) for system in program.systems}
    predicted = {system: cost(unit, 8).state_bytes for system, unit in units.items()}
    assert predicted == {system: state_bytes(unit, 8) for system, unit in units.items()}


INSIDE = [("hope", "titans"), ("adaptive", "patient"), ("end_to_end", "nested"), ("end_to_end", "reader")]


@pytest.mark.parametrize(("program", "system"), INSIDE, ids=[s for _, s in INSIDE])
def test_state_bytes_of_a_call_that_ends_inside_of_a_chunk(program: str, system: str) -> None:
    unit = small(Program.load(EXAMPLES / program / f"{program}.nsam"), system)
    assert cost(unit, 11).state_bytes == state_bytes(unit, 11)


def test_a_closed_chunk_whose_targets_are_all_given_is_not_kept() -> None:
    unit = Program.loads(LABELLED).instantiate("labelled")
    assert cost(unit, 8).state_bytes == state_bytes(unit, 8, targets=True)
    assert CHUNK not in {memory.path for memory in cost(unit, 8).memories}
    assert cost(unit, 10).state_bytes == state_bytes(unit, 10, targets=True)
    assert f"{CHUNK}: the latest chunk" in cost_text(cost(unit, 10))


MAPPED = """nsam 1
use std.rules (gd)
rule mapped(lr) {
  memory square : linear(rows(self) -> rows(self)) {
    learn transpose(grad) -> transpose(grad); minimize dot; by gd(lr = 0.2); every 1 update
  }
  memory net : mlp(cols(self) -> 3 -> cols(self), act = tanh) {
    learn 0.3 * grad -> grad; minimize l2; by gd(lr = 0.1); every 1 update; reads running
  }
  self <- self - lr * (tanh(square) @ grad + net(grad))
}
system s() {
  input x: [5]
  memory y : linear(5 -> 3)
  memory m : mlp(5 -> 4 -> 3, bias) { CLAUSES; by mapped(lr = 0.1) }
  output m(x) + y(x)
}
"""


@pytest.mark.parametrize(
    "clauses",
    [
        "minimize task; every 4 tokens",
        "learn x -> y(x); minimize l2; every 4 tokens",
        "learn x -> y(x); minimize l2; every 4 tokens summed",
    ],
    ids=["task", "each", "summed"],
)
def test_states_of_a_rule_have_shapes_of_their_own(clauses: str) -> None:
    unit = Program.loads(MAPPED.replace("CLAUSES", clauses)).instantiate("s")
    assert cost(unit, 8).state_bytes == state_bytes(unit, 8, targets="task" in clauses)
