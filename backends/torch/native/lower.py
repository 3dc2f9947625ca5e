"""From the nodes of a graph that work inside of instances to the statements of a kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.fx import Node

from nsam.backends.torch.native import values as v
from nsam.backends.torch.native.labels import Labels, axis, operands_of, shape
from nsam.backends.torch.native.operations import CONSTANTS, FUNCTIONS, GETITEM, POINTWISE, SAME, VIEWS
from nsam.backends.torch.native.statements import Order, Product, Running, Statement, Total, Turn
from nsam.backends.torch.native.values import Buffer, Expression, Lazy, Number, Padded, Sizes, View, contiguous

aten, prims = torch.ops.aten, torch.ops.prims
HEAVIEST = 24
"""Operations of one expression: beyond that a part is stored."""
Value = Lazy | Padded | list[Lazy]


class Lowering:
    """Statements for `nodes`, in order; `inputs` are what they use from outside, `outputs` what others use."""

    def __init__(self, labels: Labels, nodes: Sequence[Node], inputs: Sequence[Node], outputs: Sequence[Node]) -> None:
        self.labels, self.order = labels, Order()
        self.buffers: list[Buffer] = []
        self.inside = set(nodes)
        self.inputs = [self._foreign(node, f"in{i}", "input") for i, node in enumerate(inputs)]
        self.outputs = {node: self._foreign(node, f"out{i}", "output") for i, node in enumerate(outputs)}
        self.value: dict[Node, Value] = dict(zip(inputs, self.inputs, strict=True))
        self.turned: dict[View, View] = {}
        self.widened: dict[View, View] = {}
        for node in nodes:
            self._lower(node)
        for node, target in self.outputs.items():
            self._finish(node, target)
        self.statements: list[Statement] = self.order.finish()

    def _foreign(self, node: Node, name: str, kind: Any) -> View:
        """One instance's part of an input or output, where it lies in the whole tensor."""
        value = node.meta["val"]
        sizes = self.labels.inner(node)
        boolean, half = value.dtype == torch.bool, value.dtype == torch.bfloat16
        return View(Buffer(name, math.prod(sizes), kind, boolean, half), sizes, tuple(value.stride()))

    # What a node's users find

    def lazy(self, x: Any, sizes: Sizes | None = None) -> Lazy:
        """An operand as it is, or as what stands for all places of the given sizes."""
        if isinstance(x, Node):
            if x.target in CONSTANTS:
                number = x.args[1] if x.target is aten.full.default else x.args[0]
                found: Lazy = Number(float(number), sizes or self.labels.inner(x), x.meta["val"].dtype == torch.bool)  # type: ignore[arg-type]
            else:
                value = self.value[x]
                if isinstance(value, Padded):
                    value = self._place(x, value)
                assert not isinstance(value, list)
                found = value
        else:
            found = Number(float(x), sizes or ())
        return found if sizes is None else v.expand(found, sizes)

    def stored(self, x: Node) -> View:
        """An operand that lies in memory, as numbers of the kernel's precision."""
        value = self.lazy(x)
        if not isinstance(value, View):
            return self._place(x, value)
        if not value.buffer.half:
            return value
        if value not in self.widened:
            self.widened[value] = self.own(value.sizes)
            self.order.store(self.widened[value], value)
        return self.widened[value]

    def target(self, node: Node, sizes: Sizes | None = None) -> View:
        """Where a node's value goes: to the output that it is, or into the kernel's own memory."""
        output = self.outputs.get(node)
        if output is not None and sizes in (None, output.sizes) and not output.buffer.half:
            return output
        return self.own(sizes or self.labels.inner(node))

    def own(self, sizes: Sizes) -> View:
        """New memory."""
        buffer = Buffer(f"t{len(self.buffers)}", math.prod(sizes), "own")
        self.buffers.append(buffer)
        return View(buffer, sizes, contiguous(sizes))

    def rows(self, x: View) -> View:
        """The values with those of a row beside each other; turned once for all that use them."""
        if _rows(x):
            return x
        if x not in self.turned:
            self.turned[x] = self.own(x.sizes)
            self.order.add(Turn(self.turned[x], x))
        return self.turned[x]

    def _straight(self, x: Lazy) -> Lazy:
        """An expression that reads matrices by rows: turned ones are laid out anew, which costs less than to gather."""
        if isinstance(x, Expression):
            operands = tuple(self._straight(operand) for operand in x.operands)
            return x if operands == x.operands else Expression(x.text, operands, x.sizes, x.boolean, x.weight)
        many = isinstance(x, View) and len(x.sizes) > 1 and min(x.sizes[-2:]) > 4
        if many and not x.boolean and not x.buffer.half and x.strides[-2] == 1 and x.strides[-1] > 1:  # type: ignore[union-attr]
            return self.rows(x)  # type: ignore[arg-type]
        return x

    def _place(self, node: Node, value: Lazy | Padded) -> View:
        target = self.target(node, value.sizes)
        self._write(target, value)
        if target.boolean:  # read again from what it is made of, not from bytes
            return target
        self.value[node] = target
        return target

    def _write(self, target: View, value: Lazy | Padded) -> None:
        if not isinstance(value, Padded):
            self.order.store(target, self._straight(value) if _rows(target) else value)
            return
        for low, high, here in value.intervals():
            part = v.cut(target, value.dim, low, high)
            assert isinstance(part, View)
            total: Lazy = here[0] if here else Number(0.0, part.sizes)
            for x in here[1:]:
                total = Expression("{0} + {1}", (total, x), part.sizes, weight=weight(total) + weight(x) + 1)
            self.order.store(part, self._straight(total))

    def _finish(self, node: Node, target: View) -> None:
        value = self.value[node] if node in self.value else self.lazy(node)
        assert not isinstance(value, list)
        if value != target:
            self._write(target, value)

    # Nodes

    def _lower(self, node: Node) -> None:
        rule = RULES.get(node.target)
        value = self._pointwise(node) if rule is None else rule(self, node)
        self.value[node] = value
        users = len([user for user in node.users if user in self.inside]) + (node in self.outputs)
        if isinstance(value, Expression) and not value.boolean:
            cheap = weight(value) <= 2 and users <= 3
            if weight(value) > HEAVIEST or (users > 1 and not cheap):
                self._place(node, value)
        elif isinstance(value, Padded) and users > 1:
            self._place(node, value)

    def _pointwise(self, node: Node) -> Value:
        sizes = self.labels.inner(node)
        if node.target is aten.add.Tensor and not node.kwargs:
            padded = self._padded_sum(node, sizes)
            if padded is not None:
                return padded
        operands = tuple(self.lazy(x, sizes) for x in node.args if not isinstance(x, torch.dtype))
        text, boolean = POINTWISE[node.target], node.meta["val"].dtype == torch.bool
        if node.target is prims.convert_element_type.default:
            if boolean == operands[0].boolean:
                return operands[0]
            text = "{0} != {1}" if boolean else "Vec::blendv({2}, {1}, {0})"
            operands = (*operands, *(Number(n, sizes) for n in ((0.0,) if boolean else (1.0, 0.0))))
        elif "alpha" in node.kwargs:
            scale = Number(float(node.kwargs["alpha"]), sizes)  # type: ignore[arg-type]
            scaled = Expression("{0} * {1}", (operands[1], scale), sizes, weight=weight(operands[1]) + 1)
            operands = (operands[0], scaled)
        if node.target is aten.div.Tensor and (logit := _logistic(operands[1])) is not None:
            text, operands = "{0} * sigmoid_of({1})", (operands[0], logit)
        return Expression(text, operands, sizes, boolean, weight=sum(map(weight, operands)) + cost(text))

    def _padded_sum(self, node: Node, sizes: Sizes) -> Padded | None:
        found = [self.value.get(x) if isinstance(x, Node) else None for x in node.args]
        padded = [x for x in found if isinstance(x, Padded)]
        if not padded or any(x.sizes != sizes for x in padded) or len({x.dim for x in padded}) != 1:
            return None
        dim = padded[0].dim
        parts = [part for x in padded for part in x.parts]
        if len(padded) == 1:
            other = next(x for x, value in zip(node.args, found, strict=True) if not isinstance(value, Padded))
            if isinstance(other, Node) and other.target in CONSTANTS:
                return None
            parts.append((0, sizes[dim], self.lazy(other, sizes)))
        return Padded(sizes, dim, tuple(parts))

    def shared(self, node: Node, x: Node, change: Callable[[Lazy], Lazy | None]) -> Lazy:
        """A view of an operand: of its expression, or of its values where an expression cannot be seen that way."""
        value = self.lazy(x)
        found = None if isinstance(value, Expression) and len(x.users) > 1 else change(value)
        if found is None:
            found = change(self.stored(x))
        if found is None:  # no strides say it: lay the values out anew
            copy = self.own(self.labels.inner(x))
            self.order.store(copy, self.stored(x))
            found = change(copy)
        assert found is not None
        return found


def weight(x: Lazy) -> int:
    """Operations in an expression."""
    return x.weight if isinstance(x, Expression) else 0


def _logistic(x: Lazy) -> Lazy | None:
    """What z is, if x is 1 + exp(−z): torch takes silu apart into z / (1 + exp(−z))."""
    if isinstance(x, Expression) and x.text == POINTWISE[aten.add.Tensor] and isinstance(x.operands[0], Expression):
        one, inner = x.operands[1], x.operands[0]
        negative = inner.operands[0] if inner.text == POINTWISE[aten.exp.default] else None
        if isinstance(one, Number) and one.value == 1 and isinstance(negative, Expression):
            return negative.operands[0] if negative.text == POINTWISE[aten.neg.default] else None
    return None


def cost(text: str) -> int:
    """Operations that one is worth: a function is worth several."""
    return 4 if any(name in text for name in FUNCTIONS) else 1


def _view(low: Lowering, node: Node) -> Value:
    sizes = low.labels.inner(node)
    return low.shared(node, operands_of(node)[0], lambda x: v.reshape(x, sizes))


def _same(low: Lowering, node: Node) -> Value:
    return low.lazy(node.args[0])


def _permute(low: Lowering, node: Node) -> Value:
    order: Any = node.args[1]
    return v.permute(low.lazy(node.args[0]), [i % len(order) for i in order])


def _unsqueeze(low: Lowering, node: Node) -> Value:
    return v.insert(low.lazy(node.args[0]), axis(node, 1) % len(shape(node)))


def _squeeze(low: Lowering, node: Node) -> Value:
    source = operands_of(node)[0]
    dim = axis(node, 1) % len(shape(source))
    return v.drop(low.lazy(source), dim) if shape(source)[dim] == 1 else low.lazy(source)


def _expand(low: Lowering, node: Node) -> Value:
    return v.expand(low.lazy(node.args[0]), low.labels.inner(node))


def _slice(low: Lowering, node: Node) -> Value:
    x = operands_of(node)[0]
    dim = axis(node, 1) % len(shape(x))
    if shape(x) == shape(node):
        return low.lazy(x)
    start, stop, step = slice(*bounds(node, 2), axis(node, 4, 1)).indices(shape(x)[dim])
    return v.cut(_kept(low, x), dim, start, stop, step)


def bounds(node: Node, index: int) -> tuple[Any, Any]:
    """Start and stop of a slice, which may be left out."""
    rest = [*node.args[index : index + 2], None, None]
    return rest[0], rest[1]


def _select(low: Lowering, node: Node) -> Value:
    x = operands_of(node)[0]
    dim = axis(node, 1) % len(shape(x))
    at = axis(node, 2) % shape(x)[dim]
    return v.drop(v.cut(_kept(low, x), dim, at, at + 1), dim)


def _kept(low: Lowering, x: Node) -> Lazy:
    """An operand of which several parts are used: parts of one expression would compute the same again."""
    value = low.lazy(x)
    return low.stored(x) if isinstance(value, Expression) and len(x.users) > 1 and not value.boolean else value


def _split(low: Lowering, node: Node) -> Value:
    x = operands_of(node)[0]
    sizes: Any = node.args[1]
    dim = axis(node, 2) % len(shape(x))
    whole = low.stored(x)
    edges = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return [v.cut(whole, dim, a, b) for a, b in pairwise(edges)]


def _getitem(low: Lowering, node: Node) -> Value:
    parts, index = low.value[operands_of(node)[0]], node.args[1]
    assert isinstance(parts, list)
    assert isinstance(index, int)
    return parts[index]


def _reverse(low: Lowering, node: Node) -> Value:
    dims: Any = node.args[1]
    return v.reverse(low.lazy(node.args[0]), dims)


def _sum(low: Lowering, node: Node) -> Value:
    source = operands_of(node)[0]
    value, rank = low.lazy(source), len(shape(source))
    given: Any = node.args[1]
    dims = tuple(sorted(dim % rank for dim in given))
    kept = tuple(1 if i in dims else size for i, size in enumerate(value.sizes))
    keep = len(node.args) > 2 and node.args[2]
    if isinstance(value, Number):
        value = low.stored(source)
    target = low.target(node) if keep else low.own(kept)
    low.order.add(Total(target, low._straight(value), dims))
    result: Lazy = target
    if not keep:
        for dim in reversed(dims):
            result = v.drop(result, dim)
    return result


def _cumsum(low: Lowering, node: Node) -> Value:
    target = low.target(node)
    low.order.add(Running(target, low.stored(operands_of(node)[0]), axis(node, 1) % len(shape(node))))
    return target


def _cat(low: Lowering, node: Node) -> Value:
    target = low.target(node)
    dim, at = axis(node, 1) % len(shape(node)), 0
    for x in operands_of(node):
        size = low.labels.inner(x)[dim]
        part = v.cut(target, dim, at, at + size)
        assert isinstance(part, View)
        value = low.value.get(x)
        low._write(part, value if isinstance(value, Padded) else v.expand(low.lazy(x), part.sizes))
        at += size
    return target


def _scatter(low: Lowering, node: Node) -> Value:
    base, source = operands_of(node)
    sizes = low.labels.inner(node)
    dim = axis(node, 2) % len(sizes)
    if node.target is aten.select_scatter.default:
        start = axis(node, 3) % sizes[dim]
        stop, step, value = start + 1, 1, v.insert(low.lazy(source), dim)
    else:
        start, stop, step = slice(*bounds(node, 3), axis(node, 5, 1)).indices(sizes[dim])
        value = low.lazy(source)
    zero = base.target in CONSTANTS and low.lazy(base, sizes) == Number(0.0, sizes)
    if zero and step == 1:
        return Padded(sizes, dim, ((start, stop, value),))
    target = low.target(node)
    low.order.store(target, low.lazy(base, sizes))
    part = v.cut(target, dim, start, stop, step)
    assert isinstance(part, View)
    for loop in list(low.order.waiting.get(target.buffer, ())):
        low.order._close(loop)  # written twice: in this order
    low.order.store(part, value)
    return target


def _bmm(low: Lowering, node: Node) -> Value:
    """A product, or the product of the turned operands in the other order, whose result is the turned one."""
    a, b = (low.stored(x) for x in operands_of(node))
    turned_a, turned_b = (v.permute(x, (0, 2, 1)) for x in (a, b))
    assert isinstance(turned_a, View)
    assert isinstance(turned_b, View)
    straight, across = _uses(node, low)
    plain_cost = (not _rows(b)) + (across > straight) * 1.5
    turned_cost = (not _rows(turned_a)) + (across < straight) * 1.5
    if node not in low.outputs and turned_cost < plain_cost:
        (count, rows, _), columns = a.sizes, b.sizes[2]
        result = low.own((count, columns, rows))
        low.order.add(Product(result, turned_b, low.rows(turned_a)))
        return v.permute(result, (0, 2, 1))
    target = low.target(node)
    if not _rows(target):
        target = low.own(target.sizes)
    low.order.add(Product(target, a, low.rows(b)))
    return target


def _rows(x: View) -> bool:
    """Whether the places of a row lie beside each other."""
    return x.sizes[-1] == 1 or x.strides[-1] == 1


def _uses(node: Node, low: Lowering) -> tuple[int, int]:
    """How many uses want the rows of a matrix to lie together, and how many the columns."""
    straight = across = 0
    for user in node.users:
        if user not in low.inside:
            straight += 1
        elif user.target is aten.permute.default:
            order: Any = user.args[1]
            same, turned = _uses(user, low)
            if order[-1] % len(order) == len(order) - 2:
                same, turned = turned, same
            straight, across = straight + same, across + turned
        elif user.target in VIEWS:
            same, turned = _uses(user, low)
            straight, across = straight + same, across + turned
        elif user.target is not aten.bmm.default or user.args[1] is node:
            straight += 1
    return straight, across


RULES: dict[Any, Callable[[Lowering, Node], Value]] = {
    **dict.fromkeys(SAME, _same),
    GETITEM: _getitem,
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten.permute.default: _permute,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.expand.default: _expand,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.split_with_sizes.default: _split,
    prims.rev.default: _reverse,
    aten.sum.dim_IntList: _sum,
    aten.cumsum.default: _cumsum,
    aten.cat.default: _cat,
    aten.slice_scatter.default: _scatter,
    aten.select_scatter.default: _scatter,
    aten.bmm.default: _bmm,
}
