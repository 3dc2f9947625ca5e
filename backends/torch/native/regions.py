"""Regions of a graph that become kernels, and putting the kernels into the graph.

A node inside that needs what comes from outside, and that in turn from inside, belongs to a later region. Within that
freedom nodes go to the latest region that needs them, so that little has to be stored between regions.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from nsam.backends.torch.native.kernel import CTYPES, build, flops
from nsam.backends.torch.native.labels import Labels
from nsam.backends.torch.native.logistic import share_sigmoids
from nsam.backends.torch.native.operations import CONSTANTS, GETITEM, POINTWISE, VIEWS
from nsam.backends.torch.native.registry import register
from nsam.backends.torch.native.statements import Product
from nsam.backends.torch.runtime.instructions import multiplies_in_bfloat16
from nsam.compiler.instances import FEWEST_PRODUCTS, library_is_faster

aten = torch.ops.aten
MOST_AGAIN = 16
"""Elementwise operations that are done again in a later region to save storing their result."""
STORED: frozenset[Any] = frozenset({aten.bmm.default, aten.sum.dim_IntList, aten.cumsum.default})
"""What is never done again."""


class Replaced(NamedTuple):
    """A region that became a kernel."""

    nodes: int
    products: int
    flops: int
    """Of the products of all instances."""


def replace(graph: Graph) -> list[Replaced]:
    """Replace what can be replaced by kernels."""
    if any(node.op == "call_function" and _mutates(node) for node in graph.nodes):
        return []
    share_sigmoids(graph)
    labels = Labels(graph)
    (dtype,) = labels.kinds & set(CTYPES)  # bfloat16 is computed with as float32
    done = []
    for nodes in [[*_again(graph, labels, nodes), *nodes] for nodes in regions(graph, labels)]:
        replaced = _replace(graph, labels, nodes, dtype)
        if replaced is not None:
            done.append(replaced)
    if done:
        from torch._inductor.pattern_matcher import stable_topological_sort

        stable_topological_sort(graph)
        graph.eliminate_dead_code()
        graph.lint()
    return done


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def regions(graph: Graph, labels: Labels) -> list[list[Node]]:
    """The nodes inside, by region, each in the order of the graph."""
    level: dict[Node, int] = {}
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node in labels.inside:
            level[node] = max((level[s] + (s not in labels.inside and level[s] >= 0) for s in sources), default=0)
            level[node] = max(level[node], 0)
        else:
            level[node] = max((level[s] for s in sources), default=-1)
    last = max(level.values(), default=-1)
    for node in reversed(graph.nodes):
        if node in labels.inside:
            users = [user for user in node.users if user.op != "output"]
            level[node] = min((level[user] for user in users), default=last)
    for node in graph.nodes:
        if node in labels.inside and node.target is GETITEM:
            level[node] = level[node.args[0]]  # the parts of a split stay with it
    found: list[list[Node]] = [[] for _ in range(last + 1)]
    for node in graph.nodes:
        if node in labels.inside:
            found[level[node]].append(node)
    return found


def _again(graph: Graph, labels: Labels, nodes: list[Node]) -> list[Node]:
    """Elementwise results of earlier regions that are computed again in this one, rather than stored there.

    They are those that depend on stored values by few operations, or by none: two ways to look at a tensor are one
    input. New nodes, in order, that stand for them.
    """
    if not nodes:
        return []
    inside, first, new = set(nodes), nodes[0], dict[Node, Node]()

    def steps(node: Node, left: int) -> int:
        """Operations that a node takes from what is stored anyway; more than `left` if too many."""
        if node not in labels.inside or node in inside or node.target in CONSTANTS:
            return 0
        if node.target not in POINTWISE and not _looks(node):
            return 0 if node.target in STORED else left + 1
        total = int(node.target in POINTWISE)
        for source in node.all_input_nodes:
            if total <= left:
                total += steps(source, left - total)
        return total

    def copy(node: Node) -> Node:
        if node not in labels.inside or node in inside or node.target in CONSTANTS or node.target in STORED:
            return node
        if node not in new:
            args: Any = torch.fx.node.map_arg(node.args, copy)
            with graph.inserting_before(first):
                new[node] = graph.call_function(node.target, args, node.kwargs)  # type: ignore[arg-type]
            new[node].meta.update(node.meta)
            labels.label[new[node]] = labels.of(node)
            labels.inside.add(new[node])
        return new[node]

    for node in nodes:
        for source in list(node.all_input_nodes):
            if source in labels.inside and source not in inside and steps(source, MOST_AGAIN) <= MOST_AGAIN:
                node.replace_input_with(source, copy(source))
    return list(new.values())


def _looks(node: Node) -> bool:
    return node.target in VIEWS or node.target is GETITEM or node.target is aten.split_with_sizes.default


def _replace(graph: Graph, labels: Labels, nodes: list[Node], dtype: torch.dtype) -> Replaced | None:
    inside = set(nodes)
    if sum(node.target is aten.bmm.default for node in nodes) < FEWEST_PRODUCTS:
        return None
    leaving = [node for node in nodes if any(user not in inside for user in node.users)]
    outputs: list[Node] = []
    views: set[Node] = set()  # looked at from outside: only what they look at is stored
    for node in leaving:
        base = node
        while _looks(base) and base.args[0] in inside:
            views.add(base)
            base = base.args[0]  # type: ignore[assignment]
        if _looks(base):
            views.add(base)
        elif base not in outputs:
            outputs.append(base)
    inputs = _inputs(nodes, inside)
    if not outputs or not inputs:
        return None
    kernel, low = build(labels, nodes, inputs, outputs, dtype)
    products = [s for s in low.statements if isinstance(s, Product)]
    most, matrix = max(flops([s]) for s in products), max(s.b.sizes[1] * s.b.sizes[2] for s in products)
    halves = any(s.tiled for s in products) and multiplies_in_bfloat16()
    if library_is_faster(most, matrix, labels.axes.count, torch.get_num_threads(), halves=halves):
        return None
    _insert(graph, labels, nodes, inputs, outputs, views, register(kernel))
    return Replaced(len(nodes), len(products), flops(products) * labels.axes.count)


def _inputs(nodes: Sequence[Node], inside: set[Node]) -> list[Node]:
    found: dict[Node, None] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            if source not in inside and source.target not in CONSTANTS:
                found.setdefault(source)
    return list(found)


def _insert(
    graph: Graph,
    labels: Labels,
    nodes: Sequence[Node],
    inputs: list[Node],
    outputs: list[Node],
    views: set[Node],
    name: str,
) -> None:
    inside = set(nodes)
    with graph.inserting_after(nodes[-1]):
        call = graph.call_function(torch.ops.nsam.kernel.default, (name, inputs))
    call.meta["val"] = [node.meta["val"] for node in outputs]
    new: dict[Node, Node] = {}
    after: Node = call
    for i, node in enumerate(outputs):
        with graph.inserting_after(after):
            after = new[node] = graph.call_function(operator.getitem, (call, i))
        after.meta["val"] = node.meta["val"]
        labels.label[after] = labels.of(node)  # later regions read it

    def outside(node: Node) -> Node:
        """A node's value for those outside of the region."""
        nonlocal after
        if node not in inside:
            return node
        if node not in new:
            assert node in views
            args: Any = torch.fx.node.map_arg(node.args, outside)
            with graph.inserting_after(after):
                after = new[node] = graph.call_function(node.target, args, node.kwargs)  # type: ignore[arg-type]
            after.meta.update(node.meta)
            labels.label[after] = labels.of(node)
        return new[node]

    for node in [*outputs, *(node for node in nodes if node in views)]:
        users = [user for user in node.users if user not in inside and user not in new.values() and user is not call]
        if users:
            value = outside(node)
            for user in users:
                user.replace_input_with(node, value)
    for node in reversed(nodes):
        if not node.users:
            graph.erase_node(node)
