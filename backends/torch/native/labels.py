"""Labels for the nodes of a graph: which of them work on each instance by itself, and along which dimensions.

What a node needs of its operands is asked backwards where it is not known: a matrix that came from outside without a
label is cut into instances if its use says how.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from nsam.backends.torch.native.axes import Label, vote
from nsam.backends.torch.native.operations import CONSTANTS, OF_TRUTHS, POINTWISE, SAME, is_view

aten, prims = torch.ops.aten, torch.ops.prims
ROUNDS = 64
"""How often the labels of a graph's inputs may be refined."""
KINDS = ({torch.float32, torch.bfloat16, torch.bool}, {torch.float64, torch.bool})
"""What one kernel reads and makes: numbers of other kinds are turned before it or after."""


class Unlabelled(Exception):
    """The operation mixes instances, or is none of those known here."""


class Labels:
    """The label of every node, for those that work on instances; `inside` tells them from the rest.

    Raises nothing: a node that cannot be labelled is outside, and what it gives is an input of the work inside.
    """

    def __init__(self, graph: Graph) -> None:
        self.axes = vote([shape(node) for node in graph.nodes if node.op == "placeholder" and is_tensor(node)])
        products = [node.meta["val"].dtype for node in graph.nodes if node.target is aten.bmm.default]
        self.kinds = max(KINDS, key=lambda kinds: sum(product in kinds for product in products))
        self.seeds: dict[Node, Label] = {}
        self.label: dict[Node, Label] = {}
        self.inside: set[Node] = set()
        if self.axes.count < 2:
            return
        for node in graph.nodes:
            if node.op == "placeholder" and is_tensor(node):
                guess = self.axes.guess(shape(node))
                if guess is not None:
                    self.seeds[node] = guess
        for _ in range(ROUNDS):
            before = dict(self.seeds)
            self._forward(graph)
            if before == self.seeds:
                break

    def inner(self, node: Node) -> tuple[int, ...]:
        """One instance's shape of a node's value."""
        return self.axes.inner(shape(node), self.of(node))

    def of(self, node: Node) -> Label:
        """The label of a node; without axes for what all instances share."""
        return self.label.get(node) or tuple(() for _ in shape(node))

    def _forward(self, graph: Graph) -> None:
        self.label, self.inside = {}, set()
        for node in graph.nodes:
            if node.op == "placeholder":
                if node in self.seeds:
                    self.label[node] = self.seeds[node]
            elif node.op == "call_function" and node.target not in CONSTANTS:
                try:
                    found = self._label(node)
                except Unlabelled:
                    found = None
                if found is not None and any(found):
                    self.label[node] = found
                    self.inside.add(node)
                elif node in self.seeds:
                    self.label[node] = self.seeds[node]

    def _label(self, node: Node) -> Label | None:
        if node.target is operator.getitem:
            source = node.args[0]
            return self.label.get(source) if isinstance(source, Node) and source in self.inside else None
        rule = RULES.get(node.target)
        if rule is None:
            raise Unlabelled
        value = node.meta.get("val")
        values = value if isinstance(value, list | tuple) else [value]
        read = [a.meta.get("val") for a in operands_of(node) if a.target not in CONSTANTS]
        if not all(isinstance(v, torch.Tensor) and v.dtype in self.kinds and static(v) for v in [*values, *read]):
            raise Unlabelled
        truths = any(v is not None and v.dtype == torch.bool for v in read)
        if truths and node.target in POINTWISE and node.target not in OF_TRUTHS:
            raise Unlabelled
        return rule(self, node)

    def unify(self, node: Node, operands: list[Node], rank: int) -> Label:
        """The label of an elementwise operation; asks for the labels of operands that have none."""
        result: list[tuple[int, ...]] = [()] * rank
        for operand in operands:
            if operand.target in CONSTANTS:
                continue
            sizes, label = shape(operand), self.of(operand)
            for i in range(1, len(sizes) + 1):
                if label[-i] and sizes[-i] > 1:
                    if result[-i] and result[-i] != label[-i]:
                        raise Unlabelled
                    result[-i] = label[-i]
        for operand in operands:
            if operand.target not in CONSTANTS:
                sizes = shape(operand)
                wanted = tuple(result[-i] if sizes[-i] > 1 else () for i in range(len(sizes), 0, -1))
                self.ask(operand, wanted)
        return tuple(result)

    def ask(self, node: Node, wanted: Label) -> None:
        """See that a node has a label; raises Unlabelled if it has another one for now."""
        if self.of(node) == wanted:
            return
        for axes, size in zip(wanted, shape(node), strict=True):
            if size % self.axes.product(axes):
                raise Unlabelled
        if node not in self.inside:
            if not any(self.of(node)) and node.op != "get_attr" and is_tensor(node):
                self._seed(node, wanted)
            raise Unlabelled
        self._back(node, wanted)
        raise Unlabelled

    def _seed(self, node: Node, wanted: Label) -> None:
        """Begin the next round with the label of a node from outside, or with those of its operands if it follows.

        So what is done to a tensor between where it comes from and where it is needed is work inside.
        """
        before = len(self.seeds)
        if node.op == "call_function" and node.target is not aten.bmm.default and node.target in RULES:
            self._back(node, wanted)
        if len(self.seeds) == before:
            self.seeds[node] = wanted

    def _back(self, node: Node, wanted: Label) -> None:
        """Ask a node's operands for the labels with which it would have the one that is wanted."""
        target, source = node.target, node.args[0] if node.args else None
        if target in POINTWISE:
            for operand in operands_of(node):
                if operand.target not in CONSTANTS:
                    sizes = shape(operand)
                    self._try(operand, tuple(wanted[-i] if sizes[-i] > 1 else () for i in range(len(sizes), 0, -1)))
        elif not isinstance(source, Node):
            return
        elif target in SAME:
            self._try(source, wanted)
        elif target is aten.permute.default:
            order: Any = node.args[1]
            label: list[tuple[int, ...]] = [()] * len(order)
            for to, where in enumerate(order):
                label[where] = wanted[to]
            self._try(source, tuple(label))
        elif target in (aten.view.default, aten.reshape.default):
            back = self.axes.reshape(shape(node), wanted, shape(source))
            if back is not None:
                self._try(source, back)
        elif target is aten.unsqueeze.default:
            dim = axis(node, 1) % len(shape(node))
            self._try(source, wanted[:dim] + wanted[dim + 1 :])
        elif target is aten.expand.default:
            sizes = shape(source)
            lead = len(wanted) - len(sizes)
            self._try(source, tuple(a if s > 1 else () for a, s in zip(wanted[lead:], sizes, strict=True)))
        elif target is aten.cat.default:
            for operand in operands_of(node):
                self._try(operand, wanted)
        elif target in (aten.slice_scatter.default, aten.select_scatter.default):
            base, part = operands_of(node)
            dim = axis(node, 2) % len(wanted)
            narrow = target is aten.select_scatter.default
            self._try(part, wanted[:dim] + wanted[dim + 1 :] if narrow else wanted)
            if base.target not in CONSTANTS:
                self._try(base, wanted)
        elif target in (aten.slice.Tensor, aten.cumsum.default, prims.rev.default) or (
            target is aten.sum.dim_IntList and len(shape(source)) == len(wanted)
        ):
            self._try(source, wanted)

    def _try(self, node: Node, wanted: Label) -> None:
        try:
            self.ask(node, wanted)
        except Unlabelled:
            return


def is_tensor(node: Node) -> bool:
    """Whether a node's value is one tensor of a known shape."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and static(value)


def static(value: torch.Tensor) -> bool:
    """Whether all sizes are numbers, and the tensor is a plain one on the CPU."""
    return all(isinstance(size, int) for size in value.shape) and value.device.type == "cpu"


def shape(node: Node) -> tuple[int, ...]:
    """The sizes of a node's value."""
    return tuple(node.meta["val"].shape)


def axis(node: Node, index: int, default: int = 0) -> int:
    """An argument that is a number."""
    value = node.args[index] if len(node.args) > index else default
    assert isinstance(value, int)
    return value


def operands_of(node: Node) -> list[Node]:
    """The tensors among a node's arguments, each as often as it is named."""
    found = []
    for arg in node.args:
        found += [a for a in (arg if isinstance(arg, list | tuple) else [arg]) if isinstance(a, Node)]
    return found


Rule = Callable[[Labels, Node], Label | None]


def _pointwise(labels: Labels, node: Node) -> Label | None:
    return labels.unify(node, operands_of(node), len(shape(node)))


def _same(labels: Labels, node: Node) -> Label | None:
    return labels.of(operands_of(node)[0])


def _permute(labels: Labels, node: Node) -> Label | None:
    label = labels.of(operands_of(node)[0])
    order: Any = node.args[1]
    return tuple(label[i] for i in order)


def _view(labels: Labels, node: Node) -> Label | None:
    source = operands_of(node)[0]
    return labels.axes.reshape(shape(source), labels.of(source), shape(node))


def _unsqueeze(labels: Labels, node: Node) -> Label | None:
    label = labels.of(operands_of(node)[0])
    dim = axis(node, 1) % len(shape(node))
    return (*label[:dim], (), *label[dim:])


def _squeeze(labels: Labels, node: Node) -> Label | None:
    source = operands_of(node)[0]
    dim = axis(node, 1) % len(shape(source))
    label = labels.of(source)
    return label if shape(source)[dim] != 1 else (*label[:dim], *label[dim + 1 :])


def _expand(labels: Labels, node: Node) -> Label | None:
    label = labels.of(operands_of(node)[0])
    return ((),) * (len(shape(node)) - len(label)) + label


def _along(default: int = 0) -> Rule:
    """Works along one dimension, which must not hold an axis."""

    def rule(labels: Labels, node: Node) -> Label | None:
        source = operands_of(node)[0]
        label = labels.of(source)
        if label[axis(node, 1, default) % len(label)] and shape(source) != shape(node):
            raise Unlabelled
        return label

    return rule


def _scan(labels: Labels, node: Node) -> Label | None:
    label = labels.of(operands_of(node)[0])
    dims: Any = node.args[1]
    if any(label[dim] for dim in ([dims] if isinstance(dims, int) else dims)):
        raise Unlabelled
    return label


def _select(labels: Labels, node: Node) -> Label | None:
    label = labels.of(operands_of(node)[0])
    dim = axis(node, 1) % len(label)
    if label[dim]:
        raise Unlabelled
    return (*label[:dim], *label[dim + 1 :])


def _split(labels: Labels, node: Node) -> Label | None:
    label = labels.of(operands_of(node)[0])
    if label[axis(node, 2) % len(label)]:
        raise Unlabelled
    return label


def _sum(labels: Labels, node: Node) -> Label | None:
    label = labels.of(operands_of(node)[0])
    dims: Any = node.args[1]
    chosen = {dim % len(label) for dim in dims}
    if not chosen or any(label[dim] for dim in chosen):
        raise Unlabelled
    keep = len(node.args) > 2 and node.args[2]
    return label if keep else tuple(axes for i, axes in enumerate(label) if i not in chosen)


def _cat(labels: Labels, node: Node) -> Label | None:
    parts = operands_of(node)
    dim = axis(node, 1) % len(shape(node))
    label = labels.unify(node, parts, len(shape(node)))
    if label[dim]:
        raise Unlabelled
    return label


def _scatter(labels: Labels, node: Node) -> Label | None:
    base, source = operands_of(node)
    rank = len(shape(node))
    dim = axis(node, 2) % rank
    label = labels.of(source)
    if node.target is aten.select_scatter.default:
        label = (*label[:dim], (), *label[dim:])
    if label[dim] or (base.target not in CONSTANTS and labels.of(base) != label):
        raise Unlabelled
    return label


def _bmm(labels: Labels, node: Node) -> Label | None:
    a, b = operands_of(node)
    for one, other in ((a, b), (b, a)):
        if labels.of(one)[0] and not labels.of(other)[0]:
            labels.ask(other, (labels.of(one)[0], *labels.of(other)[1:]))
    (batch, rows, inner), (batch_b, inner_b, columns) = labels.of(a), labels.of(b)
    if batch != batch_b or rows or inner or inner_b or columns:
        raise Unlabelled
    return (batch, (), ())


RULES: dict[Any, Rule] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(SAME, _same),
    aten.permute.default: _permute,
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.expand.default: _expand,
    aten.slice.Tensor: _along(),
    aten.cumsum.default: _scan,
    prims.rev.default: _scan,
    aten.select.int: _select,
    aten.split_with_sizes.default: _split,
    aten.sum.dim_IntList: _sum,
    aten.cat.default: _cat,
    aten.slice_scatter.default: _scatter,
    aten.select_scatter.default: _scatter,
    aten.bmm.default: _bmm,
}
assert all(target in RULES for target in RULES if is_view(target))
