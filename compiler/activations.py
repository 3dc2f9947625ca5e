"""What a step of training keeps for its backward pass, predicted from the plan.

The generated functions are compiled one by one: those over all tokens, and the block of a loop. Of each, the backward
pass needs some values (operands of products, arguments of nonlinear functions); results of products, reductions and
scans are kept if they are needed, elementwise functions are computed again if that keeps fewer bytes. Which values are
kept is a minimum cut between what has to be kept and what is needed, as in the compiler of the generated code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import networkx

from nsam.compiler.activation_values import Value, Values
from nsam.compiler.schedule import UnitPlan

NEARER = 1.1
"""How much more a value counts for each step that it is farther from what the backward pass needs."""


def activations(planned: UnitPlan, tokens: int) -> Mapping[str, float]:
    """Bytes that one sequence of `tokens` tokens keeps, by memory; "" for values that belong to none."""
    values = Values(planned, tokens)
    kept: dict[str, Value] = {}
    for function in values.functions():
        again = values.function == "block" and "recompute" in planned.passes
        kept |= {value.key: value for value in cut(function, values, again)}
    found: dict[str, float] = defaultdict(float)
    for value in kept.values():
        found[value.memory] += value.size
    return found


def cut(function: Iterable[Value], values: Values, again: bool = False) -> list[Value]:
    """The values that a function keeps: the cheapest set from which everything needed can be computed.

    With `again` operands of products too are computed again.
    """
    inside = {value.key: value for value in function}
    graph = networkx.DiGraph()
    graph.add_nodes_from(("source", "sink"))
    distance = distances(inside)
    wanted = {key for value in inside.values() for key in value.needs}
    for key in {*inside, *(a for v in inside.values() for a in v.args), *wanted}:
        value = values.table[key]
        weight = value.size * (2 if value.again and key in inside else 1)
        graph.add_edge((key, "in"), (key, "out"), capacity=weight * NEARER ** distance.get(key, 0))
        if key not in inside or not value.again or (key in values.operands and not again):
            graph.add_edge("source", (key, "in"))
        else:
            for argument in value.args:
                graph.add_edge((argument, "out"), (key, "in"))
        if key in wanted:
            graph.add_edge((key, "out"), "sink")
    _, (near, far) = networkx.minimum_cut(graph, "source", "sink")
    return [values.table[key] for key in values.table if (key, "in") in near and (key, "out") in far]


def distances(inside: Mapping[str, Value]) -> dict[str, int]:
    """Steps from each value to the nearest one that the backward pass needs."""
    found = {key: 0 for value in inside.values() for key in value.needs}
    for value in reversed(list(inside.values())):
        if value.key in found and value.again:
            for argument in value.args:
                found[argument] = min(found.get(argument, 100), found[value.key] + 1)
    return found
