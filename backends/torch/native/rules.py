"""What each operation of a graph becomes: a view, an expression, or a statement of the kernel."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from nsam.backends.torch.native import values as v
from nsam.backends.torch.native.labels import axis, operands_of, shape
from nsam.backends.torch.native.operations import CONSTANTS, GETITEM, SAME, VIEWS
from nsam.backends.torch.native.statements import Product, Running, Total, large
from nsam.backends.torch.native.values import Expression, Lazy, Number, Padded, View, by_rows

if TYPE_CHECKING:
    from nsam.backends.torch.native.lower import Lowering

aten, prims = torch.ops.aten, torch.ops.prims
Value = Lazy | Padded | list[Lazy]


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
    low.order.add(Total(target, low.straight(value), dims))
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
        low.write(part, value if isinstance(value, Padded) else v.expand(low.lazy(x), part.sizes))
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
    half = node.meta["val"].dtype == torch.bfloat16
    if half:
        a, b = (low.matrix(x) for x in operands_of(node))
        if large(a, b):
            return _tiled(low, node, a, b)
    a, b = (low.stored(x) for x in operands_of(node))
    turned_a, turned_b = (v.permute(x, (0, 2, 1)) for x in (a, b))
    assert isinstance(turned_a, View)
    assert isinstance(turned_b, View)
    straight, across = _uses(node, low)
    plain_cost = (not by_rows(b)) + (across > straight) * 1.5
    turned_cost = (not by_rows(turned_a)) + (across < straight) * 1.5
    if node not in low.outputs and turned_cost < plain_cost:
        (count, rows, _), columns = a.sizes, b.sizes[2]
        result = low.own((count, columns, rows))
        low.order.add(Product(result, turned_b, low.rows(turned_a), half))
        return v.permute(result, (0, 2, 1))
    target = low.target(node)
    if not by_rows(target):
        target = low.own(target.sizes)
    low.order.add(Product(target, a, low.rows(b), half))
    return target


def _tiled(low: Lowering, node: Node, a: View, b: View) -> Value:
    """A product by the matrix unit, which lays out what it multiplies as it needs it."""
    straight, across = _uses(node, low)
    if node not in low.outputs and across > straight:
        (count, rows, _), columns = a.sizes, b.sizes[2]
        result = low.own((count, columns, rows))
        turned_a, turned_b = (v.permute(x, (0, 2, 1)) for x in (a, b))
        assert isinstance(turned_a, View)
        assert isinstance(turned_b, View)
        low.order.add(Product(result, turned_b, turned_a, half=True))
        return v.permute(result, (0, 2, 1))
    target = low.target(node)
    if not by_rows(target):
        target = low.own(target.sizes)
    low.order.add(Product(target, a, b, half=True))
    return target


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
