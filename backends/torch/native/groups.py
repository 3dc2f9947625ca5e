"""Rounds: statements that do the same for each of several matrices are run matrix by matrix.

A kernel of Hope works on four memories of equal structure. Statement by statement, each over all four, it walks through
megabytes between writing a value and reading it again; memory by memory the values in between stay in the cache, and
need a quarter of the room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nsam.backends.torch.native.statements import Loop, Product, Running, Statement, Total, changed
from nsam.backends.torch.native.values import Buffer, Sizes, View


@dataclass
class Part:
    """Statements in order, run so many times: in round m, a view begins m times its step further on."""

    statements: list[Statement]
    rounds: int = 1


def parts(statements: Sequence[Statement]) -> list[Part]:
    """The same work in another order, what can be run in rounds together."""
    rounds = _rounds(statements)
    if rounds is None:
        return [Part(list(statements))]
    moved = [_moved(s, rounds) for s in statements]
    found: dict[int, Part] = {}
    for level, i in sorted((level, i) for i, level in enumerate(_levels(statements, moved))):
        part = found.setdefault(level, Part([], rounds if level % 2 else 1))
        part.statements.append(moved[i] if level % 2 else statements[i])  # type: ignore[arg-type]
    result = list(found.values())
    _contract(result)
    return result


def _rounds(statements: Sequence[Statement]) -> int | None:
    """How many matrices most of the products' work goes through, one after the other."""
    work: Counter[int] = Counter()
    for s in statements:
        if isinstance(s, Product) and s.a.sizes[0] > 1:
            work[s.a.sizes[0]] += s.a.sizes[0] * s.a.sizes[1] * s.a.sizes[2] * s.b.sizes[2]
    return max(work, key=lambda n: (work[n], n), default=None)


# --- one round of a statement ---


def _moved(s: Statement, rounds: int) -> Statement | None:
    """One round of a statement; None where it does not go through `rounds` of anything, each apart from the others."""
    sizes = _sizes(s)
    for dim, size in enumerate(sizes):
        if size == rounds and dim not in _whole(s):
            found = _round(s, dim)
            if all(target.step > 0 for target in found.targets()):
                return found
    return None


def _sizes(s: Statement) -> Sizes:
    if isinstance(s, Loop):
        return s.sizes
    return s.value.sizes if isinstance(s, Total) else s.target.sizes


def _whole(s: Statement) -> tuple[int, ...]:
    """Dimensions that only make sense together."""
    if isinstance(s, Loop):
        return ()
    if isinstance(s, Total):
        return s.dims
    if isinstance(s, Running):
        return (s.dim,)
    rank = len(s.target.sizes)
    return (rank - 2, rank - 1)


def _round(s: Statement, dim: int) -> Statement:
    def one(sizes: Sizes) -> Sizes:
        return (*sizes[:dim], 1, *sizes[dim + 1 :])

    return changed(s, lambda x: replace(x, sizes=one(x.sizes), step=x.strides[dim]), one)


# --- which statements may run in the same rounds ---


def _apart(views: Sequence[View]) -> bool:
    """Whether no round touches what another one of any of the views does."""
    step = views[0].step
    if step <= 0 or any(x.step != step or min(x.strides, default=0) < 0 for x in views):
        return False
    begin = min(x.offset for x in views)
    end = max(x.offset + sum((n - 1) * d for n, d in zip(x.sizes, x.strides, strict=True)) for x in views)
    return end - begin < step


def _levels(statements: Sequence[Statement], moved: Sequence[Statement | None]) -> list[int]:
    """A level for each statement, odd for those that run in rounds; levels are run one after the other.

    As few as possible, and each statement as late as those that need it allow: what waits takes room.
    """
    levels: list[int] = []
    after: list[list[tuple[int, int]]] = [[] for _ in statements]  # (a later statement, levels between them at least)
    touched: dict[Buffer, list[tuple[int, bool]]] = {}  # (statement, whether it writes)
    for i, s in enumerate(statements):
        level = int(moved[i] is not None)
        writes = set(s.writes())
        for buffer in {*s.reads(), *writes}:
            for j, wrote in touched.setdefault(buffer, []):
                if not wrote and buffer not in writes:
                    continue
                gap = _gap(moved[j], moved[i], buffer)
                after[j].append((i, gap))
                level = max(level, levels[j] + gap)
            touched[buffer].append((i, buffer in writes))
        levels.append(level)
    for i in reversed(range(len(statements))):
        if after[i]:
            levels[i] = min(levels[j] - gap for j, gap in after[i])
            levels[i] -= (levels[i] - (moved[i] is not None)) % 2
    return levels


def _gap(earlier: Statement | None, later: Statement | None, buffer: Buffer) -> int:
    """Levels that must lie between two statements that touch a buffer."""
    if earlier is None or later is None:
        return int((earlier is None) != (later is None))
    return 0 if _apart([x for s in (earlier, later) for x in s.views() if x.buffer is buffer]) else 2


# --- room for one round ---


def _contract(parts: list[Part]) -> None:
    """Give own memory that only one part uses, each round its own places of it, the room of one round."""
    users: dict[Buffer, set[int]] = {}
    for i, part in enumerate(parts):
        for s in part.statements:
            for view in s.views():
                users.setdefault(view.buffer, set()).add(i)
    for i, part in enumerate(parts):
        if part.rounds == 1:
            continue
        views: dict[Buffer, list[View]] = {}
        for s in part.statements:
            for view in s.views():
                views.setdefault(view.buffer, []).append(view)
        small: dict[Buffer, tuple[Buffer, int]] = {}
        for buffer, seen in views.items():
            if buffer.kind == "own" and users[buffer] == {i} and _apart(seen):
                begin = min(x.offset for x in seen)
                small[buffer] = (Buffer(buffer.name, seen[0].step, "own", buffer.boolean, buffer.half), begin)

        def placed(x: View, small: dict[Buffer, tuple[Buffer, int]] = small) -> View:
            if x.buffer not in small:
                return x
            buffer, begin = small[x.buffer]
            return replace(x, buffer=buffer, offset=x.offset - begin, step=0)

        part.statements = [changed(s, placed, lambda sizes: sizes) for s in part.statements]
