"""Levels by definition 2: by frequency, then by the longest chain of same-time needs; and the cycles that forbid it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from nsam.compiler.problems import Need
from nsam.compiler.rates import Rate


def assign_levels(rates: Mapping[str, Rate], needs: Iterable[Need]) -> dict[str, int]:
    """Return each path's level, 1 the fastest, numbers contiguous.

    A is faster than B when its frequency is higher, or when the frequencies are equal and B's state at time t needs
    A's state at time t, directly or through others. Among equal frequencies the level is therefore the length of the
    longest chain of such needs, counting the members of that frequency. `needs` must have no cycle.
    """
    before: dict[str, list[str]] = {path: [] for path in rates}
    for need in needs:
        if need.source != need.target:
            before[need.target].append(need.source)
    order = _topological(before)
    levels: dict[str, int] = {}
    done = 0
    for rate in sorted(set(rates.values()), reverse=True):
        depth: dict[str, int] = {}
        for path in order:
            above = max((depth[source] for source in before[path]), default=0)
            depth[path] = above + (rates[path] == rate)
        chosen = {path: depth[path] for path in order if rates[path] == rate}
        present = {d: i for i, d in enumerate(sorted(set(chosen.values())), 1)}
        levels |= {path: done + present[d] for path, d in chosen.items()}
        done += len(present)
    return {path: levels[path] for path in rates}


def _knotted(after: Mapping[str, Mapping[str, Need]]) -> set[str]:
    """Return the paths that lie on a cycle, or behind one; empty when there is none."""
    before: dict[str, list[str]] = {path: [] for path in after}
    for source, targets in after.items():
        for target in targets:
            before.setdefault(target, []).append(source)
    return set(before) - set(_peeled(before))


def _topological(before: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the paths so that everything stands after what it needs."""
    order = _peeled(before)
    if len(order) != len(before):
        raise ValueError("internal error: a cycle of same-time needs passed the checks; please report it")
    return order


def _peeled(before: Mapping[str, Sequence[str]]) -> list[str]:
    """Return in order the paths that wait for nothing but paths before them; those behind a cycle are left out."""
    after: dict[str, list[str]] = {path: [] for path in before}
    missing = {path: len(sources) for path, sources in before.items()}
    for path, sources in before.items():
        for source in sources:
            after[source].append(path)
    ready = deque(path for path, count in missing.items() if count == 0)
    order: list[str] = []
    while ready:
        path = ready.popleft()
        order.append(path)
        for target in after[path]:
            missing[target] -= 1
            if missing[target] == 0:
                ready.append(target)
    return order


def find_cycles(needs: Iterable[Need]) -> list[tuple[Need, ...]]:
    """Return one shortest cycle of same-time needs for each group of memories that are tangled in one.

    A cycle is a tuple of needs in which each one's target is the next one's source, and the last leads to the first.
    """
    after: dict[str, dict[str, Need]] = {}
    for need in needs:
        after.setdefault(need.source, {}).setdefault(need.target, need)
    knotted = _knotted(after)
    after = {a: {b: need for b, need in to.items() if b in knotted} for a, to in after.items() if a in knotted}
    found: list[tuple[Need, ...]] = []
    tangled: set[str] = set()
    for start in after:
        if start in tangled:
            continue
        cycle = _shortest_way_back(start, after)
        if cycle and tangled.isdisjoint(need.source for need in cycle):
            tangled.update(need.source for need in cycle)
            found.append(cycle)
    return found


def _shortest_way_back(start: str, after: Mapping[str, Mapping[str, Need]]) -> tuple[Need, ...]:
    came: dict[str, Need] = {}
    queue = deque([start])
    while queue:
        path = queue.popleft()
        for target, need in after.get(path, {}).items():
            if target == start:
                way = [need]
                while way[-1].source != start:
                    way.append(came[way[-1].source])
                return tuple(reversed(way))
            if target not in came:
                came[target] = need
                queue.append(target)
    return ()
