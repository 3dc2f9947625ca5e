"""What a call is given: shapes and types of inputs, and whether a state belongs to them. Raises ValueError."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nsam.backends.torch.runtime.blocks import At

NARROW = frozenset({torch.uint8, torch.int8, torch.int16, torch.uint16, torch.uint32, torch.uint64})
"""Types of whole numbers that torch's embedding does not take: tokens as files and NumPy have them."""


def whole(x: Any) -> Any:
    """Tokens of a narrow type as int64, numbers that torch only notes to be negated as they are; else what was given.

    The note (an imaginary part of a conjugate has it) is lost in code that torch.compile makes.
    """
    if not isinstance(x, Tensor):
        return x
    return x.to(torch.int64) if x.dtype in NARROW else x.resolve_neg() if x.is_neg() else x


def expect(name: str, x: Tensor, shape: tuple[int, ...], *, vocab: int | None = None, per: str = "token") -> None:
    """Check an input's axes: [batch, time, *shape] (`per` "sequence": [batch, *shape]). Raises ValueError."""
    lead = {"token": 2, "sequence": 1, "constant": 0}[per]
    wanted = [*("batch", "time")[:lead], *map(str, shape)]
    given = list(x.shape)
    plain = given[lead:] == list(shape) or (not shape and given[lead:] == [1] and vocab is None)
    if len(given) < lead or not plain:
        raise ValueError(f"input `{name}` must be [{', '.join(wanted)}], got {given}")
    if vocab is not None and (x.is_floating_point() or x.dtype == torch.bool):
        raise ValueError(f"input `{name}` must be whole numbers below {vocab}, got {x.dtype}")
    if 0 in given[:lead]:
        raise ValueError(f"input `{name}` is empty: {given}")


def agree(*inputs: tuple[str, Tensor], sequences: Iterable[tuple[str, Tensor]] = ()) -> None:
    """Check that `inputs` [batch, time, …] are of one batch and length, and `sequences` [batch, …] of that batch.

    Raises ValueError: a batch or a length of 1 would be spread over the others.
    """
    first, x = inputs[0]
    for axis, what, others in ((0, "sequences", (*inputs, *sequences)), (1, "tokens", inputs)):
        for name, other in others:
            if other.shape[axis] != x.shape[axis]:
                raise ValueError(
                    f"inputs `{first}` and `{name}` must have as many {what} as each other: "
                    f"{x.shape[axis]} and {other.shape[axis]}"
                )


def column(x: Tensor) -> Tensor:
    """One number a token, [B, T] or [B, T, 1], as [B, T, 1]."""
    return x.unsqueeze(-1) if x.dim() == 2 else x


def require_places(at: At, places: int) -> None:
    """Check that a call stays within the positions that the system knows; `ValueError` otherwise."""
    if at.offset + at.length > places:
        raise ValueError(
            f"the sequence has {at.offset + at.length} tokens and this system has positions for {places}: "
            "begin a new sequence with nsam.new_sequence(state)"
        )


def require_batch(state: Mapping[str, Any], batch: int) -> None:
    """Check that a state has as many sequences as the input (one would be spread over all); `ValueError` otherwise."""
    for tensor in (*state["sequence"].values(), *state["kept"].values(), *_chunk(state.get("task"))):
        if tensor.shape[0] != batch:
            raise ValueError(
                f"the state is of {tensor.shape[0]} sequences, the input of {batch}: "
                "choose some of the state's with nsam.take_sequences(state, [0, …])"
            )


def _chunk(task: Mapping[str, Any] | None) -> Iterable[Tensor]:
    """The inputs of the chunk that is not closed yet, or not settled (`end_to_end.py`)."""
    if task is None:
        return ()
    found: tuple[Tensor, ...] = task["inputs"] if task["late"] is None else task["late"][0]
    return found
