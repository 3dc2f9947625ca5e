"""The chunk algebra's triangle: decays between tokens, and the inverse of a unit lower triangular matrix."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

LOG_FLOOR = -80.0
BLOCK = 16
"""Diagonal blocks of a triangle that are inverted by products of powers; larger ones are joined from these."""


def decays(keep: Tensor | float, time: int, like: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
    """Decay from the chunk's start and between its tokens.

    keep: a number, or [.., T, 1]. Returns gamma [.., T, 1], the product of keep over tokens ≤ t, and D [.., T, T] with
    D[t, s] = Π_{s < r ≤ t} keep_r for s ≤ t, 0 above the diagonal. With `positive` (keep > 0 is known) both come from
    sums of logarithms, every exponent ≤ 0 for keep ≤ 1; otherwise from products, one token at a time.
    """
    lower = torch.ones(time, time, dtype=torch.bool, device=like.device).tril()
    wide = torch.promote_types(like.dtype, torch.float32)
    if not isinstance(keep, Tensor):
        keep = torch.full((time, 1), float(keep), dtype=wide, device=like.device)
    keep = keep.to(wide)
    if keep.shape[-2] != time:
        keep = keep.expand(*keep.shape[:-2], time, 1)
    if positive:
        total = torch.log(keep.clamp_min(math.exp(LOG_FLOOR))).cumsum(-2)  # a gate that underflows: no NaN backwards
        between = torch.exp((total - total.mT).masked_fill(~lower, -torch.inf))
        return torch.exp(total), between
    rows = [torch.zeros_like(keep[..., :1, 0]).expand(*keep.shape[:-2], time)]
    unit = torch.eye(time, dtype=wide, device=like.device)
    gamma = [torch.ones_like(keep[..., 0, :])]
    for t in range(time):
        step = keep[..., t, :]
        rows.append(rows[-1] * step + unit[t])
        gamma.append(gamma[-1] * step)
    return torch.stack(gamma[1:], -2), torch.stack(rows[1:], -2)


def shifted(rows: Tensor, first: float) -> Tensor:
    """Row t − 1 in place of row t; the first row is `first`."""
    return torch.cat([torch.full_like(rows[..., :1, :], first), rows[..., :-1, :]], -2)


class Decay:
    """Decays over a block, shared by the folds with equal retention: `gamma` and `between` as in `decays`.

    A retention of 1 needs neither logarithms nor exponentials.
    """

    def __init__(self, keep: Tensor | float, time: int, like: Tensor, *, positive: bool = False) -> None:
        self.plain = isinstance(keep, float | int) and keep == 1
        if self.plain:
            self.gamma: Tensor | float = 1.0
            self.before_gamma: Tensor | float = 1.0
            wide = torch.promote_types(like.dtype, torch.float32)
            self.between = torch.ones(time, time, dtype=wide, device=like.device).tril()
            self.before = self.between.tril(-1)
            return
        gamma, self.between = decays(keep, time, like, positive)
        self.gamma, self.before_gamma = gamma, shifted(gamma, 1.0)
        self.before = shifted(self.between, 0.0)


def triangle(key: Tensor, erase: Tensor | float, decay: Decay, *, substitute: bool = False) -> Tensor:
    """(I + diag(η)(X Xᵀ ⊙ D₋))⁻¹ [B, H, T, T], shared by the weights that are erased along the same keys."""
    return unit_lower_inverse(erase * (key @ key.mT * decay.before), substitute=substitute)


class _UnitLowerInverse(torch.autograd.Function):
    """(I + L)⁻¹ for strictly lower triangular L, with a backward of two products."""

    @staticmethod
    def forward(ctx: Any, lower: Tensor) -> Tensor:
        inverse = _inverse(lower)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        inverse: Tensor = ctx.saved_tensors[0]
        return -(inverse.mT @ gradient @ inverse.mT).tril(-1)


def _product_form(lower: Tensor) -> Tensor:
    """(I + L)⁻¹ = (I − L)(I + L²)(I + L⁴)…, exact because the T-th power of L is 0."""
    time = lower.shape[-1]
    eye = torch.eye(time, dtype=lower.dtype, device=lower.device)
    inverse, power, reach = eye - lower, lower, 2
    while reach < time:
        power = power @ power
        inverse = inverse + inverse @ power
        reach *= 2
    return inverse


def _inverse(lower: Tensor) -> Tensor:
    """(I + L)⁻¹ by blocks: the diagonal ones by products, then pairs joined.

    [[A, 0], [C, B]]⁻¹ = [[A⁻¹, 0], [−B⁻¹ C A⁻¹, B⁻¹]]. That is about T³ operations for T rows, where products of powers
    alone take 4 T³ log₂ T. Rows are padded to a power of two times the block.
    """
    time = lower.shape[-1]
    if time <= BLOCK:
        return _product_form(lower)
    size = BLOCK
    while size < time:
        size *= 2
    padded = torch.nn.functional.pad(lower, (0, size - time, 0, size - time)) if size > time else lower
    starts = range(0, size, BLOCK)
    blocks = _product_form(torch.stack([padded[..., i : i + BLOCK, i : i + BLOCK] for i in starts], -3))
    width = BLOCK
    while width < size:
        first, second = blocks[..., 0::2, :, :], blocks[..., 1::2, :, :]
        corners = [padded[..., i + width : i + 2 * width, i : i + width] for i in range(0, size, 2 * width)]
        corner = -(second @ torch.stack(corners, -3) @ first)
        top = torch.cat([first, torch.zeros_like(first)], -1)
        blocks = torch.cat([top, torch.cat([corner, second], -1)], -2)
        width *= 2
    return blocks[..., 0, :time, :time]


def under_autocast(like: Tensor) -> bool:
    """Whether autocast is on for the device of `like`; the meta device has none."""
    return like.device.type != "meta" and torch.is_autocast_enabled(like.device.type)


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Products in the precision of their operands, also under autocast.

    Without autocast there is nothing to enter: a context in a graph would keep torch.compile's cache of traced graphs
    from storing it, and a second start of the same program would trace and partition it again.
    """
    return torch.autocast(like.device.type, enabled=False) if under_autocast(like) else nullcontext()


def unit_lower_inverse(lower: Tensor, *, substitute: bool = False) -> Tensor:
    """Inverse of I + L, L strictly lower triangular [.., T, T], in float32 or wider (eq. 57 over a chunk).

    With `substitute` by forward substitution, a solve with the identity, instead of products of blocks.
    """
    with full_precision(lower):
        wide = lower.to(torch.promote_types(lower.dtype, torch.float32))
        if substitute:
            eye = torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
            solved: Tensor = torch.linalg.solve_triangular(wide, eye.expand_as(wide), upper=False, unitriangular=True)
            return solved
        inverse: Tensor = _UnitLowerInverse.apply(wide)  # type: ignore[no-untyped-call]
        return inverse
