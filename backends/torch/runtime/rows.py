"""What rules of the step clock need of each token: a layer's input and the error at its output.

A function that reads a weight W [.., out, in] at inputs x gives y = W x and is handed a slot, a leaf of autograd's
graph with a row of in + 1 + out numbers for each token of the call. `told` lets y pass, and in the backward pass gives
the slot as its gradient what it learns there: x, 1, and the gradient e of the loss at y. When the slot's gradient is
complete, its rows go to the `Rows` of the weight, as x, 1/N and N e, N the tokens of the call: the weight of a token in
a mean, and the gradient of its own loss where the loss is a mean over tokens. Σ w err keyᵀ is W's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nsam.backends.torch.runtime.blocks import At


class Rows:
    """The rows of a weight's reads since they were forgotten: [tokens, in + 1 + out], with heads [H, tokens, …].

    `grad` is used as that of a parameter is: None where there is nothing, otherwise all rows as one tensor.
    """

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    @property
    def grad(self) -> Tensor | None:
        """All rows one after the other."""
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts, -2)]
        return self.parts[0] if self.parts else None

    @grad.setter
    def grad(self, rows: Tensor | None) -> None:
        self.parts = [] if rows is None else [rows]


@dataclass(frozen=True, slots=True)
class Slot:
    """A leaf, where its rows go, and how many numbers of a row are the input."""

    leaf: Tensor
    rows: Rows
    width: int

    def take(self, gradient: Tensor) -> None:
        """Add the rows of one backward pass, given as the leaf's gradient [B, T, …] or [B, H, T, …]."""
        tokens = gradient.shape[0] * gradient.shape[-2]
        key, one, err = gradient.detach().tensor_split((self.width, self.width + 1), -1)
        rows = torch.cat((key, one / tokens, err * tokens), -1)
        self.rows.parts.append(rows.transpose(0, 1).flatten(1, 2) if rows.dim() == 4 else rows.flatten(0, 1))


_listed: ContextVar[list[Slot] | None] = ContextVar("listed", default=None)


@contextmanager
def listed() -> Iterator[list[Slot]]:
    """Collects the slots of the calls inside, which then take no rows by themselves: for who asks for gradients."""
    found: list[Slot] = []
    token = _listed.set(found)
    try:
        yield found
    finally:
        _listed.reset(token)


def new_slot(weight: Tensor, at: At, rows: Rows) -> Tensor:
    """The leaf for one read of a weight [out, in] in a call, [B, T, in + 1 + out]; of heads [H, out, in] [B, H, T, …].

    It has no memory of its own. Without gradients, and for a weight that has none, nothing will come to it.
    """
    heads = weight.shape[:-2]
    size = weight.shape[-1] + 1 + weight.shape[-2]
    leaf = weight.detach().new_zeros(()).expand(at.batch, *heads, at.length, size)
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return leaf
    leaf = leaf.requires_grad_()
    slot = Slot(leaf, rows, weight.shape[-1])
    others = _listed.get()
    if others is not None:
        others.append(slot)
    else:
        leaf.register_post_accumulate_grad_hook(taking(rows, slot.width))  # type: ignore[no-untyped-call]
    return leaf


def row_size(weight: Tensor) -> int:
    """Bytes that one token leaves in each read of a weight [.., out, in]."""
    width = weight.shape[-1] + 1 + weight.shape[-2]
    return weight.shape[:-2].numel() * width * weight.element_size()


def taking(rows: Rows, width: int) -> Callable[[Tensor], None]:
    """A hook that moves a leaf's gradient to its rows."""

    def take(leaf: Tensor) -> None:
        assert leaf.grad is not None
        Slot(leaf, rows, width).take(leaf.grad)
        leaf.grad = None

    return take


class Told(torch.autograd.Function):
    """Lets what a layer returns pass, and tells a slot in the backward pass: `(y, x, slot)`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, slot: Tensor) -> Tensor:
        """y as it is."""
        ctx.save_for_backward(x)
        ctx.lead, ctx.kind = tuple(slot.shape[:-1]), slot.dtype
        return y.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The gradient of y, and the slot's rows."""
        (x,) = ctx.saved_tensors
        key, err = (spread(part.to(ctx.kind), ctx.lead) for part in (x, gradient))
        shares = key.numel() // key.shape[-1] * gradient.shape[-1] / gradient.numel()
        rows = torch.cat((key, torch.ones_like(key[..., :1]), err if shares == 1 else err / shares), -1)
        return gradient, None, rows


def spread(x: Tensor, lead: tuple[int, ...]) -> Tensor:
    """[.., n] as [*lead, n]: what is the same for several tokens has a row for each."""
    if x.dim() - 1 > len(lead):  # a read through one head
        x = x.squeeze(1)
    return x.expand(*lead, x.shape[-1])


def told(y: Tensor, x: Tensor, slot: Tensor) -> Tensor:
    """y = W x as it is; its backward pass tells `slot` of the tokens. Where they share a y they share its gradient."""
    if not slot.requires_grad:
        return y
    found: Tensor = Told.apply(y, x, slot)  # type: ignore[no-untyped-call]
    return found


class Reached(torch.autograd.Function):
    """Lets tensors pass. Where a gradient comes to one of them, the others have zeros for theirs.

    So the tokens count of a read that only the state depends on which a call leaves, as in sums of outer products.
    """

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, ...]:
        """The tensors as they are."""
        return tuple(x.detach() for x in given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Their gradients, zeros included: autograd fills them in."""
        return gradients


def reached(result: Any) -> Any:
    """`result` of a call, all that leads to it reached by the backward pass: tokens without a gradient count too."""
    flat, form = pytree.tree_flatten(result)
    places = [i for i, x in enumerate(flat) if isinstance(x, Tensor) and x.requires_grad]
    if places:
        passed: Iterable[Tensor] = Reached.apply(*(flat[i] for i in places))  # type: ignore[no-untyped-call]
        for i, x in zip(places, passed, strict=True):
            flat[i] = x
    return pytree.tree_unflatten(flat, form)
