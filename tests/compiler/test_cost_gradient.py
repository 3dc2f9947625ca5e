"""The predicted operations of models that learn by their own loss against what runs, the inner gradient with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nsam.backends.torch.build import build
from nsam.compiler.cost import TRAINING, cost
from nsam.compiler.explain_cost import cost_text
from nsam.dsl import checked as c
from nsam.dsl.program import Program

PROGRAM = Path(__file__).parents[2] / "examples" / "end_to_end" / "end_to_end.nsam"
LABELLED = """nsam 1
use std.rules (gd, muon)
system labelled() {
  input x: [8]
  memory before, after : linear(8 -> 8)
  memory m : linear(8 -> 8, heads = 2) { minimize task; by gd(lr = 0.1); every 4 tokens }
  output after(tanh(m(before(x)))) + before(x)
}
system whitened() {
  input x: [8]
  memory m : linear(8 -> 8) { minimize task; by muon(lr = 0.1); every 4 tokens }
  output m(x)
}
"""


class NoModules:
    """The counter's own tracker of modules cannot see a gradient that is taken inside of a module."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def counted(unit: c.Unit, x: torch.Tensor, **more: Any) -> int:
    """Operations of one call."""
    module, counter = build(unit, compiled=False), FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()  # type: ignore[assignment]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module(x, **more)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("tokens", [16, 21])
@pytest.mark.parametrize(
    ("system", "parameters"),
    [("reader", {"vocab": 16, "dim": 8, "window": 5, "chunk": 8}), ("continuum", {"vocab": 16, "dim": 8})],
    ids=["reader", "continuum"],
)
def test_prediction_equals_what_runs(system: str, parameters: dict[str, int], tokens: int) -> None:
    unit = Program.load(PROGRAM).instantiate(system, parameters)
    predicted = cost(unit, tokens)
    assert predicted.flops == pytest.approx(counted(unit, torch.zeros(1, tokens, dtype=torch.int64)), rel=0.01)
    assert predicted.uncounted == (TRAINING,)


def test_a_loss_with_all_targets_is_differentiated_twice_a_chunk() -> None:
    unit = Program.loads(LABELLED).instantiate("labelled")
    targets = torch.zeros(1, 8, dtype=torch.int64)
    assert cost(unit, 8).flops == counted(unit, torch.randn(1, 8, 8), targets=targets)


def test_what_is_not_counted_is_said() -> None:
    nested = Program.load(PROGRAM).instantiate("nested", {"vocab": 16, "dim": 8})
    through = "pairs: the gradient of the model's own loss through its updates"
    assert cost(nested, 16).uncounted == (through, TRAINING)
    text = cost_text(cost(nested, 16))
    assert f"not counted: {through}" in text
    assert "three times" not in text
    whitened = Program.loads(LABELLED).instantiate("whitened")
    assert cost(whitened, 8).uncounted == ("m: matrix products of its rule", TRAINING)
