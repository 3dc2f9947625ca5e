"""Running a unit over whole sequences, one token at a time and one sequence after the other."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from nsam.backends.reference.arrays import Array, Arrays
from nsam.backends.reference.frame import Frame, UnitRecord
from nsam.backends.reference.weights import Weights
from nsam.dsl.checked import Unit

ReferenceState: TypeAlias = dict[str, Any]
"""`sequences`: one `frame.UnitRecord` for each sequence of the batch."""

DEEP = 100_000


@contextmanager
def deep_recursion() -> Iterator[None]:
    """Let the walk over expressions go as deep as long programs need; it uses no C stack."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, DEEP))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def run(
    ops: Arrays, unit: Unit, parameters: Mapping[str, Array], inputs: Sequence[Any], state: ReferenceState | None
) -> tuple[Array, ReferenceState]:
    """Return the output [batch, time, …] of a system and the state after the last token.

    `inputs` follow the unit's inputs: [batch, time, …], or [batch, …] for those that are per sequence.
    """
    batch = batch_of(unit, inputs)
    records: list[UnitRecord] = [{}] * batch if state is None else list(state["sequences"])
    if len(records) != batch:
        raise ValueError(f"the state is of {len(records)} sequences, the input of {batch}")
    rows = []
    with deep_recursion():
        for i in range(batch):
            outputs = []
            for token in tokens_of(ops, unit, inputs, i):
                frame = Frame(ops, unit, Weights(parameters), records[i], token)
                outputs.append(frame.run()["output"])
                records[i] = frame.finish()
            rows.append(ops.stack(outputs))
    return ops.stack(rows), {"sequences": records}


def new_sequence(state: ReferenceState) -> ReferenceState:
    """Return the state in which new sequences start: only memories with `reset never` are kept."""
    return {"sequences": [_kept(record) for record in state["sequences"]]}


def _kept(record: UnitRecord) -> UnitRecord:
    kept = {name: memory for name, memory in record.get("memories", {}).items() if memory["reset"] == "never"}
    children = {
        name: [_kept(each) for each in child] if isinstance(child, list) else _kept(child)
        for name, child in record.get("children", {}).items()
    }
    return {"memories": kept, "children": children}


def batch_of(unit: Unit, inputs: Sequence[Any]) -> int:
    """Return the number of sequences, after checking every input's shape."""
    if not inputs:
        raise ValueError("a system without inputs cannot be run")
    for given, x in zip(unit.inputs, inputs, strict=True):
        axes = ("batch", "time") if given.type.per == "token" else ("batch",)
        shape = tuple(int(size) for size in given.type.shape)
        if len(x.shape) != len(axes) + len(shape) or tuple(x.shape[len(axes) :]) != shape:
            wanted = ", ".join((*axes, *map(str, shape)))
            raise ValueError(f"{given.name} of {unit.name} is [{wanted}], found {list(x.shape)}")
    sizes = {int(x.shape[0]) for x in inputs}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"the inputs of {unit.name} must have one and the same batch size, at least 1: {sorted(sizes)}"
        )
    return sizes.pop()


def tokens_of(ops: Arrays, unit: Unit, inputs: Sequence[Any], sequence: int) -> Iterator[list[Any]]:
    """Yield each token's inputs of one sequence."""
    lengths = {int(x.shape[1]) for given, x in zip(unit.inputs, inputs, strict=True) if given.type.per == "token"}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"the inputs of {unit.name} must have one and the same length, at least 1: {sorted(lengths)}")
    for t in range(lengths.pop()):
        token: list[Any] = []
        for given, x in zip(unit.inputs, inputs, strict=True):
            value = x[sequence] if given.type.per != "token" else x[sequence, t]
            token.append(value if given.type.vocab is None else _token(int(value), given.name, int(given.type.vocab)))
        yield token


def _token(value: int, name: str, vocab: int) -> int:
    if not 0 <= value < vocab:
        raise ValueError(f"{name} has the token {value}, outside of 0 … {vocab - 1}")
    return value
