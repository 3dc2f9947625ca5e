"""The work of each loop as it is computed: memories stacked, then reads stacked by their rows."""

from __future__ import annotations

from nsam.compiler.expressions import Node
from nsam.compiler.rows import Part, stacked
from nsam.compiler.schedule import UnitPlan
from nsam.compiler.stacks import Stacks, stacks
from nsam.dsl.records import dataclass


@dataclass(frozen=True, slots=True)
class Arranged:
    """A plan's stacks of memories, and the nodes of each level, by number, before and after its inner loop.

    `parts` are the nodes, by id, that are a part of another one.
    """

    stacks: Stacks
    nodes: dict[int, tuple[tuple[Node, ...], tuple[Node, ...]]]
    parts: dict[int, Part]


def arrange(plan: UnitPlan) -> Arranged:
    """Arrange the loops of a plan by its passes `stack` and `rows`."""
    found = stacks(plan)
    parts = dict(found.parts)
    nodes = {}
    for index, lists in found.nodes.items():
        before, after = (stacked(plan, each, found.parts) for each in lists)
        parts |= before.parts | after.parts
        nodes[index] = (before.nodes, after.nodes)
    return Arranged(found, nodes, parts)
