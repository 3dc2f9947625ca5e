"""Decides in which loop each node of a plan runs.

Time is cut at boundaries. A level is one loop over blocks of tokens between the boundaries of its memories; levels nest
where their periods divide each other and are merged where they do not (then the block ends at every boundary of any of
them, and every memory folds the pieces one after the other). A node runs at the earliest point of

    sequence before | level 0 before | level 1 before | … | level 1 after | level 0 after | sequence after

at which its arguments exist: so what depends on no fast state is hoisted out of all loops. What no memory's update
needs sinks to the end of the sequence, where it is done for all tokens at once. Without the pass `hoist` work stands
in the loop of its first use instead, without `sink` in the loop that makes its arguments.
"""

from __future__ import annotations

from itertools import pairwise
from math import lcm

from nsam.compiler.expressions import Node, postorder
from nsam.compiler.fast_memory import FastMemory, piece_of, tables
from nsam.compiler.inline import inline
from nsam.compiler.lower import Lowered, lower
from nsam.compiler.passes import ALL, Passes
from nsam.compiler.places import SEQUENCE, Place, first_uses
from nsam.compiler.unsupported import unsupported
from nsam.dsl import checked as c
from nsam.dsl.records import dataclass

FREE = frozenset({"number", "weight", "input", "state"})


@dataclass(frozen=True, slots=True)
class Level:
    """One loop. `period` is the alignment of its blocks (the least common multiple where periods are merged);
    `cuts` are the periods at whose multiples a block ends; `memories` fold in it; `resets` happen at its end."""

    index: int
    period: int
    cuts: tuple[int, ...]
    memories: tuple[str, ...]
    resets: tuple[str, ...]
    before: tuple[Node, ...]
    after: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """Work on the whole sequence: `nodes`, then `event` (a call or repeat, the loop as None, or nothing at the end)."""

    nodes: tuple[Node, ...]
    event: Node | None
    loop: bool


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """A unit, scheduled."""

    lowered: Lowered
    stages: tuple[Stage, ...]
    levels: tuple[Level, ...]
    places: dict[int, Place]
    merged: str | None

    @property
    def unit(self) -> c.Unit:
        """The checked unit that this plans."""
        return self.lowered.unit

    @property
    def passes(self) -> Passes:
        """The passes that this plan may use."""
        return self.lowered.passes

    def hoisted(self) -> tuple[Node, ...]:
        """What the pass `hoist` keeps out of the loop that uses it."""
        lowered = self.lowered
        roots = [*(n for _, n in lowered.outputs), *(f.node for m in lowered.fast for f in m.folds), *lowered.events]
        order = list(postorder(roots))
        moved = first_uses(order, self.places, [n for _, n in lowered.outputs], len(self.levels))
        ahead = self.ahead
        return tuple(n for n in order if n.id in moved or n.id in ahead)

    @property
    def ahead(self) -> frozenset[int]:
        """Decays and triangles, by id, that are computed for many chunks before the loop that folds them."""
        return frozenset(a.id for a in self.fold_tables if self.places[a.id].level < self.folding(a))

    @property
    def fold_tables(self) -> tuple[Node, ...]:
        """The decays and triangles that folds take."""
        parts = {a.id: a for m in self.lowered.fast for f in m.folds for a in f.node.args if tables(a)}
        return tuple(parts.values())

    def folding(self, node: Node) -> int:
        """The level in whose blocks a fold, or a part that folds share, is used."""
        block = self.fast(str(node.attr("memory"))).block if node.attr("memory") is not None else node.attr("block")
        return next(level.index for level in self.levels if block in level.cuts)

    def fast(self, name: str) -> FastMemory:
        """The fast memory called `name`."""
        return next(f for f in self.lowered.fast if f.memory.name == name)

    def blocks(self, node: Node, tokens: int) -> list[int]:
        """Lengths of the blocks of a sequence of `tokens` over which a node runs, one after the other.

        Decays and triangles are of chunks wherever they are computed.
        """
        level = self.folding(node) if tables(node) else self.places[node.id].level
        if level == SEQUENCE:
            return [tokens]
        marks = {mark for period in self.levels[level].cuts for mark in range(0, tokens, period)}
        return [b - a for a, b in pairwise(sorted({0, tokens, *marks}))]

    def pieces(self, node: Node, tokens: int) -> list[int]:
        """The same of a fold, or a part that folds share, for the pieces that it does at once."""
        blocks, piece = self.blocks(node, tokens), piece_of(node)
        return blocks if piece is None else [min(piece, n - at) for n in blocks for at in range(0, n, piece)]


def plan(unit: c.Unit, passes: Passes = ALL) -> UnitPlan:
    """Lower and schedule one unit. Raises `ProgramError` for what cannot be compiled.

    Calls that have to run inside the loop over chunks are written out into the unit first.
    """
    if not unit.inputs:
        message = f"`{unit.name}` has no input, which tells a called system how many tokens there are"
        raise unsupported(message, unit.span, "give it an input, or declare what it computes where it is called")
    lowered = lower(unit, passes)
    while names := entangled(lowered):
        lowered = lower(inline(lowered.unit, names), passes)
    return _Scheduler(lowered).run()


def entangled(lowered: Lowered) -> frozenset[str]:
    """Calls and repeats that read a fast memory of the unit and that one learns from, or is read at."""
    moving = {f.memory.name for f in lowered.fast}
    folds = [f.node for m in lowered.fast for f in m.folds]
    judged = [n for m in lowered.fast for n in m.judged]
    roots = [*folds, *judged, *(n for _, n in lowered.outputs), *lowered.events]
    touching = [n for n in postorder(roots) if any(_moves(a, moving) for a in n.args)]
    learnt = {n.id for n in postorder([*folds, *judged, *touching])}
    found = set()
    for event in lowered.events:
        below = postorder(event.args)
        if event.id in learnt and any(n.op == "state" and n.attr("memory") in moving for n in below):
            found.add(str(event.attr("name")))
    return frozenset(found)


def _moves(node: Node, moving: set[str]) -> bool:
    """Whether a node is the state of a fast memory, at a boundary or as it runs."""
    return node.layout == "fold" or (node.op == "state" and node.attr("memory") in moving)


def nest(periods: list[int]) -> list[tuple[int, ...]]:
    """Group periods into levels, slowest first: nested where they divide, merged where they do not.

    `nest([64, 16])` is `[(64,), (16,)]`; `nest([7, 5])` is `[(7, 5)]`, `nest([15, 5, 4])` `[(15, 5, 4)]`: a loop starts
    with every block around it, so its periods must divide all of theirs.
    """
    levels: list[tuple[int, ...]] = []
    for period in sorted(set(periods), reverse=True):
        apart = next((i for i, group in enumerate(levels) if any(outer % period for outer in group)), len(levels))
        levels[apart:] = [(*(p for group in levels[apart:] for p in group), period)]
    return levels


class _Illegal(Exception):
    """A nested schedule cannot hold this node; the levels must be merged."""


class _Scheduler:
    def __init__(self, lowered: Lowered) -> None:
        self.lowered = lowered
        self.fast = {f.memory.name: f for f in lowered.fast}
        self.roots = [n for _, n in lowered.outputs] + [f.node for m in lowered.fast for f in m.folds]
        self.roots += list(lowered.events)
        self.roots += [n for m in lowered.fast for n in m.judged]
        losses = [m.loss for m in lowered.fast]
        self.main = list(postorder(self.roots))
        self.order = list(postorder([*self.roots, *losses]))
        folds = [f.node for m in lowered.fast for f in m.folds]
        touching = [n for n in self.order if any(a.op == "state" or a.layout == "fold" for a in n.args)]
        self.needed = {n.id for n in postorder([*folds, *losses, *touching])}

    def run(self) -> UnitPlan:
        periods = [f.block for f in self.fast.values()]
        periods += [int(f.memory.reset.period or 0) for f in self.fast.values() if f.memory.reset.kind == "every"]
        groups = nest(periods)
        merged = None
        clocks = {f.memory.reset.kind == "never" for f in self.fast.values()}
        if len(clocks) > 1 and len(set(periods)) > 1:
            groups, merged = [tuple(sorted(set(periods), reverse=True))], "memories that are reset and never reset mix"
        early = self.early_start()
        if early is not None:
            groups, merged = [tuple(sorted(set(periods), reverse=True))], early
        try:
            places = self.place(groups)
        except _Illegal as problem:
            groups, merged = [tuple(sorted(set(periods), reverse=True))], str(problem)
            try:
                places = self.place(groups)
            except _Illegal as last:
                raise unsupported(
                    f"a memory learns from a system that reads memories of the same loop ({last})",
                    self.lowered.unit.span,
                    "write the called system's memories in the calling system",
                ) from None
        levels = tuple(self.level(i, g, groups, places) for i, g in enumerate(groups))
        return UnitPlan(self.lowered, self.stages(places, bool(groups)), levels, places, merged)

    def early_start(self) -> str | None:
        """Why a reset falls inside the block of the memory whose running state it copies, or None."""
        for name, fast in self.fast.items():
            origin = self.fast.get(str(fast.memory.initial.memory))
            if origin is None or fast.memory.reset.kind != "every":
                continue
            moves = origin.exact or origin.memory.reads == "running"
            if moves and int(fast.memory.reset.period or 0) % origin.block:
                return f"{name} starts from the running state of {origin.memory.name}"
        return None

    # --- places --------------------------------------------------------------------------------------

    def place(self, groups: list[tuple[int, ...]]) -> dict[int, Place]:
        """Find each node's place; raises `_Illegal` when the nest cannot hold it."""
        depth = len(groups)
        level_of = {
            name: next(i for i, group in enumerate(groups) if fast.block in group) for name, fast in self.fast.items()
        }
        self._levels, self._groups = level_of, groups
        places: dict[int, Place] = {}
        for node in self.order:
            places[node.id] = self.place_one(node, places, level_of, depth)
        for name, fast in self.fast.items():
            if any(places[n.id].after and places[n.id].level < level_of[name] for n in fast.judged):
                raise _Illegal(f"{name} judges by what a slower loop gives only at its end")
        if "hoist" not in self.lowered.passes:
            places |= first_uses(self.order, places, [n for _, n in self.lowered.outputs], depth)
        return places

    def place_one(self, node: Node, places: dict[int, Place], level_of: dict[str, int], depth: int) -> Place:
        if node.op == "state":
            return Place(level_of.get(str(node.attr("memory")), SEQUENCE))
        found = Place(SEQUENCE)
        for argument in node.args:
            found = max(found, places[argument.id], key=lambda p: p.rank(depth))
        if node.op == "child":
            if found.level != SEQUENCE:
                found = Place(SEQUENCE, True)
            return found
        if node.op == "carry":
            return self.place_fold(node, found, level_of[str(node.attr("memory"))])
        bound = self.bound(node)
        if node.layout == "fold" and node.op != "shown":
            home = self.home(node)
            early = self.early(node, places, home)
            return early if early is not None else self.place_fold(node, found, home)
        if bound is None or bound[0] == SEQUENCE:
            if found.level != SEQUENCE and node.id not in self.needed and self.sinks(node):
                return Place(SEQUENCE, True)
            return found
        if found.after and found.level < bound[0]:
            raise _Illegal(f"a read of {bound[1]} needs what a slower loop gives only at its end")
        if node.op in ("shown", "fold_read", "fold_read_t", "fold_row") and found.level != bound[0]:
            raise _Illegal(f"the running state of {bound[1]} is read inside a faster loop")
        return found

    def sinks(self, node: Node) -> bool:
        """Whether what no update needs leaves the loop; attention always does: it sees all tokens at once."""
        return "sink" in self.lowered.passes or node.op == "attention"

    def home(self, node: Node) -> int:
        """The level whose blocks a fold, or a part that folds share, belongs to."""
        if node.attr("memory") is not None:
            return self._levels[str(node.attr("memory"))]
        same = [n for n, f in self.fast.items() if f.block == node.attr("block")]
        return self._levels[same[0]]

    def early(self, node: Node, places: dict[int, Place], home: int) -> Place | None:
        """Where decays or a triangle are computed for many chunks before the loop that folds them, if they can be.

        They can where keys and gates are known there and the loop's blocks are whole chunks. Decays of a retention that
        is a number cost nothing and stay.
        """
        if not tables(node) or "hoist" not in self.lowered.passes or len(self._groups[home]) > 1:
            return None
        if len({f.memory.reset.kind == "never" for f in self.fast.values()}) > 1:  # blocks end at marks of two clocks
            return None
        if node.op == "decay" and node.args[0].op == "number":
            return None
        found = max((places[a.id] for a in node.args), key=lambda p: p.rank(len(self._groups)))
        return found if found.level < home and not found.after else None

    def place_fold(self, node: Node, found: Place, home: int) -> Place:
        if found.level > home:
            return Place(home, True)
        if found.level < home:
            if found.after:
                raise _Illegal(
                    f"{node.attr('memory', 'a memory')} learns from what a slower loop gives only at its end"
                )
            return Place(home)
        return found

    def bound(self, node: Node) -> tuple[int, str] | None:
        """The level inside which this node must run because it touches a state or a fold, with the memory's name."""
        for argument in node.args:
            source = argument.args[0] if argument.op == "shown" else argument
            if source.op == "state" or (source.layout == "fold" and source.attr("memory") is not None):
                memory = str(source.attr("memory"))
                return self._levels.get(memory, SEQUENCE), memory
        return None

    # --- levels and stages -----------------------------------------------------------------------------

    def level(
        self, index: int, group: tuple[int, ...], groups: list[tuple[int, ...]], places: dict[int, Place]
    ) -> Level:
        memories = tuple(n for n, f in self.fast.items() if f.block in group)
        resets = tuple(
            n
            for n, f in self.fast.items()
            if f.memory.reset.kind == "every" and int(f.memory.reset.period or 0) in group
        )
        here = [n for n in self.main if n.op not in FREE and places[n.id].level == index]
        before = tuple(n for n in here if not places[n.id].after)
        after = tuple(n for n in here if places[n.id].after)
        return Level(index, lcm(*group), tuple(sorted(group)), memories, resets, before, after)

    def stages(self, places: dict[int, Place], loop: bool) -> tuple[Stage, ...]:
        """Cut the whole-sequence work into stages between calls and the loop."""
        events = list(self.lowered.events)
        late = [e for e in events if places[e.id].after]
        order: list[Node | None] = [e for e in events if e not in late]
        if loop:
            order.append(None)
        order += late
        position = {e.id: i for i, e in enumerate(order) if e is not None}
        loop_at = next((i for i, e in enumerate(order) if e is None), len(order))
        stage: dict[int, int] = {}
        groups: list[list[Node]] = [[] for _ in range(len(order) + 1)]
        for node in self.main:
            place = places[node.id]
            if place.level != SEQUENCE:
                stage[node.id] = loop_at + 1
                continue
            if node.id in position:
                stage[node.id] = position[node.id] + 1
                continue
            at = max((stage[a.id] for a in node.args), default=0)
            stage[node.id] = at
            if node.op not in FREE and node.op not in ("child", "output"):
                groups[at].append(node)
        found = [Stage(tuple(groups[i]), e, e is None) for i, e in enumerate(order)]
        return (*found, Stage(tuple(groups[-1]), None, False))
