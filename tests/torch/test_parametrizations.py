"""torch.nn.utils.parametrize on the weights of a compiled system: its parameters are read as they are at each call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations, parametrize

import nsam

TEXT = """nsam 1
use std.rules (gd)
system s(dim: int = 4) {
  input x: [dim]
  memory q, v : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn q(x) -> v(x); minimize l2; by gd(lr = 0.1); every 2 tokens }
  output m(q(x))
}
"""


def module(backend: Any = "torch") -> Any:
    torch.manual_seed(0)
    return nsam.compile(nsam.loads(TEXT), "s", compiled=False, backend=backend).double()


def values(system: Any) -> dict[str, Tensor]:
    """The weights as the system reads them."""
    return {f"{name}.weight": getattr(system, name).weight.detach() for name in ("q", "v", "m")}


def plain(system: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of a system with these weights and nothing in their place."""
    other = module()
    other.load_state_dict(values(system))
    y, _ = other(x)
    y.square().sum().backward()
    return y, {name: p.grad for name, p in other.named_parameters()}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("called", [False, True])
def test_a_parametrization_may_come_before_the_first_call_or_after_it(backend: Any, called: bool) -> None:
    system, x = module(backend), torch.randn(2, 7, 4, dtype=torch.float64)
    if called:
        system(x)
    parametrizations.orthogonal(system.q, "weight")
    parametrizations.weight_norm(system.v, "weight")
    y, _ = system(x)
    wanted, gradients = plain(system, x)
    assert torch.allclose(y, wanted, atol=1e-12)
    y.square().sum().backward()
    for name in ("q", "v"):
        memory = getattr(system, name)
        originals = list(memory.parametrizations.weight.parameters())
        assert originals
        found = torch.autograd.grad(memory.weight, originals, gradients[f"{name}.weight"])
        assert all(torch.allclose(p.grad, g, atol=1e-10) for p, g in zip(originals, found, strict=True))
    assert torch.allclose(system.m.weight.grad, gradients["m.weight"], atol=1e-10)


def test_a_parametrization_may_be_taken_away() -> None:
    system, x = module(), torch.randn(2, 7, 4, dtype=torch.float64)
    parametrizations.orthogonal(system.q, "weight")
    before, _ = system(x)
    parametrize.remove_parametrizations(system.q, "weight")
    y, _ = system(x)
    assert torch.allclose(y, before, atol=1e-12)
    y.square().sum().backward()
    _, gradients = plain(system, x)
    assert torch.allclose(system.q.weight.grad, gradients["q.weight"], atol=1e-10)
