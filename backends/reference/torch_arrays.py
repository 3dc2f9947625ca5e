# ruff: noqa: D102 - each operation is documented once, in `Arrays`
"""`Arrays` in torch float64, with inner gradients from torch.autograd: the outer gradient flows through all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nsam.backends.reference.arrays import Loss


class TorchArrays:
    """See `Arrays`."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")

    def array(self, value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=self.device)

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def shape(self, a: Tensor) -> tuple[int, ...]:
        return tuple(a.shape)

    def copy(self, a: Tensor) -> Tensor:
        return a.clone()

    def detach(self, a: Tensor) -> Tensor:
        return a.detach()

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        return a / b

    def known(self, a: Tensor) -> float | None:
        return None if a.dim() or a.requires_grad else float(a)

    def power(self, a: Tensor, exponent: float) -> Tensor:
        if not 0 < exponent < 2 or exponent == 1:
            return a**exponent
        zero = a == 0  # as with the root below: a derivative, or that of the derivative, has no bound there
        return torch.where(zero, 0.0, torch.where(zero, 1.0, a) ** exponent)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    def exp(self, a: Tensor) -> Tensor:
        return torch.exp(a)

    def log(self, a: Tensor) -> Tensor:
        return torch.log(a)

    def sin(self, a: Tensor) -> Tensor:
        return torch.sin(a)

    def cos(self, a: Tensor) -> Tensor:
        return torch.cos(a)

    def tanh(self, a: Tensor) -> Tensor:
        return torch.tanh(a)

    def sigmoid(self, a: Tensor) -> Tensor:
        return torch.sigmoid(a)

    def softplus(self, a: Tensor) -> Tensor:
        return -torch.nn.functional.logsigmoid(-a)  # `logaddexp` has no second derivative far from 0

    def erf(self, a: Tensor) -> Tensor:
        return torch.erf(a)

    def absolute(self, a: Tensor) -> Tensor:
        return torch.abs(a)

    def sign(self, a: Tensor) -> Tensor:
        return torch.sign(a)

    def sqrt(self, a: Tensor) -> Tensor:
        # Both branches of `where` are differentiated: the root must not see the zero at all.
        positive = a > 0
        return torch.where(positive, torch.sqrt(torch.where(positive, a, 1.0)), torch.where(a == 0, 0.0, torch.nan))

    def maximum(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a, b)

    def minimum(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.minimum(a, b)

    def total(self, a: Tensor) -> Tensor:
        return a.sum()

    def total_last(self, a: Tensor) -> Tensor:
        return a.sum(dim=-1, keepdim=True)

    def largest_last(self, a: Tensor) -> Tensor:
        return a.detach().amax(dim=-1, keepdim=True)

    def transpose(self, a: Tensor) -> Tensor:
        return a.mT

    def reshape(self, a: Tensor, shape: tuple[int, ...]) -> Tensor:
        return a.reshape(shape)

    def take(self, a: Tensor, index: int | slice) -> Tensor:
        return a[index]

    def stack(self, items: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(items))

    def concatenate(self, items: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(items))

    def derivatives(self, function: Loss, at: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        outer = torch.is_grad_enabled()
        with torch.enable_grad():
            variables = [_variable(a, outer) for a in at]
            loss, intermediates, kept = function(variables)
            targets = [*variables, *intermediates]
            if not loss.requires_grad:
                found = [torch.zeros_like(target) for target in targets]
            else:
                # An intermediate can be a constant (nothing traced goes into it); autograd refuses to be asked for it.
                asked = [target for target in targets if target.requires_grad]
                answers = iter(
                    torch.autograd.grad(loss, asked, create_graph=outer, allow_unused=True, materialize_grads=True)
                )
                found = [next(answers) if target.requires_grad else torch.zeros_like(target) for target in targets]
        return found[: len(at)], found[len(at) :], kept if outer else [a.detach() for a in kept]

    def leaf(self, a: Tensor) -> Tensor:
        return a.view_as(a) if a.requires_grad else a.detach().requires_grad_()

    def gradient(self, loss: Tensor, at: list[Tensor]) -> list[Tensor]:
        if not loss.requires_grad:
            return [torch.zeros_like(a) for a in at]
        return list(torch.autograd.grad(loss, at, create_graph=True, retain_graph=True, materialize_grads=True))


def _variable(a: Tensor, outer: bool) -> Tensor:
    """Return a copy of `a` to differentiate at: no path from `a` to what else was computed from it goes through it."""
    if outer and a.requires_grad:
        return a.view_as(a)
    return a.detach().clone().requires_grad_()
