"""Where generated code tells of the inputs of layers, for rules that use `key` or `err` on the step clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeAlias

from nsam.compiler.expressions import Layout, Node
from nsam.compiler.schedule import UnitPlan

Slots: TypeAlias = Mapping[int, Node]
"""Reads of weights, by the number of their node, and the value that is told of their tokens (see `runtime/rows.py`)."""

Sites: TypeAlias = Mapping[int, str]
"""Reads of weights, by the number of their node, and the state tensor that sums up their inputs."""
NOWHERE: Sites = MappingProxyType({})
NO_SLOTS: Slots = MappingProxyType({})


def sites(plan: UnitPlan, recorded: frozenset[str]) -> Sites:
    """The reads of the weights `recorded` through which a gradient may flow: `k.weight.seen0`, `k.weight.seen1`.

    Each read has a tensor of its own, because two reads of a weight may stand in different loops.
    """
    if not recorded:
        return NOWHERE
    inside = [n for lv in plan.levels for n in (*lv.before, *lv.after)]
    inside += [n for stage in plan.stages for n in stage.nodes]
    live = {n.id for n in with_gradient(plan)}
    found: dict[int, str] = {}
    count: Counter[str] = Counter()
    for node in sorted({n.id: n for n in inside}.values(), key=lambda n: n.id):
        if node.op == "linear" and node.args[1].op == "weight" and node.id in live:
            path = f"{node.args[1].attr('memory')}.{node.args[1].attr('tensor')}"
            if path in recorded:
                found[node.id] = f"{path}.seen{count[path]}"
                count[path] += 1
    return found


def slots(plan: UnitPlan, kept: frozenset[str]) -> Slots:
    """A slot for each read of the weights `kept`, a value with a row of in + 1 + out numbers for each token."""
    found: dict[int, Node] = {}
    make, reads = plan.lowered.builder.make, sites(plan, kept)
    nodes = {n.id: n for n in with_gradient(plan) if n.id in reads}
    for number in sorted(reads):
        weight = nodes[number].args[1]
        layout: Layout = "heads" if len(weight.shape) == 3 else "flat"
        names = {"memory": weight.attr("memory"), "tensor": weight.attr("tensor"), "site": len(found)}
        found[number] = make("slot", (), (weight.shape[-1] + 1 + weight.shape[-2],), layout, **names)
    return found


def slots_of(nodes: Iterable[Node], known: Slots) -> dict[int, Node]:
    """The slots of the reads in `nodes`, by their own numbers."""
    return {known[n.id].id: known[n.id] for n in nodes if n.id in known}


def path_of(slot: Node) -> str:
    """The weight whose read a slot is for: `k.weight`."""
    return f"{slot.attr('memory')}.{slot.attr('tensor')}"


def with_gradient(plan: UnitPlan) -> Iterator[Node]:
    """The nodes of a unit from which a value reaches its outputs, memories and calls other than through a cut."""
    lowered = plan.lowered
    stack = [n for _, n in lowered.outputs] + [fold.node for fast in lowered.fast for fold in fast.folds]
    stack += [a for event in lowered.events for a in event.args]
    seen: set[int] = set()
    while stack:
        node = stack.pop()
        if node.id not in seen:
            seen.add(node.id)
            yield node
            if node.op != "detach":
                stack += node.args


def sums(nodes: Iterable[Node], sites: Sites) -> dict[int, tuple[Node, tuple[str, ...]]]:
    """By the number of the first read of an input: the input, and the sums of all weights that read it like that."""
    found: dict[tuple[int, int], tuple[int, Node, list[str]]] = {}
    for node in nodes:
        if node.id in sites:
            x, weight = node.args
            while x.op == "given":
                x = x.args[0]
            found.setdefault((x.id, len(weight.shape)), (node.id, x, []))[2].append(sites[node.id])
    return {first: (x, tuple(names)) for first, x, names in found.values()}


def reads_of(sites: Sites, recorded: frozenset[str]) -> dict[str, int]:
    """How many reads of each weight are summed up."""
    count = Counter(name.rpartition(".")[0] for name in sites.values())
    return {path: count[path] for path in sorted(recorded)}
