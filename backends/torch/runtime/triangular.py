"""The chunk algebra's triangle: decays between tokens, and the inverse of a unit lower triangular matrix."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsam.backends.torch.on_chip import operators as on_chip

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


@dataclass(frozen=True)
class Decay:
    """Decays over a run of tokens, shared by the folds with equal retention: `gamma` and `between` as in `decays`.

    `before_gamma` and `before` are the same as seen before each token. `plain`: a retention of 1, for which all of them
    are ones.
    """

    plain: bool
    gamma: Tensor | float
    between: Tensor
    before_gamma: Tensor | float
    before: Tensor


@dataclass(frozen=True)
class Decays:
    """Decays over a run of `time` tokens, for each of the `parts` of `piece` tokens that are folded at once.

    `stacks` are the same along an axis in front of the tokens: the parts of full length, then the rest.
    """

    time: int
    piece: int
    parts: tuple[Decay, ...]
    stacks: tuple[Decay, ...]


def decay(
    keep: Tensor | float, time: int, like: Tensor, *, positive: bool = False, piece: int | None = None
) -> Decay | Decays:
    """Decays over `time` tokens; for a longer run than `piece` tokens piece by piece.

    keep: a number, or [.., T, 1]. A retention of 1 needs neither logarithms nor exponentials.
    """
    if piece is None or time <= piece:
        return one_decay(keep, time, like, positive)
    each = zip(stacked(keep, time, piece), shares(time, piece), strict=True)
    stacks = [(one_decay(part, length, like, positive), count) for part, (count, length) in each]
    parts = (part for stack, count in stacks for part in unstacked(stack, count))
    return Decays(time, piece, tuple(parts), tuple(stack for stack, _ in stacks))


def number_decay(keep: float, rows: Tensor, piece: int | None) -> Decay | Decays:
    """Decays over the tokens of `rows` [.., T, n] where the retention is a number."""
    return decay(keep, rows.shape[-2], rows, positive=keep > 0, piece=piece)


def one_decay(keep: Tensor | float, time: int, like: Tensor, positive: bool) -> Decay:
    """Decays between all tokens of a run."""
    if isinstance(keep, (float, int)) and keep == 1:
        wide = torch.promote_types(like.dtype, torch.float32)
        between = torch.ones(time, time, dtype=wide, device=like.device).tril()
        return Decay(True, 1.0, between, 1.0, between.tril(-1))
    gamma, between = decays(keep, time, like, positive)
    return Decay(False, gamma, between, shifted(gamma, 1.0), shifted(between, 0.0))


def unstacked(stack: Decay, count: int) -> list[Decay]:
    """The pieces of a stack one by one; of what is the same for all of them, the same."""
    if not isinstance(stack.gamma, Tensor) or stack.gamma.dim() == 2:
        return [stack] * count
    assert isinstance(stack.before_gamma, Tensor)
    tensors = (stack.gamma, stack.between, stack.before_gamma, stack.before)
    return [Decay(False, *each) for each in zip(*(x.unbind(-3) for x in tensors), strict=True)]


def shares(time: int, piece: int) -> list[tuple[int, int]]:
    """How many pieces of full length there are and how long they are, then the same of the rest, where there is one."""
    return [(time // piece, piece), *([(1, time % piece)] if time % piece else [])]


def stacked(x: Tensor | float, time: int, piece: int) -> list[Tensor | float]:
    """Rows of tokens [.., T, n] cut into pieces along a new axis: [.., T // piece, piece, n], then the rest."""
    if not isinstance(x, Tensor):
        return [x] * len(shares(time, piece))
    x = x if x.shape[-2] == time else x.expand(*x.shape[:-2], time, x.shape[-1])
    full = time - time % piece
    found = [x[..., :full, :].reshape(*x.shape[:-2], full // piece, piece, x.shape[-1])]
    return [*found, x[..., full:, :].unsqueeze(-3)] if full < time else [*found]


def triangle(
    key: Tensor,
    erase: Tensor | float,
    decay: Decay | Decays | float,
    *,
    piece: int | None = None,
    substitute: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """(I + diag(η)(X Xᵀ ⊙ D₋))⁻¹ [B, H, T, T], shared by the weights that are erased along the same keys.

    For a run that is cut into pieces one for each of them. A retention that is a number may stand for its decays.
    """
    if not isinstance(decay, (Decay, Decays)):
        decay = number_decay(decay, key, piece)
    if isinstance(decay, Decay):
        return unit_lower_inverse(erase * (overlaps(key) * decay.before), substitute=substitute)
    found: list[Tensor] = []
    rates = stacked(erase, decay.time, decay.piece)
    for rows, rate, stack in zip(stacked(key, decay.time, decay.piece), rates, decay.stacks, strict=True):
        assert isinstance(rows, Tensor)
        lower = rate * (overlaps(rows) * stack.before)
        found += unit_lower_inverse(lower, substitute=substitute).unbind(-3)
    return tuple(found)


def overlaps(key: Tensor) -> Tensor:
    """X Xᵀ [.., T, T] of keys [.., T, n]. What would be float16 is float32: squares of long keys are above 65504."""
    narrow = torch.get_autocast_dtype(key.device.type) if under_autocast(key) else key.dtype
    if narrow != torch.float16 or key.dtype == torch.float64:
        return key @ key.mT
    with full_precision(key):
        return key.float() @ key.float().mT


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
        if on_chip.serves(inverse) and inverse.shape[-1] <= on_chip.LARGEST:
            found: Tensor = on_chip.unit_lower_inverse_backward(inverse, gradient)
            return found
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
    """(I + L)⁻¹ by blocks: the diagonal ones by products, or on a GPU by a kernel for each, then pairs joined.

    [[A, 0], [C, B]]⁻¹ = [[A⁻¹, 0], [−B⁻¹ C A⁻¹, B⁻¹]]. That is about T³ operations for T rows, where products of powers
    alone take 4 T³ log₂ T. Rows are padded to a power of two times the block.
    """
    time = lower.shape[-1]
    block, invert = (on_chip.LARGEST, on_chip.unit_lower_inverse) if on_chip.serves(lower) else (BLOCK, _product_form)
    if time <= block:
        return invert(lower)
    size = block
    while size < time:
        size *= 2
    padded = torch.nn.functional.pad(lower, (0, size - time, 0, size - time)) if size > time else lower
    starts = range(0, size, block)
    blocks = invert(torch.stack([padded[..., i : i + block, i : i + block] for i in starts], -3))
    width = block
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
