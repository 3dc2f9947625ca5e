"""Long chunks, folded a piece at a time.

The gradients of a chunk are taken at its start (eq. 90), so all of them are known; what a rule makes of them is a
recurrence over tokens, and a recurrence can be cut anywhere. Work on pairs of tokens (decays, Gram matrix, triangle)
grows with the square of a piece instead of the square of the chunk, and is done for all pieces at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nsam.backends.torch.runtime.folds import Fold, Gate, Momentum, Pair, RankOne, State
from nsam.backends.torch.runtime.triangular import Decay, Decays


class Chained(Fold):
    """Folds of `piece` tokens, one after the other, each from the state that the one before it left."""

    def __init__(self, parts: Sequence[Fold], piece: int) -> None:
        self.parts, self.piece = parts, piece

    def final(self) -> dict[str, Tensor]:
        """The new tensors after the last piece."""
        return self.parts[-1].final()

    def read(self, q: Tensor, strict: bool) -> Tensor:
        """M_t q, piece by piece."""
        rows = zip(self.parts, Cut(self.piece, len(self.parts))(q), strict=True)
        return torch.cat([part.read(x, strict) for part, x in rows], -2)

    def read_t(self, q: Tensor, strict: bool) -> Tensor:
        """M_tᵀ q, piece by piece."""
        rows = zip(self.parts, Cut(self.piece, len(self.parts))(q), strict=True)
        return torch.cat([part.read_t(x, strict) for part, x in rows], -2)

    def row(self, strict: bool) -> Tensor:
        """A vector kept as a column, after each token."""
        return torch.cat([part.row(strict) for part in self.parts], -2)


def rank_one(
    s: State,
    name: str,
    pairs: Sequence[Pair],
    decay: Decay | Decays,
    write: Gate,
    erase: Gate = 0.0,
    key: Tensor | None = None,
    inverse: Tensor | tuple[Tensor, ...] | None = None,
    *,
    forward: Tensor | None = None,
) -> Fold:
    """The fold of `RankOne` over a chunk of any length; arguments as there."""
    if isinstance(decay, Decay):
        assert not isinstance(inverse, tuple)
        return RankOne(s, name, pairs, decay, write, erase, key, inverse, forward=forward)
    cut = Cut(decay.piece, len(decay.parts))
    every = zip(*map(cut, (write, erase, key, inverse, forward)), strict=True)
    parts: list[Fold] = []
    for each, part, rest in zip(cut.pairs(pairs), decay.parts, every, strict=True):
        parts.append(RankOne(s, name, each, part, *rest[:-1], forward=rest[-1]))
        s = after(s, name, parts[-1])
    return Chained(parts, decay.piece)


def momentum(
    s: State,
    name: str,
    trace: str,
    pairs: Sequence[Pair],
    decay: Decay | Decays,
    surprise: Decay | Decays,
    write: Gate,
    erase: Gate = 0.0,
    fade: Gate = 0.0,
    key: Tensor | None = None,
    *,
    substitute: bool = False,
) -> Fold:
    """The fold of `Momentum` over a chunk of any length; arguments as there."""
    if isinstance(decay, Decay):
        assert isinstance(surprise, Decay)
        return Momentum(s, name, trace, pairs, decay, surprise, write, erase, fade, key, substitute=substitute)
    assert isinstance(surprise, Decays)
    cut = Cut(decay.piece, len(decay.parts))
    every = zip(decay.parts, surprise.parts, *map(cut, (write, erase, fade, key)), strict=True)
    parts: list[Fold] = []
    for each, rest in zip(cut.pairs(pairs), every, strict=True):
        parts.append(Momentum(s, name, trace, each, *rest, substitute=substitute))
        s = after(s, name, parts[-1])
    return Chained(parts, decay.piece)


def after(s: State, name: str, part: Fold) -> dict[str, Tensor]:
    """The states for the next piece: the running one beside that of the boundary."""
    return {**s, **{f"{name}{suffix}.run": value for suffix, value in part.final().items()}}


class Cut:
    """Cuts rows of tokens [.., T, n] into pieces; one tensor gives the same pieces every time, since folds ask `is`."""

    def __init__(self, piece: int, count: int) -> None:
        self.piece, self.count = piece, count
        self.known: list[tuple[Any, list[Any]]] = []

    def __call__(self, x: Any) -> list[Any]:
        """The pieces; of what is the same for all tokens the same, of a tuple with one item a piece its items."""
        # No dict by id(): torch.compile would take the number for a constant and compile again at every call.
        for known, pieces in self.known:
            if known is x:
                return pieces
        timed = isinstance(x, Tensor) and x.shape[-2] > 1
        pieces = list(x.split(self.piece, -2)) if timed else list(x) if isinstance(x, tuple) else [x] * self.count
        self.known.append((x, pieces))
        return pieces

    def pairs(self, pairs: Sequence[Pair]) -> list[list[Pair]]:
        """The (input, error) pairs of each piece."""
        both = [(self(u), self(g)) for u, g in pairs]
        return [[(u[i], g[i]) for u, g in both] for i in range(self.count)]
