"""Rules that use a token's own `key` or `err` on the step clock: a plan over the rows of all tokens of a step.

The plan of one token becomes one of rows, n tokens at once. A vector of a token is a row of [n, features], a scalar of
it an entry of [n, 1]. What a state is given is a mean over tokens, each term of a sum by itself: a term that uses no
token stands as it is, `outer(a, b)` of two vectors becomes the product of matrices Σ w a bᵀ over the rows, w their
weights, and a scalar its weighted sum. So no matrix of a single token is made. Where a rule asks for one, as in
`sign(outer(err, key))`, the term is left as it is and computed for some tokens at a time (`WHOLE`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce

from nsam.compiler.rule_algebra import Algebra, call, constant, names, ref
from nsam.compiler.rule_plan import WEIGHT, Assign, RulePlan
from nsam.compiler.token_values import AVERAGE, WHOLE, Each, Once, Pair, Row, Scalar, Square, Value
from nsam.dsl.checked import Apply, Expr, Ref

ROWWISE = frozenset(
    "pow max min clip sqrt exp log abs sin cos erf sign tanh sigmoid relu silu gelu gelu_tanh softplus at_least "
    "inverse_or_zero ones_like zeros_like".split()
)
"""Functions that treat the entries of a vector one by one."""
REDUCING = {"norm": "row_norm", "root_mean_square": "row_root_mean_square", "sum": "row_sum", "mean": "row_mean"}
"""Functions from a vector to a number, and what they are called on rows."""


def over_tokens(plan: RulePlan) -> RulePlan:
    """Return the plan over the rows of a step's tokens, for a plan of one token (`key` and `err` one row each)."""
    return _Rows(plan).run()


@dataclass
class _Rows:
    plan: RulePlan
    values: dict[str, Value] = field(default_factory=dict)
    """What the names that differ from token to token stand for."""
    tokens: set[str] = field(default_factory=lambda: {"key", "err"})
    """Names of rows in the new plan."""

    def __post_init__(self) -> None:
        self.algebra: Algebra = self.plan.algebra
        self.values |= {name: Row(ref(name), ref(name)) for name in self.tokens}
        kept = {last for _, last in self.plan.results} | {a.otherwise for a in self.plan.body}
        self.means = kept | {a.target for a in self.plan.body if a.target.endswith("'")}

    def run(self) -> RulePlan:
        body: list[Assign] = []
        for a in self.plan.body:
            value = self.value(a.value)
            if isinstance(value, Once):
                body.append(a)
            elif a.target in self.means:
                body.append(replace(a, value=value.mean(self.algebra)))
            elif isinstance(value, Square):  # a matrix of each token: its factors are used where it is
                self.values[a.target] = value
            else:
                kind = Row if isinstance(value, Row) else Scalar
                total = value.total(self.algebra)
                body.append(replace(a, value=total))
                own = ref(a.target)
                turned = isinstance(value, Row) and value.column
                origin = call("transpose", own) if turned else own
                self.values[a.target] = Row(origin, own, turned) if kind is Row else Scalar(origin, None, own)
                self.tokens.add(a.target)
        kinds = {**self.plan.kinds, WEIGHT: "scalar"}
        used = {name for a in body for name in names(a.value)}
        inputs = (self.plan.inputs | {WEIGHT}) & used
        return replace(self.plan, body=tuple(body), kinds=kinds, inputs=inputs, tokens=frozenset(self.tokens))

    # --- values of expressions -------------------------------------------------------------------

    def value(self, expr: Expr) -> Value:
        """What an expression is, from token to token."""
        if isinstance(expr, Ref):
            return self.values.get(expr.name, Once(expr))
        if not isinstance(expr, Apply):
            return Once(expr)
        parts = [self.value(argument) for argument in expr.arguments]
        if all(isinstance(part, Once) for part in parts):
            return Once(expr)
        origin = call(expr.function, *(part.origin for part in parts))
        made = getattr(self, f"_{expr.function}", None)
        found = made(origin, *parts) if made is not None else None
        if found is None and expr.function in ROWWISE:
            found = self.rowwise(expr.function, origin, parts)
        if found is None and expr.function in REDUCING and isinstance(parts[0], Row):
            found = Scalar(origin, None, call(REDUCING[expr.function], parts[0].row))
        return self.whole(origin) if found is None else found

    def whole(self, origin: Expr) -> Square:
        """A value that has to be computed for each token by itself."""
        return Square(origin, None, (Each(call(WHOLE, ref(WEIGHT), origin)),))

    def rowwise(self, function: str, origin: Expr, parts: list[Value]) -> Value | None:
        """A function of the entries of vectors, or of numbers."""
        if any(isinstance(p, Square) or (isinstance(p, Once) and not self.algebra.scalar(p.origin)) for p in parts):
            return None
        turned = {p.column for p in parts if isinstance(p, Row)}
        if len(turned) > 1:
            return None
        applied = self.algebra.build(function, *(p.total(self.algebra) for p in parts))
        return Row(origin, applied, turned.pop()) if turned else Scalar(origin, None, applied)

    # --- sums ------------------------------------------------------------------------------------

    def _add(self, origin: Expr, a: Value, b: Value) -> Value | None:
        if isinstance(a, Scalar | Once) and isinstance(b, Scalar | Once) and self.numbers(a, b):
            once, each = (self.sum(getattr(a, part), getattr(b, part)) for part in ("once", "each"))
            return Scalar(origin, once, each)
        one, other = self.matrix(a), self.matrix(b)
        if one is not None and other is not None:
            return Square(origin, self.sum(one.once, other.once), (*one.terms, *other.terms))
        return self.rowwise("add", origin, [a, b])

    def matrix(self, a: Value) -> Once | Square | None:
        """A value in a sum of matrices; a number is added to every entry."""
        if isinstance(a, Scalar):
            each = None if a.each is None else Each(call(AVERAGE, ref(WEIGHT), a.each))
            return Square(a.origin, a.once, () if each is None else (each,))
        return None if isinstance(a, Row) else a

    def _sub(self, origin: Expr, a: Value, b: Value) -> Value | None:
        minus = self._neg(call("neg", b.origin), b)
        return None if minus is None else self._add(origin, a, minus)

    def _neg(self, origin: Expr, a: Value) -> Value | None:
        return self._mul(origin, Once(constant(-1)), a)

    def sum(self, a: Expr | None, b: Expr | None) -> Expr | None:
        if a is None or b is None:
            return b if a is None else a
        return self.algebra.build("add", a, b)

    def numbers(self, *values: Value) -> bool:
        return all(not isinstance(v, Once) or self.algebra.scalar(v.origin) for v in values)

    # --- products of entries ---------------------------------------------------------------------

    def _mul(self, origin: Expr, a: Value, b: Value) -> Value | None:
        if isinstance(a, Once) and isinstance(b, Once):
            return Once(self.algebra.build("mul", a.origin, b.origin))
        if isinstance(a, Square) or (isinstance(b, Once | Scalar) and not isinstance(a, Once | Scalar)):
            a, b = b, a
        if isinstance(a, Once):
            return self.times_once(origin, a.origin, b)
        if not isinstance(a, Scalar):
            return self.rowwise("mul", origin, [a, b])
        if isinstance(b, Once):
            return self.times_once(origin, b.origin, a)
        if isinstance(b, Scalar):
            return self.times_scalar(origin, a, b)
        if isinstance(b, Square):
            return self.square_times(origin, a, b)
        return self.rowwise("mul", origin, [a, b])

    def times_once(self, origin: Expr, factor: Expr, value: Value) -> Value | None:
        """A value times what is the same for all tokens: a number, or a matrix entry by entry."""
        build = self.algebra.build
        if isinstance(value, Square):
            once = None if value.once is None else build("mul", factor, value.once)
            return Square(origin, once, tuple(term.times(factor, self.algebra) for term in value.terms))
        if self.algebra.scalar(factor):
            if isinstance(value, Scalar):
                once, each = (None if x is None else build("mul", factor, x) for x in (value.once, value.each))
                return Scalar(origin, once, each)
            return (
                replace(value, origin=origin, row=build("mul", factor, value.row)) if isinstance(value, Row) else None
            )
        if isinstance(value, Scalar):  # a number of each token, times one matrix
            same = None if value.once is None else build("mul", value.once, factor)
            return Square(origin, same, () if value.each is None else (Pair(None, value.each, None, factor),))
        return None

    def times_scalar(self, origin: Expr, a: Scalar, b: Scalar) -> Scalar:
        """A product of two numbers of a token; only what both have once is once."""
        build = self.algebra.build
        once = build("mul", a.once, b.once) if a.once is not None and b.once is not None else None
        parts = [(a.once, b.each), (a.each, b.once), (a.each, b.each)]
        terms = [build("mul", x, y) for x, y in parts if x is not None and y is not None]
        return Scalar(origin, once, reduce(lambda x, y: build("add", x, y), terms) if terms else None)

    def square_times(self, origin: Expr, factor: Scalar, square: Square) -> Value | None:
        """A matrix of each token times a number of it."""
        if any(isinstance(term, Each) for term in square.terms):
            return None
        found = Square(origin, None, tuple(t.scaled(factor.total(self.algebra), self.algebra) for t in square.pairs))
        if square.once is None:
            return found
        more = self.times_once(origin, square.once, factor)
        return self._add(origin, more, found) if more is not None else None

    def _div(self, origin: Expr, a: Value, b: Value) -> Value | None:
        build = self.algebra.build
        if isinstance(b, Once):
            if isinstance(a, Square):
                once = None if a.once is None else build("div", a.once, b.origin)
                return Square(origin, once, tuple(term.over(b.origin, self.algebra) for term in a.terms))
            if isinstance(a, Scalar) and self.algebra.scalar(b.origin):
                once, each = (None if x is None else build("div", x, b.origin) for x in (a.once, a.each))
                return Scalar(origin, once, each)
        if isinstance(b, Scalar) and (isinstance(a, Square) or not self.numbers(a)):
            inverse = Scalar(call("div", constant(1), b.origin), None, build("div", constant(1), b.total(self.algebra)))
            return self._mul(origin, inverse, a)
        return self.rowwise("div", origin, [a, b])

    # --- products of matrices --------------------------------------------------------------------

    def _transpose(self, origin: Expr, a: Value) -> Value | None:
        build = self.algebra.build
        if isinstance(a, Row):
            return replace(a, origin=origin, column=not a.column)
        if isinstance(a, Square):
            once = None if a.once is None else build("transpose", a.once)
            return Square(origin, once, tuple(term.transposed(self.algebra) for term in a.terms))
        return a

    def _matmul(self, origin: Expr, a: Value, b: Value) -> Value | None:
        build = self.algebra.build
        if isinstance(a, Row) and isinstance(b, Row) and a.column != b.column:
            if a.column:
                return Square(origin, None, (Pair(a.row, None, b.row, None),))
            return Scalar(origin, None, call("row_dot", a.row, b.row))
        if isinstance(a, Row) and not a.column and isinstance(b, Once):
            return Row(origin, build("matmul", a.row, b.origin))
        if isinstance(a, Once) and isinstance(b, Row) and b.column:
            return Row(origin, build("matmul", b.row, build("transpose", a.origin)), True)
        if isinstance(a, Once) and isinstance(b, Square):
            once = None if b.once is None else build("matmul", a.origin, b.once)
            return Square(origin, once, tuple(term.after(a.origin, self.algebra) for term in b.terms))
        if isinstance(a, Square) and isinstance(b, Once):
            back = self._transpose(call("transpose", a.origin), a)
            product = None if back is None else self._matmul(origin, Once(build("transpose", b.origin)), back)
            return None if product is None else self._transpose(origin, product)
        if isinstance(a, Square) and isinstance(b, Row) and b.column:
            return self.applied(origin, a, b)
        if isinstance(a, Row) and not a.column and isinstance(b, Square):
            back = self._transpose(call("transpose", b.origin), b)
            found = self.applied(origin, back, a) if isinstance(back, Square) else None
            return None if found is None else replace(found, column=False)
        return None

    def applied(self, origin: Expr, square: Square, x: Row) -> Row | None:
        """A matrix of each token applied to a vector of it: a sum of vectors."""
        if any(isinstance(term, Each) for term in square.terms):
            return None
        build = self.algebra.build
        rows = [term.applied(x.row, self.algebra) for term in square.pairs]
        if square.once is not None:
            rows.append(build("matmul", x.row, build("transpose", square.once)))
        return Row(origin, reduce(lambda a, b: build("add", a, b), rows), True)

    def _dot(self, origin: Expr, a: Value, b: Value) -> Value | None:
        if isinstance(a, Row) and isinstance(b, Row) and a.column == b.column:
            return Scalar(origin, None, call("row_dot", a.row, b.row))
        return None
