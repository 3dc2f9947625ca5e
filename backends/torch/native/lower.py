"""From the nodes of a graph that work inside of instances to the statements of a kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from nsam.backends.torch.native import values as v
from nsam.backends.torch.native.labels import Labels
from nsam.backends.torch.native.operations import CONSTANTS, FUNCTIONS, POINTWISE, VIEWS
from nsam.backends.torch.native.rules import RULES, Value
from nsam.backends.torch.native.statements import SMALLEST, Order, Statement, Turn
from nsam.backends.torch.native.values import (
    Buffer,
    Expression,
    Lazy,
    Number,
    Padded,
    Sizes,
    View,
    by_rows,
    contiguous,
)

aten, prims = torch.ops.aten, torch.ops.prims
HEAVIEST = 24
"""Operations of one expression: beyond that a part is stored."""


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

    def matrix(self, x: Node) -> View:
        """An operand that lies in memory, as it lies there."""
        value = self.lazy(x)
        return value if isinstance(value, View) else self._place(x, value)

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

    def target(self, node: Node, sizes: Sizes | None = None, strides: Sizes | None = None) -> View:
        """Where a node's value goes: to the output that it is, or into the kernel's own memory."""
        output = self.outputs.get(node)
        if output is not None and sizes in (None, output.sizes) and not output.buffer.half:
            return output
        return self.own(sizes or self.labels.inner(node), strides)

    def own(self, sizes: Sizes, strides: Sizes | None = None, *, half: bool = False) -> View:
        """New memory."""
        buffer = Buffer(f"t{len(self.buffers)}", math.prod(sizes), "own", half=half)
        self.buffers.append(buffer)
        return View(buffer, sizes, strides or contiguous(sizes))

    def rows(self, x: View) -> View:
        """The values with those of a row beside each other; turned once for all that use them."""
        if by_rows(x):
            return x
        if x not in self.turned:
            self.turned[x] = self.own(x.sizes)
            self.order.add(Turn(self.turned[x], x))
        return self.turned[x]

    def straight(self, x: Lazy) -> Lazy:
        """An expression that reads matrices by rows: turned ones are laid out anew, which costs less than to gather."""
        if isinstance(x, Expression):
            operands = tuple(self.straight(operand) for operand in x.operands)
            return x if operands == x.operands else Expression(x.text, operands, x.sizes, x.boolean, x.weight)
        many = isinstance(x, View) and len(x.sizes) > 1 and min(x.sizes[-2:]) > 4
        if many and not x.boolean and not x.buffer.half and x.strides[-2] == 1 and x.strides[-1] > 1:  # type: ignore[union-attr]
            return self.rows(x)  # type: ignore[arg-type]
        return x

    def _place(self, node: Node, value: Lazy | Padded) -> View:
        strides = None if isinstance(value, Padded) else v.layout(value)
        if node.meta["val"].dtype == torch.bfloat16 and self._multiplied(node):
            output = self.outputs.get(node)
            same = output is not None and output.sizes == value.sizes
            target = output if output is not None and same else self.own(value.sizes, strides, half=True)
        else:
            target = self.target(node, value.sizes, strides)
        self.write(target, value)
        if target.boolean:  # read again from what it is made of, not from bytes
            return target
        self.value[node] = target
        return target

    def _multiplied(self, node: Node) -> bool:
        """Whether all that is done with a matrix here is to multiply it, so that a half is all that is needed of it."""
        users = [user for user in node.users if user in self.inside]
        large = min(self.labels.inner(node)[-2:], default=0) >= SMALLEST
        return large and all(
            user.target is aten.bmm.default or (user.target in VIEWS and self._multiplied(user)) for user in users
        )

    def write(self, target: View, value: Lazy | Padded) -> None:
        """Put a value where a view says."""
        if not isinstance(value, Padded):
            self.order.store(target, self.straight(value) if by_rows(target) else value)
            return
        for low, high, here in value.intervals():
            part = v.cut(target, value.dim, low, high)
            assert isinstance(part, View)
            total: Lazy = here[0] if here else Number(0.0, part.sizes)
            for x in here[1:]:
                total = Expression("{0} + {1}", (total, x), part.sizes, weight=weight(total) + weight(x) + 1)
            self.order.store(part, self.straight(total))

    def _finish(self, node: Node, target: View) -> None:
        value = self.value[node] if node in self.value else self.lazy(node)
        assert not isinstance(value, list)
        if value != target:
            self.write(target, value)

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
