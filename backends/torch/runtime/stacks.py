"""Memories that move as one: states [B, H, M, out, in] of M memories, values [B, H, M, T, n].

What all of them share has no axis for the memory where a product can do without one: their matrices lie below each
other, [B, H, M out, in], and so do the errors that they write along the same keys, [B, H, T, M out].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from nsam.backends.torch.runtime.chained import momentum, rank_one
from nsam.backends.torch.runtime.folds import Fold, Pair, State
from nsam.backends.torch.runtime.triangular import Decay, Decays

AXIS = 2


def together(s: State, name: str, memories: Sequence[str], tensors: Iterable[str]) -> dict[str, Tensor]:
    """States in which `memories` are one, `name`: each of their `tensors`, and what is kept beside it, stacked."""
    found = dict(s)
    for path in [f"{memories[0]}.{tensor}" for tensor in tensors]:
        for key in [key for key in s if key == path or key.startswith(f"{path}.")]:
            rest = key.removeprefix(memories[0])
            found[f"{name}{rest}"] = torch.stack([found.pop(f"{memory}{rest}") for memory in memories], AXIS)
    return found


def apart(s: State, name: str, memories: Sequence[str]) -> dict[str, Tensor]:
    """The states of `together`, each memory's its own again."""
    found = dict(s)
    for key in [key for key in s if key.startswith(f"{name}.")]:
        each = zip(memories, found.pop(key).unbind(AXIS), strict=True)
        found |= {f"{memory}{key.removeprefix(name)}": tensor.contiguous() for memory, tensor in each}
    return found


@overload
def across(x: Tensor) -> Tensor: ...


@overload
def across(x: Decay) -> Decay: ...


@overload
def across(x: Decays) -> Decays: ...


def across(x: Tensor | Decay | Decays) -> Tensor | Decay | Decays:
    """What all memories share, with an axis of size 1 for the memory: values [B, H, 1, T, n], decays likewise."""
    if isinstance(x, Tensor):
        return x.unsqueeze(AXIS)
    if isinstance(x, Decay):
        return Decay(x.plain, *(_across(each) for each in (x.gamma, x.between, x.before_gamma, x.before)))
    return Decays(x.time, x.piece, tuple(map(across, x.parts)), tuple(map(across, x.stacks)))


def _across(x: Any) -> Any:
    """Decays that differ between sequences and heads, [B, H, .., T, .]; those of a number have no such axes."""
    return x.unsqueeze(AXIS) if isinstance(x, Tensor) and x.dim() > AXIS else x


def gather(*xs: Tensor) -> Tensor:
    """A value of each memory's own, [B, H, T, n], along the axis for the memory."""
    lead = torch.broadcast_shapes(*(x.shape for x in xs))  # type: ignore[no-untyped-call]
    return torch.stack([x.expand(lead) for x in xs], AXIS)


class Apart(Fold):
    """A fold of matrices that lie below each other, its results taken apart by memory."""

    def __init__(self, fold: Fold, members: int) -> None:
        self.fold, self.members = fold, members

    def final(self) -> dict[str, Tensor]:
        """The new tensors, [B, H, M, out, in]."""
        return {
            name: x.reshape(*x.shape[:AXIS], self.members, -1, x.shape[-1]) for name, x in self.fold.final().items()
        }


def rank_one_wide(s: State, name: str, pairs: Sequence[Pair], *gates: Any, forward: Tensor | None = None) -> Fold:
    """The fold of `RankOne` for memories that share inputs and gates: one solve with stacked right-hand sides.

    In `pairs` (u, g) and `forward` the errors and the reads have an axis for the memory; `gates` as there.
    """
    below = None if forward is None else side_by_side(forward)
    return _wide(lambda low, each: rank_one(low, name, each, *gates, forward=below), s, name, pairs)


def momentum_wide(
    s: State, name: str, trace: str, pairs: Sequence[Pair], *gates: Any, substitute: bool = False
) -> Fold:
    """The fold of `Momentum` for memories that share inputs and gates; see `rank_one_wide`."""
    return _wide(lambda low, each: momentum(low, name, trace, each, *gates, substitute=substitute), s, name, pairs)


def _wide(
    fold: Callable[[State, Sequence[Pair]], Fold], s: Mapping[str, Tensor], name: str, pairs: Sequence[Pair]
) -> Fold:
    """A fold of matrices below each other."""
    own = {key: x for key, x in s.items() if key == name or key.startswith(f"{name}.")}
    low = {key: x.flatten(AXIS, AXIS + 1) for key, x in own.items()}
    return Apart(fold(low, [(u, side_by_side(g)) for u, g in pairs]), own[name].shape[AXIS])


def side_by_side(x: Tensor) -> Tensor:
    """Rows of all memories, [B, H, M, T, n], beside each other: [B, H, T, M n]."""
    return x.transpose(2, 3).flatten(-2)
