"""What a unit asks of its checks: its clocks, the lengths that exercise them, and where its parameters live."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from nsam.compiler.fast_memory import EXACT_BLOCK
from nsam.dsl.checked import Apply, Call, Memory, RuleMemory, Unit, memory_expressions, walk

REFERENCE_TOKENS = 150
"""Longest sequence on which the token-by-token reference is asked."""
LONGEST = 4096
"""Longest sequence for the checks that need the compiled module alone."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A memory of a unit, or of a unit inside it: the path of its parameters, and its path in the level graph."""

    path: str
    shared: str
    memory: Memory


def placed(unit: Unit, path: str = "", shared: str = "") -> Iterator[Placed]:
    """Yield every memory, each pass of a repeat with its own."""
    for memory in unit.memories:
        yield Placed(path + memory.name, shared + memory.name, memory)
    for child in unit.children:
        if isinstance(child, Call):
            yield from placed(child.unit, f"{path}{child.name}.", f"{shared}{child.name}.")
        else:
            for i in range(int(child.count)):
                yield from placed(child.body, f"{path}{child.name}.{i}.", f"{shared}{child.name}.*.")


def periods(unit: Unit) -> dict[int, str]:
    """Return every span of tokens after which something happens, with a memory that it belongs to."""
    found: dict[int, str] = {}
    for each in placed(unit):
        for period in _periods(each.memory):
            found.setdefault(period, each.path)
    return dict(sorted(found.items()))


def _periods(memory: Memory) -> Iterator[int]:
    if memory.fast and memory.frequency is not None:
        period = int(memory.frequency.period)
        yield period
        if memory.frequency.slowest is not None:
            yield int(memory.frequency.slowest)
        if period == 1:
            yield EXACT_BLOCK  # such memories may be folded many tokens at a time
        if memory.rule is not None:
            for statement in memory.rule.rule.statements:
                if isinstance(statement, RuleMemory):
                    yield period * statement.period
    if memory.reset.kind == "every":
        yield int(memory.reset.period or 1)
    if memory.context is not None and memory.context.window is not None:
        yield int(memory.context.window)
    if memory.structure.window is not None:
        yield int(memory.structure.window)
    if memory.structure.kind == "conv":
        yield int(memory.structure.sizes[1])


def places(unit: Unit) -> int | None:
    """Return the longest sequence that a unit knows positions for: the least n of its `position(x, n)`."""
    found = []
    values = [value for _, value in unit.outputs] + [step.value for step in unit.bindings]
    values += [value for memory in unit.memories for value in memory_expressions(memory)]
    for child in unit.children:
        inside = places(child.unit if isinstance(child, Call) else child.body)
        found += [] if inside is None else [inside]
        arguments = child.arguments if isinstance(child, Call) else [v for _, v in (*child.carried, *child.captured)]
        values += arguments
    for node in (node for value in values for node in walk(value)):
        if isinstance(node, Apply) and node.function == "position":
            found.append(int(node.option("n") or 1))
    return min(found, default=None)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of the sequences that are run.

    `odd` is a multiple of no period, `even` of every one (None when that is too long for the reference), `gradient`
    reaches just beyond the longest period that the reference can afford, `long` beyond every period.
    """

    odd: int
    even: int | None
    gradient: int
    long: int
    beyond: tuple[int, ...] = ()


def choose_lengths(unit: Unit, limit: int = REFERENCE_TOKENS) -> Lengths:
    """Choose lengths from the unit's periods; `beyond` are those that the reference does not reach."""
    every = list(periods(unit))
    most = places(unit) or LONGEST
    limit = min(limit, most)
    within = [p for p in every if p < limit]
    largest = max(within, default=1)
    common = math.lcm(1, *within)
    even = common * max(1, min(-(-8 // common), most // common), min(2, limit // common)) if common <= limit else None
    return Lengths(
        odd=_no_multiple(min(max(2 * largest + 3, 9), limit), within),
        even=even,
        gradient=_no_multiple(min(max(largest + 3, 9), limit), within),
        long=min(_no_multiple(max(2 * max(every, default=1) + 3, 9), every), LONGEST, most),
        beyond=tuple(p for p in every if p >= limit),
    )


def _no_multiple(start: int, of: list[int]) -> int:
    """The first number from `start` on that is a multiple of none of `of` (1 aside), or `start`."""
    for n in range(start, start + 50):
        if all(n % p for p in of if p > 1):
            return n
    return start
