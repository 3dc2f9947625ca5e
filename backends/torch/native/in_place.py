"""Values written where a copy would put them.

A chunk's rows become a part of all rows, and those a part of a result: each step of it is a copy of what was just
computed. Where such a copy takes all of a buffer to places that nothing else writes, the buffer lies there from the
beginning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nsam.backends.torch.native.statements import Loop, Statement, changed
from nsam.backends.torch.native.values import Buffer, Lazy, View, contiguous, leaves

Place = tuple[int, int]
"""A statement, and a store of it where it is a loop."""


@dataclass(frozen=True)
class _Use:
    """Where a view is read or written."""

    at: Place
    view: View
    writes: bool


def in_place(statements: Sequence[Statement]) -> list[Statement]:
    """The same work without the copies that need not be."""
    return _Moves(statements).result()


def overlap(a: View, b: View) -> bool:
    """Whether two views of one buffer may have places in common: they have none where one ends before the other."""
    (low, high), (first, last) = _range(a), _range(b)
    return low <= last and first <= high


def _range(x: View) -> tuple[int, int]:
    """The first and the last place of a view."""
    ends = [(n - 1) * d for n, d in zip(x.sizes, x.strides, strict=True)]
    return x.offset + sum(min(end, 0) for end in ends), x.offset + sum(max(end, 0) for end in ends)


class _Moves:
    """Where buffers go: each into another one, so much further on."""

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.statements = list(statements)
        self.moved: dict[Buffer, tuple[Buffer, int]] = {}
        self.gone: set[Place] = set()
        self.uses: dict[Buffer, list[_Use]] = {}
        for i, statement in enumerate(self.statements):
            for use in _uses(i, statement):
                self.uses.setdefault(use.view.buffer, []).append(use)
        # The last copy first: where a copy goes to is then known before what goes there.
        for i in reversed(range(len(self.statements))):
            statement = self.statements[i]
            if isinstance(statement, Loop):
                for k in reversed(range(len(statement.stores))):
                    self._copy((i, k), *statement.stores[k])

    def result(self) -> list[Statement]:
        """The statements with what has moved, and without the copies that moved it."""
        found: list[Statement] = []
        for i, s in enumerate(self.statements):
            if isinstance(s, Loop):
                s = Loop(s.sizes, [store for k, store in enumerate(s.stores) if (i, k) not in self.gone])
                if not s.stores:
                    continue
            touched = any(view.buffer in self.moved for view in s.views())
            found.append(changed(s, self.place, lambda sizes: sizes) if touched else s)
        return found

    def place(self, x: View) -> View:
        """Where a view lies now."""
        if x.buffer not in self.moved:
            return x
        buffer, further = self.moved[x.buffer]
        return replace(x, buffer=buffer, offset=x.offset + further)

    def _copy(self, at: Place, target: View, value: Lazy) -> None:
        """Move the buffer that a store copies, if that changes nothing else."""
        if not isinstance(value, View) or value.buffer in self.moved:
            return
        source, goal = value.buffer, self.place(target)
        same = (source.half, source.boolean) == (goal.buffer.half, goal.buffer.boolean) and source is not goal.buffer
        if source.kind != "own" or not same or not _whole(value) or value.strides != goal.strides:
            return
        if any(use.writes and use.at > at for use in self.uses[source]):
            return
        others = [use for use in self.uses[goal.buffer] if not (use.at == at and use.writes)]
        if any(overlap(use.view, goal) and (use.writes or use.at < at) for use in others):
            return
        self.gone.add(at)
        self.moved[source] = (goal.buffer, goal.offset)
        moved = [use for use in self.uses.pop(source) if use.at != at]
        self.uses[goal.buffer] = [*others, *(replace(use, view=self.place(use.view)) for use in moved)]


def _uses(i: int, statement: Statement) -> Iterator[_Use]:
    """What a statement reads and writes, a loop store by store."""
    if isinstance(statement, Loop):
        for k, (target, value) in enumerate(statement.stores):
            yield _Use((i, k), target, writes=True)
            yield from (_Use((i, k), leaf, writes=False) for leaf in leaves(value))
    else:
        yield from (_Use((i, 0), view, writes=True) for view in statement.targets())
        yield from (_Use((i, 0), view, writes=False) for view in statement.sources())


def _whole(x: View) -> bool:
    """Whether a view shows all of a buffer, each place once and in a row."""
    return (
        not x.offset
        and math.prod(x.sizes) == x.buffer.size
        and x.strides == View(x.buffer, x.sizes, contiguous(x.sizes)).strides
    )
