"""What tests of programs against published equations share: the comparison with an oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TIME, DIM = 11, 4
Weights = dict[str, Tensor]
Oracle = Callable[[Weights, Tensor], Tensor]


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def agrees(both: Any, oracle: Oracle, time: int = TIME, tolerance: float = 1e-9) -> None:
    """Outputs and the gradients of all parameters of a batch of two, each sequence on its own in the oracle."""
    (x,) = both.inputs(2, time)
    y, _ = both.compiled(x)
    weights = {name: p.detach().clone().requires_grad_() for name, p in both.weights.items()}
    wanted = torch.stack([oracle(weights, row) for row in x])
    assert float((y - wanted).detach().abs().max()) < tolerance
    mine = torch.autograd.grad(y.sin().sum(), list(both.weights.values()), allow_unused=True)
    theirs = torch.autograd.grad(wanted.sin().sum(), list(weights.values()), allow_unused=True)
    for name, a, b in zip(weights, mine, theirs, strict=True):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            assert float((a - b).abs().max()) < tolerance * max(1.0, float(b.abs().max())), name
    assert any(g is not None and float(g.abs().max()) > 0 for g in theirs)
