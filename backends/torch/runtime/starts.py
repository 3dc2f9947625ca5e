"""What memories and the states of their rules start from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from nsam.backends.torch.runtime.blocks import At
from nsam.backends.torch.runtime.folds import as_row
from nsam.backends.torch.runtime.functions import wide
from nsam.backends.torch.runtime.system import blank


def learned(
    w: Mapping[str, Tensor], batch: int, memory: str, tensors: Iterable[str], *, heads: bool, to: str | None = None
) -> dict[str, Tensor]:
    """Initial states from weights, one copy a sequence: [.., out, in] → [B, H, out, in], vectors [B, H, n, 1]."""
    found: dict[str, Tensor] = {}
    for name in tensors:
        weight = w[f"{memory}.{name}"]
        weight = weight if heads else weight.unsqueeze(0)
        weight = weight.unsqueeze(-1) if weight.dim() == 2 else weight
        copies = wide(weight).expand(batch, *weight.shape)
        found[f"{to or memory}.{name}"] = copies.clone(memory_format=torch.contiguous_format)
    return found


def empty_memory(
    w: Mapping[str, Tensor], at: At, memory: str, heads: int, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """A memory that starts from zeros."""
    blanks = {name: wide(blank(w, at.batch, heads, *shape)) for name, shape in shapes.items()}
    return {f"{memory}.{name}": nothing(zeros, at) for name, zeros in blanks.items()}


def copied(
    s: Mapping[str, Tensor], source: str, memory: str, tensors: Iterable[str], *, running: bool = False
) -> dict[str, Tensor]:
    """A memory that starts from another one's boundary state, or with `running` from its state after the last token."""
    states = {name: s[f"{source}.{name}"] for name in tensors}
    if running:
        states = {name: s.get(f"{source}.{name}.run", state) for name, state in states.items()}
    return {f"{memory}.{name}": state for name, state in states.items()}


def nothing(like: Tensor, at: At) -> Tensor:
    """Zeros shaped like a state. They ask for a gradient where later states do, so that blocks compile once."""
    if torch.compiler.is_compiling():  # a reset inside a block, where a leaf cannot be made
        return like * 0
    return torch.zeros_like(like, requires_grad=at.gradients)


def rule_states(
    initial: Callable[[Tensor], tuple[Tensor, ...]],
    weight: Tensor,
    path: str,
    names: Iterable[str],
    *,
    vector: bool = False,
) -> dict[str, Tensor]:
    """A rule's own states before the first update."""
    row = as_row(vector)
    return {f"{path}.{name}": row(state) for name, state in zip(names, initial(row(weight)), strict=True)}
