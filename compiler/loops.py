"""How the loops of a plan are run: which block of tokens is compiled as one call, and where none can be.

Compile time grows with the number of chunks in one graph, run time with the number of calls. So one level's block is
compiled whole, the outermost that unrolls few enough inner blocks; short blocks are compiled several at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import merge
from itertools import groupby, islice
from math import lcm, prod

from nsam.compiler.fast_memory import FastMemory
from nsam.compiler.lower import state_shape
from nsam.compiler.schedule import Level, UnitPlan
from nsam.dsl.records import dataclass

UNROLLED_CHUNKS = 8
"""The most inner chunks that a compiled segment of short blocks unrolls; one block may unroll twice as many."""
SEGMENT_TOKENS = 64
"""Blocks shorter than this are compiled several at a time, so that a call does at least this many tokens."""
LONG_TOKENS = 512
"""The most tokens of a call where the work on a block is small. What is left of a sequence goes in shorter ones."""
SMALL_MATRIX = 1 << 16
"""Entries of a fast memory's matrix up to which the time of calls counts; of larger ones half as many tokens go."""
LARGEST_GRAPH = 128
"""The most operations of a plan that such a call unrolls."""

Cut = tuple[int, bool]
"""A period at whose multiples a block ends, and whether on the clock of memories that are never reset."""


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop as it is run.

    `period` is the alignment of its blocks, `cuts` where they end, `compiled` the tokens of the block that is compiled
    as one, if it is this loop's; `level` is None for a segment of several blocks.
    """

    period: int
    cuts: tuple[Cut, ...]
    compiled: int | None
    level: Level | None


def plan_loops(plan: UnitPlan) -> tuple[Loop, ...]:
    """The nest of loops, outermost first."""
    levels = plan.levels
    compiled = None if uncompiled(plan) else _compiled_level(plan)
    loops: list[Loop] = []
    outer = None
    for index, level in enumerate(levels):
        cuts = tuple(cut for period in level.cuts for cut in _clocks(plan, period))
        period = alignment(plan, level)
        if index == compiled:
            size = _segment(plan, period, outer) if "segment" in plan.passes else period
            longer = _long_segments(plan, size, outer) if "segment" in plan.passes else ()
            loops += [Loop(long, ((long, cuts[0][1]),), long, None) for long in longer]
            if size > period or len(level.cuts) > 1:
                loops.append(Loop(size, ((size, cuts[0][1]),), size, None))
                loops.append(Loop(period, cuts, None, level))
                continue
        loops.append(Loop(period, cuts, period if index == compiled else None, level))
        outer = period
    return tuple(loops)


def uncompiled(plan: UnitPlan) -> str | None:
    """Why the blocks of a plan run as plain PyTorch, not through torch.compile; None where they are compiled."""
    fasts = plan.lowered.fast
    for fast in fasts:
        if fast.plan is not None and fast.plan.strides and fast.plan.needs_count:
            return f"rule `{fast.plan.name}` needs both its update count and periods of its own"
    if len({fast.memory.reset.kind == "never" for fast in fasts}) > 1:
        return "memories that are reset and memories that never are end their chunks on different clocks"
    if plan.levels and _compiled_level(plan) is None:
        level = plan.levels[-1]
        return (
            f"boundaries at multiples of {', '.join(map(str, level.cuts))} cut the {alignment(plan, level):,} tokens "
            f"after which their pattern repeats into more than the {2 * UNROLLED_CHUNKS} pieces that one graph may "
            "hold; periods that divide each other are compiled"
        )
    return None


def alignment(plan: UnitPlan, level: Level) -> int:
    """Tokens after which the level's pattern of boundaries, resets and rule periods repeats."""
    return lcm(level.period, *(f.period * _rule_alignment(f) for f in map(plan.fast, level.memories)))


def pieces(periods: Sequence[int], within: int, most: int) -> int:
    """How many pieces a block of `within` tokens is cut into; `most` + 1 where they are more.

    Periods that do not divide each other may repeat after more tokens than can be counted.
    """
    marks = (mark for mark, _ in groupby(merge(*(range(0, within, period) for period in periods))))
    return sum(1 for _ in islice(marks, most + 1))


def _rule_alignment(fast: FastMemory) -> int:
    """Updates after which a rule with periods of its own repeats (1 without any)."""
    return lcm(1, *(fast.plan.strides if fast.plan is not None else ()))


def _clocks(plan: UnitPlan, period: int) -> tuple[Cut, ...]:
    users = [f for f in plan.lowered.fast if f.block == period]
    nevers = {f.memory.reset.kind == "never" for f in users} or {False}
    return tuple((period, never) for never in sorted(nevers))


def _compiled_level(plan: UnitPlan) -> int | None:
    """The outermost level whose block unrolls few enough inner blocks."""
    for index, level in enumerate(plan.levels):
        most = 2 * UNROLLED_CHUNKS
        if pieces(plan.levels[-1].cuts, alignment(plan, level), most) <= most:
            return index
    return None


def _segment(plan: UnitPlan, period: int, outer: int | None) -> int:
    """Tokens of a compiled call: several blocks where one is short, never more than an outer block."""
    size = period
    while size < SEGMENT_TOKENS and pieces(plan.levels[-1].cuts, 2 * size, UNROLLED_CHUNKS) <= UNROLLED_CHUNKS:
        if outer is not None and outer % (2 * size):
            break
        size *= 2
    return size


def _long_segments(plan: UnitPlan, size: int, outer: int | None) -> list[int]:
    """Tokens of longer calls beside that of `size` tokens, the longest first, for sequences that have as many.

    The longest that may be, and half of it: a sequence that is just too short for the one finds the other.
    """
    found: list[int] = []
    most = LONG_TOKENS if _largest_matrix(plan) <= SMALL_MATRIX else LONG_TOKENS // 2
    long = 2 * size
    while long <= most and _operations(plan, long) <= LARGEST_GRAPH and not (outer and outer % long):
        found.insert(0, long)
        long *= 2
    return found[:2]


def _largest_matrix(plan: UnitPlan) -> int:
    """Entries of the largest tensor of one head of a fast memory."""
    memories = [f.memory for f in plan.lowered.fast]
    return max((prod(state_shape(m, tensor)) for m in memories for tensor in m.structure.tensors()), default=0)


def _operations(plan: UnitPlan, tokens: int) -> int:
    """Operations of the loops over so many tokens, each block's on its own."""
    return sum((len(level.before) + len(level.after)) * pieces(level.cuts, tokens, tokens) for level in plan.levels)
