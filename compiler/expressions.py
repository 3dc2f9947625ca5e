"""The plan's expression language: one page, interned nodes over tensors.

A `Node` is one tensor operation. Equal operations on equal arguments are one node, so that common subexpressions (a
preactivation used by a read and by the inner gradient, say) are found while the graph is built. `layout` says which
axes precede `shape`, the trailing axes of one token:

    number    a Python number                       sequence   [B, 1, *shape], one value a sequence
    constant  [*shape], slow weights only           flat       [B, T, *shape], scalars keep one axis of size 1
    weight    a slow weight, [*shape]               heads      [B, H, T, *shape]
    state     a fast weight, [B, H, out, in]        fold       an update of one fast weight over a chunk
    stacked   [B, H, M, T, *shape], of M memories that move as one (`stacks.py`)

Operations: `input number weight state given detach`, the elementwise functions, `sum dot mean norm` over the last axis,
`linear(x, w)` = x wᵀ and `linear_t(x, w)` = x w, `split merge gate` between flat and heads, and the ones with
memory or the clock: `conv attention rope position child`. The rest is named where it is lowered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

from nsam.compiler.scalars import BINARY, UNARY
from nsam.dsl.records import dataclass

Layout: TypeAlias = Literal["number", "constant", "weight", "sequence", "flat", "heads", "stacked", "state", "fold"]
Attr: TypeAlias = "int | float | str | bool | tuple[Attr, ...] | None"


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One operation; compared by identity (nodes are interned by `Builder`)."""

    id: int
    op: str
    args: tuple[Node, ...]
    attrs: tuple[tuple[str, Attr], ...]
    shape: tuple[int, ...]
    layout: Layout

    def attr(self, name: str, default: Attr = None) -> Attr:
        """Return attribute `name`, or `default`."""
        for key, value in self.attrs:
            if key == name:
                return value
        return default

    @property
    def value(self) -> float | int:
        """The number of a `number` node."""
        found = self.attr("value")
        if not isinstance(found, int | float):
            raise TypeError(f"{self.op} is not a number")
        return found

    def __repr__(self) -> str:
        inside = ", ".join([f"%{a.id}" for a in self.args] + [f"{k}={v}" for k, v in self.attrs])
        return f"%{self.id} = {self.op}({inside}) : {self.layout}{list(self.shape)}"


ELEMENTWISE = frozenset(
    "add sub mul div neg pow exp log sqrt abs sign sin cos tanh sigmoid silu gelu gelu_tanh relu softplus max min "
    "silu_slope gelu_slope gelu_tanh_slope step_at clip identity_at".split()
)
_BARE: frozenset[Layout] = frozenset({"number", "constant", "weight"})
_RANK: dict[Layout, int] = {"number": 0, "constant": 1, "weight": 1, "sequence": 2, "flat": 3, "heads": 4}


class Builder:
    """Makes nodes, interning equal ones and folding the simplest algebra (0 + x, 1 * x, numbers)."""

    def __init__(self) -> None:
        self._table: dict[tuple[object, ...], Node] = {}
        self.names: dict[int, str] = {}

    def make(
        self,
        op: str,
        args: Iterable[Node] = (),
        shape: tuple[int, ...] = (),
        layout: Layout = "flat",
        **attrs: Attr,
    ) -> Node:
        """Return the node for `op(args, attrs)`."""
        arguments, attributes = tuple(args), tuple(sorted(attrs.items()))
        key = (op, tuple(a.id for a in arguments), attributes, layout)
        if key not in self._table:
            self._table[key] = Node(len(self._table), op, arguments, attributes, shape, layout)
        return self._table[key]

    def name(self, node: Node, name: str) -> Node:
        """Suggest a variable name for `node`; the first suggestion stays."""
        self.names.setdefault(node.id, name)
        return node

    def number(self, value: float | int) -> Node:
        """A Python number."""
        return self.make("number", (), (), "number", value=value, kind=type(value).__name__)

    def given(self, node: Node) -> Node:
        """`node` as a constant of the inner gradient: differentiation stops here, the outer gradient does not."""
        return self.make("given", (node,), node.shape, node.layout)

    # --- algebra -----------------------------------------------------------------------------------

    def apply(self, op: str, *args: Node, **attrs: Attr) -> Node:
        """An elementwise operation with broadcasting; numbers are folded."""
        folded = self._fold(op, args)
        if folded is not None:
            return folded
        shape = broadcast(*(a.shape for a in args))
        layout = join(*(a.layout for a in args))
        if layout == "flat" and not shape:
            shape = (1,)
        return self.make(op, args, shape, layout, **attrs)

    def _fold(self, op: str, args: tuple[Node, ...]) -> Node | None:
        values = [a.value if a.op == "number" else None for a in args]
        if len(args) == 1:
            if op == "neg" and args[0].op == "neg":
                return args[0].args[0]
            if values[0] is not None and op in UNARY:
                return self.number(UNARY[op](values[0]))
            return None
        if op == "clip" and all(value is not None for value in values):
            x, low, high = (a.value for a in args)
            return self.number(min(max(x, low), high))
        if len(args) != 2:
            return None
        left, right = args
        a, b = values
        if a is not None and b is not None and op in BINARY:
            return self.number(BINARY[op](a, b))
        return self._unit(op, left, right, a, b) or self._associate(op, left, right, a)

    def _unit(self, op: str, left: Node, right: Node, a: float | None, b: float | None) -> Node | None:
        if op == "add":
            if a == 0:
                return right
            if b == 0:
                return left
            if right.op == "neg":
                return self.apply("sub", left, right.args[0])
        elif op == "sub":
            if b == 0:
                return left
            if a == 0:
                return self.apply("neg", right)
            if right.op == "neg":
                return self.apply("add", left, right.args[0])
        elif op == "mul":
            if a == 1:
                return right
            if b == 1:
                return left
            if a == -1:
                return self.apply("neg", right)
            if b == -1:
                return self.apply("neg", left)
            if right.op == "neg":
                return self.apply("neg", self.apply("mul", left, right.args[0]))
            if left.op == "neg":
                return self.apply("neg", self.apply("mul", left.args[0], right))
        elif op in ("div", "pow") and b == 1:
            return left
        return None

    def _associate(self, op: str, left: Node, right: Node, a: float | None) -> Node | None:
        if op == "mul" and a is not None and right.op == "mul" and right.args[0].op == "number":
            return self.apply("mul", self.apply("mul", left, right.args[0]), right.args[1])
        if op == "mul" and a is None and right.op == "number":
            return self.apply("mul", right, left)
        return None

    def add(self, a: Node, b: Node) -> Node:
        """a + b."""
        return self.apply("add", a, b)

    def sub(self, a: Node, b: Node) -> Node:
        """a - b."""
        return self.apply("sub", a, b)

    def mul(self, a: Node, b: Node) -> Node:
        """a * b."""
        return self.apply("mul", a, b)

    def scaled(self, a: Node, b: Node) -> Node:
        """a * b where a number may stand for a value of any shape: 0 where one of the two is.

        `mul` keeps 0 * b, because what it is added to takes its shape.
        """
        nothing = any(x.op == "number" and x.value == 0 for x in (a, b))
        return self.number(0) if nothing else self.mul(a, b)

    def div(self, a: Node, b: Node) -> Node:
        """a / b."""
        return self.apply("div", a, b)

    def neg(self, a: Node) -> Node:
        """-a."""
        return self.apply("neg", a)

    def reduce(self, op: str, *args: Node, **attrs: Attr) -> Node:
        """A reduction over the last axis, kept with size 1: `sum`, `mean`, `norm`, `dot`, …

        A number is the only element of what it stands for.
        """
        if op in ("sum", "mean", "norm", "dot") and all(a.op == "number" for a in args):
            return self.apply("mul", *args) if op == "dot" else self.apply("abs", *args) if op == "norm" else args[0]
        layout = join(*(a.layout for a in args))
        return self.make(op, args, (1,), layout, **attrs)

    # --- structure ---------------------------------------------------------------------------------

    def flatten(self, x: Node) -> Node:
        """A matrix-valued token as a vector, row by row; anything else as it is."""
        return x if len(x.shape) < 2 else self.make("flatten", (x,), (math.prod(x.shape),), x.layout)

    def each_token(self, x: Node) -> Node:
        """A value that is the same for all tokens, or for all of a sequence, as one value a token."""
        if x.layout not in ("number", "constant", "weight", "sequence"):
            return x
        return self.make("expand_tokens", (x,), x.shape or (1,), "flat")

    def filled(self, x: Node, shape: tuple[int, ...]) -> Node:
        """A number at every place of every token's value, where algebra has left nothing else of it."""
        return self.make("expand_tokens", (x,), shape, "flat", sizes=shape)

    def handed_over(self, x: Node, per: str) -> Node:
        """An argument of a call, as an input that varies per `token`, `sequence` or `constant` takes it."""
        if per == "token":
            return self.each_token(x)
        if per == "sequence" and x.layout != "flat":
            return self.make("each_sequence", (x,), x.shape or (1,), "flat")
        return x

    def aligned(self, args: Sequence[Node]) -> list[Node]:
        """Arguments of an elementwise operation: vectors and numbers a token as one row, where another is a matrix."""
        axes = max(len(a.shape) for a in args)
        if axes < 2:
            return list(args)
        return [a if a.layout in _BARE or len(a.shape) == axes else self.lifted(a, axes) for a in args]

    def lifted(self, x: Node, axes: int) -> Node:
        """`x` with as many axes a token as `axes` says, new ones of size 1 in front."""
        missing = axes - len(x.shape or (1,))
        return self.make("lift", (x,), (1,) * missing + (x.shape or (1,)), x.layout, axes=missing)

    def linear(self, x: Node, weight: Node) -> Node:
        """x wᵀ: [.., in] → [.., out]."""
        if weight.layout == "fold":
            return self.make("fold_read", (weight, x), (weight.shape[-2],), "heads")
        layout = join(x.layout, "constant") if weight.layout == "weight" else "heads"
        return self.make("linear", (x, weight), (weight.shape[-2],), layout)

    def linear_t(self, x: Node, weight: Node) -> Node:
        """x w: [.., out] → [.., in], the transposed read."""
        if weight.layout == "fold":
            return self.make("fold_read_t", (weight, x), (weight.shape[-1],), "heads")
        layout = join(x.layout, "constant") if weight.layout == "weight" else "heads"
        return self.make("linear_t", (x, weight), (weight.shape[-1],), layout)

    def split(self, x: Node, heads: int) -> Node:
        """[B, T, H d] → [B, H, T, d]."""
        if x.op == "merge" and x.attr("heads") == heads:
            return x.args[0]
        if x.layout in ("number", "heads"):
            return x
        if x.layout in ("constant", "weight"):
            x = self.make("expand_tokens", (x,), x.shape, "flat")
        return self.make("split", (x,), (x.shape[-1] // heads,), "heads", heads=heads)

    def merge(self, x: Node, heads: int) -> Node:
        """[B, H, T, d] → [B, T, H d]."""
        if x.op == "split":
            return x.args[0]
        return self.make("merge", (x,), (x.shape[-1] * heads,), "flat", heads=heads)

    def gate(self, x: Node, heads: int) -> Node:
        """One scalar a head: [B, T, H] or [B, T, 1] → [B, H or 1, T, 1]."""
        if x.layout == "number":
            return x
        return self.make("gate", (x,), (1,), "heads", heads=heads)


def undetached(node: Node) -> Node:
    """What a direct transfer reads without its gradient; any other node itself."""
    while node.op == "detach":
        node = node.args[0]
    return node


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """NumPy broadcasting of trailing shapes (already checked: sizes agree or are 1)."""
    longest = max(len(s) for s in shapes)
    padded = [(1,) * (longest - len(s)) + s for s in shapes]
    return tuple(max(sizes) for sizes in zip(*padded, strict=True))


def join(*layouts: Layout) -> Layout:
    """The layout of an elementwise result: the one with most leading axes."""
    found = max(layouts, key=lambda layout: _RANK[layout])
    return "constant" if found == "weight" else found


def steady(node: Node) -> bool:
    """Whether a value is made of states alone: the same for all tokens of a block, its time axis of length 1."""
    todo, seen = [node], set[int]()  # each node once: many paths may lead to one
    while todo:
        part = todo.pop()
        if part.id in seen:
            continue
        seen.add(part.id)
        if part.op == "row":
            if part.args[0].layout != "state":
                return False
            continue
        if part.layout not in ("heads", "flat") or part.op in ("expand_tokens", "carry", "conv", "attention"):
            return False
        moving = [a for a in part.args if a.op not in ("number", "weight") and a.layout not in ("constant", "number")]
        if not moving:
            return False
        todo += moving
    return True


def valued(nodes: Iterable[Node]) -> list[Node]:
    """The nodes whose values these are: `given` and `shown` have none of their own."""
    found = []
    for node in nodes:
        while node.op in ("given", "shown"):
            node = node.args[0]
        found.append(node)
    return found


def postorder(roots: Iterable[Node]) -> Iterator[Node]:
    """Yield every node below `roots`, arguments first, each once, without recursion."""
    seen: set[int] = set()
    for root in roots:
        stack: list[tuple[Node, int]] = [(root, 0)]
        while stack:
            node, position = stack.pop()
            if node.id in seen:
                continue
            if position < len(node.args):
                stack.append((node, position + 1))
                if node.args[position].id not in seen:
                    stack.append((node.args[position], 0))
            else:
                seen.add(node.id)
                yield node
