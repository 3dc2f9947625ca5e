"""Reads a rule as an affine recurrence, where it is one.

A rule whose update is affine in its own state, with scalar coefficients and decay along the layer's input,

    self  <- self (α I − η x xᵀ) + κ trace − w grad          trace <- θ trace + u grad

can be folded over a chunk by matrix products instead of a loop over tokens (the algebra of gated delta rules and of
linear momentum). Here a rule's statements are evaluated over symbols: `self`, `self xxᵀ`, `grad`, and the traces. A
rule that leaves this family raises `NotAffine` with the reason, which `explain` shows.
"""

from __future__ import annotations

from collections.abc import Mapping

from nsam.compiler.expressions import ELEMENTWISE, Builder, Node
from nsam.dsl import checked as c
from nsam.dsl.records import dataclass
from nsam.dsl.types import COLUMNS, ROWS

_REDUCTIONS = frozenset({"sum", "mean", "norm", "dot"})


class NotAffine(Exception):
    """Why a rule is not an affine recurrence with scalar coefficients."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Σ coefficient · symbol. Symbols: `self`, `self xx'`, `grad`, and for a trace `t` also `t`, `t xx'`, `t new`."""

    terms: tuple[tuple[str, Node], ...]

    def get(self, symbol: str) -> Node | None:
        """The coefficient of `symbol`, or None."""
        return dict(self.terms).get(symbol)


@dataclass(frozen=True, slots=True)
class Square:
    """a·I + b·x xᵀ, a matrix on the input side of a layer."""

    identity: Node
    outer: Node


@dataclass(frozen=True, slots=True)
class KeyVector:
    """The layer's input x."""


Value = Node | Linear | Square | KeyVector


@dataclass(frozen=True, slots=True)
class Recurrence:
    """What `analyse` found: the new state, and the new value of each trace, over the old ones."""

    state: Linear
    traces: tuple[tuple[str, Linear], ...]


def analyse(
    builder: Builder, use: c.RuleUse, arguments: Mapping[str, Node], key: Node | None, sizes: tuple[Node, Node]
) -> Recurrence:
    """Evaluate the rule over symbols for one layer.

    `arguments` are the rule's parameters as scalars (numbers, or one a token and head); `key` is the layer's input;
    `sizes` are the rows and columns of the layer's matrix. Raises `NotAffine`.
    """
    return _Analysis(builder, key, sizes).run(
        use.rule, dict(arguments), "self", Linear((("grad", builder.number(1)),)), top=True
    )


class _Analysis:
    def __init__(self, builder: Builder, key: Node | None, sizes: tuple[Node, Node]) -> None:
        self.b = builder
        self.key = key
        self.sizes = sizes
        self.traces: list[tuple[str, Linear]] = []

    def run(self, rule: c.Rule, names: dict[str, Node], host: str, grad: Linear, *, top: bool) -> Recurrence:
        scope: dict[str, Value] = {**names, "grad": grad}
        scope["self"] = Linear(((host, self.b.number(1)),))
        if self.key is not None and top:
            scope["key"] = KeyVector()
        for statement in rule.statements:
            if isinstance(statement, c.RuleLet):
                scope[statement.name] = self.value(statement.value, scope)
            elif isinstance(statement, c.RuleMemory):
                self.memory(statement, scope)
            elif isinstance(statement, c.RuleUpdate) and statement.target == "self":
                scope["self"] = self.linear(self.value(statement.value, scope), statement.value)
            else:
                raise NotAffine(f"`{statement.span.text.strip()}` keeps a state that is not a linear momentum")
        return Recurrence(self.linear(scope["self"], None), tuple(self.traces))

    def memory(self, memory: c.RuleMemory, scope: dict[str, Value]) -> None:
        """A linear memory of gradients: its new value over its old one and the gradient."""
        name = memory.name
        if memory.period != 1 or memory.summed:
            raise NotAffine(f"memory `{name}` of the rule moves every {memory.period} updates")
        if memory.structure.kind != "like" or memory.context.key is not None or memory.initial is not None:
            raise NotAffine(f"memory `{name}` of the rule is not a plain average of gradients")
        learnt = self.linear(self.value(memory.context.value, scope), memory.context.value)
        if memory.objective.name == "dot":
            inner = self.scale(learnt, self.b.number(-1))
        elif memory.objective.name == "l2":
            inner = self.combine(Linear(((name, self.b.number(1)),)), learnt, -1)
        else:
            raise NotAffine(f"memory `{name}` of the rule minimises {memory.objective.name}, not dot or l2")
        arguments = {k: self.scalar(self.value(v, scope), v) for k, v in memory.rule.arguments}
        nested = _Analysis(self.b, None, self.sizes)
        found = nested.run(memory.rule.rule, arguments, name, inner, top=False)
        if found.traces:
            raise NotAffine(f"memory `{name}` of the rule has memories of its own")
        self.traces.append((name, found.state))
        visible = f"{name} new" if memory.reads == "running" else name
        scope[f"state {name}"] = Linear(((visible, self.b.number(1)),))

    # --- values ------------------------------------------------------------------------------------

    def value(self, expr: c.Expr, scope: dict[str, Value]) -> Value:
        if isinstance(expr, c.Constant):
            return self.b.number(expr.value)
        if isinstance(expr, c.Ref):
            return self.look_up(expr.name, scope)
        if isinstance(expr, c.State):
            return self.look_up(f"state {expr.memory}", scope)
        if isinstance(expr, c.Apply) and expr.function in ("rows", "cols"):
            return self.size(expr)
        if isinstance(expr, c.Apply):
            return self.apply(expr, [self.value(a, scope) for a in expr.arguments])
        raise NotAffine(f"`{expr.span.text}` is not linear in the state")

    def size(self, expr: c.Apply) -> Node:
        """The rows or columns of anything: known when the program is compiled."""
        size = expr.arguments[0].type.shape[expr.function == "cols"]
        for axis, known in zip((ROWS, COLUMNS), self.sizes, strict=True):
            if size == axis:
                return known
        if isinstance(size, int):
            return self.b.number(size)
        raise NotAffine(f"it uses `{expr.span.text}`")

    def look_up(self, name: str, scope: dict[str, Value]) -> Value:
        if name not in scope:
            raise NotAffine(f"it uses `{name}`")
        return scope[name]

    def apply(self, expr: c.Apply, args: list[Value]) -> Value:
        name = expr.function
        if name == "identity" and not args:
            return Square(self.b.number(1), self.b.number(0))
        if name == "zeros" and not args:
            return self.b.number(0)
        if all(isinstance(a, Node) for a in args):
            return self.scalars(expr, [a for a in args if isinstance(a, Node)])
        if name in ("add", "sub") and len(args) == 2:
            return self.sum(args[0], args[1], 1 if name == "add" else -1, expr)
        if name == "neg":
            return self.times(args[0], self.b.number(-1), expr)
        if name == "mul":
            left, right = args
            if isinstance(left, Node):
                return self.times(right, left, expr)
            if isinstance(right, Node):
                return self.times(left, right, expr)
        if name == "div" and isinstance(args[1], Node):
            return self.times(args[0], self.b.div(self.b.number(1), args[1]), expr)
        if name == "matmul":
            return self.matmul(args[0], args[1], expr)
        if name == "outer" and all(isinstance(a, KeyVector) for a in args):
            return Square(self.b.number(0), self.b.number(1))
        if name == "dot" and all(isinstance(a, KeyVector) for a in args):
            assert self.key is not None
            return self.b.reduce("dot", self.key, self.key)
        raise NotAffine(f"`{expr.span.text}` is not linear in the state with scalar coefficients")

    def scalars(self, expr: c.Apply, args: list[Node]) -> Node:
        if expr.function in _REDUCTIONS and not any(argument.type.shape for argument in expr.arguments):
            return self.b.reduce(expr.function, *args)
        if expr.options or not args or expr.function not in ELEMENTWISE:
            raise NotAffine(f"`{expr.span.text}` is not a scalar")
        return self.b.apply(expr.function, *args)

    def sum(self, left: Value, right: Value, sign: int, expr: c.Expr) -> Value:
        if isinstance(left, Linear) and isinstance(right, Linear):
            return self.combine(left, right, sign)
        if isinstance(left, Square) and isinstance(right, Square):
            join = self.b.add if sign > 0 else self.b.sub
            return Square(join(left.identity, right.identity), join(left.outer, right.outer))
        raise NotAffine(f"`{expr.span.text}` adds things of different kinds")

    def times(self, value: Value, factor: Node, expr: c.Expr) -> Value:
        if isinstance(value, Linear):
            return self.scale(value, factor)
        if isinstance(value, Square):
            return Square(self.b.scaled(factor, value.identity), self.b.scaled(factor, value.outer))
        raise NotAffine(f"`{expr.span.text}` is not linear in the state")

    def matmul(self, left: Value, right: Value, expr: c.Expr) -> Value:
        if not (isinstance(left, Linear) and isinstance(right, Square)):
            raise NotAffine(f"`{expr.span.text}` multiplies the state by a matrix that is not a·I + b·x xᵀ")
        found = self.scale(left, right.identity)
        if right.outer.op == "number" and right.outer.value == 0:
            return found
        for symbol, coefficient in left.terms:
            if symbol.endswith("xx'") or symbol == "grad":
                raise NotAffine(f"`{expr.span.text}` multiplies by x xᵀ twice or erases the gradient")
            term = Linear(((f"{symbol} xx'", self.b.scaled(coefficient, right.outer)),))
            found = self.combine(found, term, 1)
        return found

    def combine(self, left: Linear, right: Linear, sign: int) -> Linear:
        terms = dict(left.terms)
        for symbol, coefficient in right.terms:
            if symbol in terms:
                terms[symbol] = (self.b.add if sign > 0 else self.b.sub)(terms[symbol], coefficient)
            else:
                terms[symbol] = coefficient if sign > 0 else self.b.neg(coefficient)
        return Linear(tuple((s, k) for s, k in terms.items() if not (k.op == "number" and k.value == 0)))

    def scale(self, value: Linear, factor: Node) -> Linear:
        return Linear(tuple((s, self.b.scaled(factor, k)) for s, k in value.terms))

    def linear(self, value: Value, expr: c.Expr | None) -> Linear:
        if isinstance(value, Linear):
            return value
        text = "the update" if expr is None else f"`{expr.span.text}`"
        raise NotAffine(f"{text} is not linear in the state")

    def scalar(self, value: Value, expr: c.Expr) -> Node:
        if isinstance(value, Node):
            return value
        raise NotAffine(f"`{expr.span.text}` is not a scalar")
