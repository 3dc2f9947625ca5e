"""Points in the nest of loops, and the plain place of work that does not have to be in a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nsam.compiler.expressions import Node
from nsam.dsl.records import dataclass

SEQUENCE = -1
STAYS = frozenset({"number", "weight", "input", "state", "child", "output", "attention", "carry"})
"""Operations that are never moved into a loop: values from outside, calls, and what sees all tokens at once."""


@dataclass(frozen=True, slots=True)
class Place:
    """A point in the nest of loops: before or after the loop inside level `level` (-1 is the whole sequence)."""

    level: int
    after: bool = False

    def rank(self, depth: int) -> int:
        """Position in program order, for a nest of `depth` levels."""
        return 2 * depth + 1 - self.level if self.after else self.level


def first_uses(
    order: Sequence[Node], places: Mapping[int, Place], outputs: Sequence[Node], depth: int
) -> dict[int, Place]:
    """Where work stands that is not hoisted: in the loop of its first use. Returns the nodes that move, by id.

    `order` has arguments before users. Work whose first use is after a loop, or outside of all, stays where it is.
    So does what reads a fold: a fold is of all tokens of a block, and no value that a piece of them could be taken of.
    """
    varying = _varying(order)
    found: dict[int, Place] = {}
    users: dict[int, list[Place]] = {node.id: [Place(SEQUENCE, True)] for node in outputs}
    for node in reversed(order):
        here = places[node.id]
        uses = users.get(node.id, [])
        held = node.op in STAYS or node.layout in ("fold", "state") or any(a.layout == "fold" for a in node.args)
        if uses and not here.after and not held:
            first = min(uses, key=lambda p: p.rank(depth))
            inside = all(use.level >= first.level for use in uses)
            if first.level > here.level and not first.after and (inside or node.id in varying):
                found[node.id] = here = first
        for argument in node.args:
            users.setdefault(argument.id, []).append(here)
    return found


def _varying(order: Sequence[Node]) -> set[int]:
    """Nodes that have a value of their own for each token, and so may leave a loop piece by piece."""
    found: set[int] = set()
    for node in order:
        own = node.op in ("output", "expand_tokens") or (node.op == "input" and node.layout == "flat")
        if own or any(argument.id in found for argument in node.args):
            found.add(node.id)
    return found
