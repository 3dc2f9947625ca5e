"""Each check finds the module that breaks it, and no other check is needed for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nsam.backends.torch.build import build
from nsam.dsl.checked import Unit
from nsam.dsl.program import Program
from nsam.verification import Report, verify_module

TEXT = """nsam 1
use std.rules (gd)
system s() {
  input x: [4]
  memory k, v : linear(4 -> 4)
  memory m : linear(4 -> 4) { learn normalize(k(x)) -> normalize(v(x)); minimize l2; by gd(lr = 0.1); every 4 tokens }
  output m(x)
}
"""
TINY = 1e-10
"""A wrong that is far below the tolerance for values: only the invariant itself can see it."""
Break = Callable[..., tuple[Tensor, Any]]


class Broken(nn.Module):
    """The compiled module with its forward replaced; same parameters, same states."""

    def __init__(self, unit: Unit, forward: Break) -> None:
        super().__init__()
        inner = build(unit, compiled=False)
        for name, child in inner.named_children():
            self.add_module(name, child)
        self.__dict__["inner"] = inner
        self.__dict__["broken"] = forward

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.broken(self.inner, x, state)


def verified(forward: Break) -> Report:
    torch.set_num_threads(1)
    unit = Program.loads(TEXT).instantiate("s", {})
    return verify_module(unit, lambda: Broken(unit, forward), stability_tokens=256)


def failing(forward: Break) -> set[tuple[str, str]]:
    return {(row.check, row.subject) for row in verified(forward).failed}


def test_an_unbroken_module_passes() -> None:
    assert not failing(lambda inner, x, state: inner(x, state=state))


def shifted_values(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    y, state = inner(x, state=state)
    return y + (1e-6 if x.shape[1] == 8 else 0.0), state


def shifted_values_at_odd_lengths(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    y, after = inner(x, state=state)
    return y + (1e-6 if state is None and x.shape[1] == 11 else 0.0), after


def kept_sequence(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Tokens of a new sequence see a trace of the old one."""
    y, after = inner(x, state=state)
    again = state is not None and state["position"] == 0
    return y + (1e-6 if again else 0.0), after


def wrong_gradient(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    y, state = inner(x, state=state)
    k = inner.k.weight if x.shape[0] == 1 else torch.zeros(())
    return y + 1e-6 * (k - k.detach()).sum(), state


def wrong_input_gradient(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    y, state = inner(x, state=state)
    extra = x - x.detach() if x.shape[0] == 1 else torch.zeros(())
    return y + 1e-6 * extra, state


def future_values(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    y, state = inner(x, state=state)
    return y + TINY * x.detach().flip(1), state


def future_gradients(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    y, state = inner(x, state=state)
    return y + TINY * (x - x.detach()).flip(1), state


def mixed_values(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    y, state = inner(x, state=state)
    return y + TINY * x.detach().roll(1, 0), state


def mixed_gradients(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    y, state = inner(x, state=state)
    return y + TINY * (x - x.detach()).roll(1, 0), state


def dropped_gradient(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """No gradient for `v` in the call that looks at what learns: batch 2, inputs that need no gradient."""
    y, after = inner(x, state=state)
    if torch.is_grad_enabled() and state is None and x.shape[0] == 2 and not x.requires_grad:
        weight = inner.v.weight
        with torch.no_grad():
            held = weight.clone()
        y = torch.func.functional_call(inner, {"v.weight": held}, (x,))[0]
    return y, after


def restarted_state(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Every call forgets: what the tokens of the call before have written."""
    if state is not None and state["position"] > 0 and x.dtype == torch.float64:
        state = None
    return inner(x, state=state)


def explosion(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    y, state = inner(x, state=state)
    if x.dtype == torch.float32:
        state = {**state, "sequence": {name: 50 * tensor for name, tensor in state["sequence"].items()}}
    return y, state


def vanishing(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    y, state = inner(x, state=state)
    if x.dtype == torch.bfloat16:
        state = {**state, "sequence": {name: 0.01 * tensor for name, tensor in state["sequence"].items()}}
    return y, state


def not_a_number(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    y, after = inner(x, state=state)
    return (y * torch.nan if x.dtype == torch.bfloat16 and x.shape[1] > 20 else y), after


def rough(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """In single precision, numbers of 8 bits."""
    y, after = inner(x, state=state)
    return (y.bfloat16().float() if y.dtype == torch.float32 else y), after


def steep(inner: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """In half precision, values that are right and gradients that are no numbers."""
    y, after = inner(x, state=state)
    extra = inner.k.weight.sum() if torch.is_autocast_enabled("cpu") else torch.zeros(())
    return y + (extra - extra.detach()).square().sqrt(), after


@pytest.mark.parametrize(
    ("forward", "check", "subject"),
    [
        (shifted_values, "values", "8 tokens, a multiple of every period"),
        (kept_sequence, "new sequence", "5 tokens of the next"),
        (wrong_gradient, "gradients", "of parameters"),
        (wrong_input_gradient, "gradients", "of inputs"),
        (future_values, "causality", "later inputs changed"),
        (future_gradients, "causality", "gradient of later inputs"),
        (mixed_values, "batch isolation", "the other sequences changed"),
        (mixed_gradients, "batch isolation", "gradient of other sequences"),
        (restarted_state, "chunk splits", ""),
        (rough, "precision", "float32, "),
        (steep, "precision", "bfloat16, gradients"),
        (explosion, "stability", "float32, largest norm"),
        (vanishing, "stability", "bfloat16, smallest norm"),
        (not_a_number, "stability", "bfloat16, 256 tokens, output"),
    ],
)
def test_exactly_its_check_fails(forward: Break, check: str, subject: str) -> None:
    found = failing(forward)
    assert found, "nothing failed"
    assert all(name == check and subject in of for name, of in found), found


def test_both_kinds_of_length_are_compared() -> None:
    found = failing(shifted_values_at_odd_lengths)
    assert ("values", "11 tokens, a multiple of none") in found
    assert {check for check, _ in found} == {"values", "chunk splits"}


def test_every_way_of_splitting_is_looked_at() -> None:
    subjects = {of for _, of in failing(restarted_state)}
    assert len(subjects) == 5, subjects
    assert any("token by token" in of for of in subjects)
    assert any("gradients" in of for of in subjects)


def test_a_parameter_that_does_not_learn_is_named() -> None:
    report = verified(dropped_gradient)
    (row,) = [row for row in report.failed if row.check == "every parameter learns"]
    assert "v.weight" in row.note
    assert {r.check for r in report.failed} <= {"every parameter learns", "chunk splits"}
