"""Decays and triangles of many chunks at once, ahead of the loop that folds them.

Neither needs the state of the memory that they fold: where keys and gates are known earlier, so are they. A row a token
carries them over the borders of functions, [B, H, T, .]: for each token what it has to do with the tokens of its own
chunk (or, where long chunks are folded in pieces, of its piece), in columns that are zero beyond the chunk's end.

Not so where blocks are native kernels: such a kernel has all that they are made of in its cache, and to write rows that
it reads again takes longer. There they come `later`: the rows carry gates, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from nsam.backends.torch.runtime.blocks import At, lengths
from nsam.backends.torch.runtime.triangular import (
    Decay,
    Decays,
    decay,
    decays,
    one_decay,
    overlaps,
    shifted,
    stacked,
    triangle,
    unit_lower_inverse,
)

Gate = Tensor | float


def decay_rows(
    keep: Tensor,
    at: At,
    chunk: int,
    *,
    never: bool = False,
    piece: int | None = None,
    positive: bool = False,
    later: bool = False,
) -> Tensor:
    """Decays of every chunk of the block, [B, H, T, 1 + width]: from the chunk's start, and between its tokens.

    keep: [B, H, T, 1]; `width` is `piece`, or `chunk` where chunks are folded whole. With `never` the chunks lie on the
    clock of memories that are never reset; `positive` as for `decays`. With `later` [B, H, T, 1], the gate itself, if
    there are several sequences or heads: work on one only is not done in native kernels.
    """
    if later and at.batch * keep.shape[1] > 1:
        return keep.expand(*keep.shape[:-2], at.length, 1)

    def rows(length: int, keep: Gate) -> Tensor:
        gamma, between = decays(keep, length, given, positive)
        return torch.cat([gamma, between], -1)

    given = keep
    width = piece or chunk
    return _by_run(rows, _runs(at, chunk, never, width), at.length, 1 + width, keep)


def triangle_rows(
    key: Tensor,
    erase: Gate,
    decay: Gate,
    at: At,
    chunk: int,
    *,
    never: bool = False,
    piece: int | None = None,
    substitute: bool = False,
    later: bool = False,
) -> Tensor:
    """Rows of (I + diag(η)(X Xᵀ ⊙ D₋))⁻¹ of every chunk of the block, [B, H, T, width] (eq. 57 over chunks).

    key: [B, H, T, in]; erase: a number or [B, H, T, 1]; decay: rows of `decay_rows`, or a retention that is a number.
    With `later` as there: [B, H, T, 0], nothing.
    """
    if later and at.batch * key.shape[1] > 1:
        return key.new_empty(*key.shape[:-1], 0)

    def rows(length: int, key: Gate, erase: Gate, decay: Gate) -> Tensor:
        assert isinstance(key, Tensor)
        if isinstance(decay, Tensor):
            before = shifted(decay[..., 1 : 1 + length], 0.0)
        else:
            before = one_decay(decay, length, key, decay > 0).before
        return unit_lower_inverse(erase * (overlaps(key) * before), substitute=substitute)

    width = piece or chunk
    return _by_run(rows, _runs(at, chunk, never, width), at.length, width, key, erase, decay)


def decay_of(rows: Tensor, *, piece: int | None = None, positive: bool = False) -> Decay | Decays:
    """The decays of one chunk, from its rows [B, H, T, 1 + width], or from its gate [B, H, T, 1] as `decay` does."""
    time = rows.shape[-2]
    if rows.shape[-1] == 1:
        return decay(rows, time, rows, positive=positive, piece=piece)
    if piece is None or time <= piece:
        return _one(rows)
    stacks = [_one(stack) for stack in stacked(rows, time, piece) if isinstance(stack, Tensor)]
    return Decays(time, piece, tuple(map(_one, torch.split(rows, piece, -2))), tuple(stacks))


def triangle_of(
    rows: Tensor, *made_of: Any, piece: int | None = None, substitute: bool = False
) -> Tensor | tuple[Tensor, ...]:
    """The inverted triangle of one chunk, or those of its pieces, from rows [B, H, T, width].

    Where they are [B, H, T, 0], from what it is `made_of`: key, erase rate and decay, as for `triangle`.
    """
    time = rows.shape[-2]
    if rows.shape[-1] == 0:
        return triangle(*made_of, piece=piece, substitute=substitute)
    if piece is None or time <= piece:
        return rows[..., :time]
    return tuple(part[..., : part.shape[-2]] for part in torch.split(rows, piece, -2))


def _one(rows: Tensor) -> Decay:
    gamma, between = rows[..., :1], rows[..., 1 : 1 + rows.shape[-2]]
    return Decay(False, gamma, between, shifted(gamma, 1.0), shifted(between, 0.0))


def _runs(at: At, chunk: int, never: bool, piece: int) -> list[tuple[int, int]]:
    """Lengths of what is folded at once, and how many of each length follow each other."""
    sizes = [min(piece, n - done) for n in lengths(at, ((chunk, never),)) for done in range(0, n, piece)]
    return [(size, len(list(same))) for size, same in groupby(sizes)]


def _by_run(
    rows: Callable[..., Tensor], runs: Sequence[tuple[int, int]], time: int, width: int, *values: Gate
) -> Tensor:
    """`rows` of equally long pieces at once, each padded to `width` columns; all of them, [B, H, T, width]."""
    found: list[Tensor] = []
    start = 0
    for size, count in runs:
        stop = start + size * count
        cut = [_stack(value, time, start, stop, count) for value in values]
        made = rows(size, *cut)
        missing = width - made.shape[-1]
        padded = torch.nn.functional.pad(made, (0, missing)) if missing else made
        found.append(padded.flatten(-3, -2))
        start = stop
    return found[0] if len(found) == 1 else torch.cat(found, -2)


def _stack(value: Gate, time: int, start: int, stop: int, count: int) -> Gate:
    """Tokens `start` to `stop` of [.., T, n] as `count` pieces, [.., count, T / count, n]; a number as it is."""
    if not isinstance(value, Tensor):
        return value
    whole = value if value.shape[-2] == time else value.expand(*value.shape[:-2], time, value.shape[-1])
    return whole[..., start:stop, :].reshape(*whole.shape[:-2], count, (stop - start) // count, whole.shape[-1])
