"""Memories of equal structure that share keys, gates and period move as one, with an axis for the memory.

Their states are one tensor [B, H, M, out, in], M memories. What they compute at the same input is one product with all
of their matrices below each other; what they erase along shared keys is one solve with stacked right-hand sides; from
the second layer on, where each has an input of its own, one batched product. Which nodes belong together is found by
growing tuples of equal operations from the states upwards, see `stack_nodes.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import field

from nsam.compiler.expressions import Node, postorder
from nsam.compiler.fast_memory import FastMemory
from nsam.compiler.passes import switched_off
from nsam.compiler.rows import Part
from nsam.compiler.schedule import Level, UnitPlan
from nsam.compiler.stack_nodes import Stacking
from nsam.dsl.records import dataclass

FOLDED = frozenset({"rank-one", "momentum"})
LONGEST_NAME = 40


@dataclass(frozen=True, slots=True)
class Stack:
    """Memories that move as one: their common `name`, the order along the axis, their tensors and stacked folds."""

    name: str
    memories: tuple[str, ...]
    folds: tuple[tuple[str, Node], ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors, each stacked with its likes."""
        return tuple(tensor for tensor, _ in self.folds)


@dataclass(slots=True)
class Stacks:
    """All stacks of a unit and what becomes of its nodes.

    `nodes` are those of a level as they are now computed, before and after the inner loop; `parts` are the nodes, by
    id, that are a memory's share of a stacked one; `forward` are the layer outputs that a stacked fold, by id, takes
    over from the forward pass.
    """

    found: list[Stack] = field(default_factory=list)
    nodes: dict[int, tuple[tuple[Node, ...], tuple[Node, ...]]] = field(default_factory=dict)
    parts: dict[int, Part] = field(default_factory=dict)
    forward: dict[int, Node] = field(default_factory=dict)

    def of(self, level: Level) -> list[Stack]:
        """The stacks whose memories move in `level`."""
        return [stack for stack in self.found if stack.memories[0] in level.memories]


def stacks(plan: UnitPlan) -> Stacks:
    """Stack what can be stacked in a plan; nothing where the pass `stack` is off."""
    found = Stacks()
    for level in plan.levels:
        found.nodes[level.index] = (level.before, level.after)
        if "stack" not in plan.passes:
            continue
        for members in alike(plan, level):
            name = common_name([m.memory.name for m in members], plan)
            made = Stacking(plan, found.nodes[level.index], members, name, found.parts).run()
            if made is None:
                continue
            found.found.append(Stack(name, tuple(m.memory.name for m in members), made.folds))
            found.nodes[level.index] = made.nodes
            found.parts |= made.parts
            found.forward |= made.forward
    return found


def why_none(plan: UnitPlan) -> str:
    """Why no memories of a plan are stacked."""
    if "stack" not in plan.passes:
        return switched_off("stack")
    if not any(alike(plan, level) for level in plan.levels):
        return "no two memories of equal structure and period are folded by matrix products"
    return "memories of equal structure and period have keys or gates of their own"


def alike(plan: UnitPlan, level: Level) -> list[list[FastMemory]]:
    """Groups of a level's memories that have equal structure, clock and kind of fold."""
    groups: dict[object, list[FastMemory]] = {}
    shown = set(_shown(plan))
    for fast in map(plan.fast, level.memories):
        if fast.memory.name not in shown and _moves_plainly(plan, fast):
            kinds = tuple((f.tensor, f.algorithm) for f in fast.folds)
            like = (fast.memory.structure, fast.heads, fast.period, fast.memory.reset.kind, kinds)
            groups.setdefault(like, []).append(fast)
    return [group for group in groups.values() if len(group) > 1]


def _shown(plan: UnitPlan) -> Iterator[str]:
    """Memories whose running state something reads."""
    roots = [*(n for _, n in plan.lowered.outputs), *(f.node for m in plan.lowered.fast for f in m.folds)]
    for node in postorder([*roots, *plan.lowered.events, *(m.loss for m in plan.lowered.fast)]):
        if node.op == "shown":
            yield str(node.args[0].attr("memory"))


def _moves_plainly(plan: UnitPlan, fast: FastMemory) -> bool:
    """Whether a memory moves at every boundary, by folds along keys, and is not set anew inside the loop."""
    if fast.exact or fast.slowest is not None or fast.window > 1 or fast.memory.reset.kind == "every":
        return False
    if any(f.algorithm not in FOLDED for f in fast.folds):
        return False
    copies = (m.memory for m in plan.lowered.fast if m.memory.initial.memory == fast.memory.name)
    return all(memory.reset.kind != "every" for memory in copies)


def common_name(names: Iterable[str], plan: UnitPlan) -> str:
    """`k+v+eta`, or `k+11` for many; no memory's name has a plus in it."""
    first, *rest = names
    name = "+".join([first, *rest])
    return name if len(name) <= LONGEST_NAME else f"{first}+{len(rest)}"
