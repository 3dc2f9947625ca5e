"""Order of statements: dependencies before their uses, the text's order otherwise."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

N = TypeVar("N", bound=Hashable)


def ordered(nodes: Sequence[N], needs: Callable[[N], Iterable[N]]) -> tuple[list[N], list[list[N]]]:
    """Return `nodes` with everything a node needs before it, and the cycles met on the way (each a path of nodes).

    An edge that closes a cycle is left out, so that every node is in the order exactly once. No recursion.
    """
    order: list[N] = []
    cycles: list[list[N]] = []
    done: set[N] = set()
    active: dict[N, int] = {}
    known = set(nodes)
    for root in nodes:
        if root in done:
            continue
        path = [root]
        active[root] = 0
        stack = [iter(list(needs(root)))]
        while stack:
            following = next(stack[-1], None)
            if following is None:
                stack.pop()
                finished = path.pop()
                del active[finished]
                done.add(finished)
                order.append(finished)
            elif following in active:
                cycles.append(path[active[following] :])
            elif following in known and following not in done:
                active[following] = len(path)
                path.append(following)
                stack.append(iter(list(needs(following))))
    return order, cycles
