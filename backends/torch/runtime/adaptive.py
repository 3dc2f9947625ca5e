"""Memories with an adaptive period: at each multiple of the shortest one, every sequence decides whether to move.

Such a memory always has both its boundary state, `m.weight`, and its running state, `m.weight.run`, whose tensors are
the same ones after each block whatever was decided: shapes are static, and the decision selects. Two counters for each
sequence go with them: `m.waited`, tokens since the last update, and `m.surprise`, the objective added up over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nsam.backends.torch.runtime.blocks import At


def waiting(new: Mapping[str, Tensor], memory: str, tensors: Iterable[str]) -> dict[str, Tensor]:
    """What an adaptive memory that starts keeps beside its boundary state: the running state and the counters, [B]."""
    found = {f"{memory}.{tensor}.run": new[f"{memory}.{tensor}"].clone() for tensor in tensors}
    like = next(iter(found.values())).detach()
    surprise = like.new_zeros(like.shape[0])
    return {**found, f"{memory}.surprise": surprise, f"{memory}.waited": surprise.to(torch.int64)}


def decide(
    at: At,
    s: Mapping[str, Tensor],
    memory: str,
    periods: tuple[int, int],
    threshold: float,
    loss: Tensor,
    folds: Mapping[str, Any],
    never: bool = False,
) -> dict[str, Tensor]:
    """The state tensors of an adaptive memory after a block of T tokens.

    `loss` [B, H, ≥ T, 1] is the objective of each token at the boundary state, the block's own tokens last. At a
    multiple of `periods[0]` the running state becomes the boundary state of the sequences whose mean objective since
    their last update exceeds `threshold`, and of those whose last update is `periods[1]` tokens ago. The outer
    gradient flows through the selected state, not through the selection.
    """
    waited = s[f"{memory}.waited"] + at.length
    surprise = s[f"{memory}.surprise"] + loss[:, :, -at.length :].detach().sum(2).mean((1, 2))
    moved = {
        f"{memory}.{tensor}{suffix}": new for tensor, fold in folds.items() for suffix, new in fold.final().items()
    }
    running = {f"{memory}.{tensor}": moved.pop(f"{memory}.{tensor}") for tensor in folds}
    found = {**moved, **{f"{name}.run": new for name, new in running.items()}}
    if at.closes(periods[0], never):
        due = (surprise / waited > threshold) | (waited >= periods[1])
        found |= {name: torch.where(due[:, None, None, None], new, s[name]) for name, new in running.items()}
        waited, surprise = waited.masked_fill(due, 0), surprise.masked_fill(due, 0)
    return {**found, f"{memory}.waited": waited, f"{memory}.surprise": surprise}
