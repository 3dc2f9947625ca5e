"""Small algebra over the expressions of learning rules: what is a scalar, and constructors that simplify.

Everything in a rule is a number, a scalar (one for each memory or head) or a matrix; a vector is a 1 × n matrix. The
constructors below keep products in a form that never builds a dense `a I - b k kᵀ`: a product with the identity is
dropped, and a product with an outer product is done one factor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from nsam.dsl.checked import Apply, Constant, Expr, Ref, ValueType
from nsam.dsl.spans import Source, Span

Kind = Literal["number", "scalar", "matrix"]

NOWHERE = Span(Source("<derived>", ""), 0, 0)
ANY = ValueType(())

_ORDER: dict[Kind, int] = {"number": 0, "scalar": 1, "matrix": 2}
NUMBERS = frozenset({"rows", "cols", "count_of"})
REDUCTIONS = frozenset({"dot", "trace", "sum", "mean", "norm", "root_mean_square", "lp", "huber", "pseudo_huber"})
MATRICES = frozenset(
    {"identity", "matmul", "transpose", "outer", "ones_like", "zeros_like", "ones_of", "zeros_of", "orthogonalize"}
    | {"normalize"}
)
WHOLE = frozenset(
    {"matmul", "outer", "transpose", "orthogonalize", "sum", "mean", "norm", "root_mean_square", "dot", "rows", "cols"}
)
"""Functions of whole matrices that a rule may apply; all others go entry by entry."""
_PRODUCTS = frozenset({"mul", "div"})
_SHAPED = WHOLE | {"trace", "count_of", "ones_like", "zeros_like"}


def constant(value: float) -> Constant:
    """Return a number as an expression."""
    return Constant(ANY, NOWHERE, value)


def ref(name: str) -> Ref:
    """Return a name as an expression."""
    return Ref(ANY, NOWHERE, name)


def call(function: str, *arguments: Expr) -> Apply:
    """Return `function(arguments)` as it is, without simplification."""
    return Apply(ANY, NOWHERE, function, arguments)


def names(expr: Expr) -> Iterator[str]:
    """Yield every name in `expr`, once for each place where it stands."""
    if isinstance(expr, Ref):
        yield expr.name
    elif isinstance(expr, Apply):
        for argument in expr.arguments:
            yield from names(argument)


def functions(expr: Expr) -> Iterator[str]:
    """Yield every function that `expr` applies."""
    if isinstance(expr, Apply):
        yield expr.function
        for argument in expr.arguments:
            yield from functions(argument)


def substitute(expr: Expr, found: Callable[[Expr], Expr | None], build: Callable[..., Expr]) -> Expr:
    """Return `expr` with the nodes replaced for which `found` gives others, rebuilt by `build(function, *args)`."""
    replacement = found(expr)
    if replacement is not None:
        return replacement
    if isinstance(expr, Apply):
        return build(expr.function, *(substitute(argument, found, build) for argument in expr.arguments))
    return expr


def _is(expr: Expr, function: str) -> bool:
    return isinstance(expr, Apply) and expr.function == function


def _one(expr: Expr) -> bool:
    """Whether `expr` is a square identity; `identity(rows, columns)` may be rectangular."""
    return isinstance(expr, Apply) and expr.function == "identity" and expr.arguments[0] == expr.arguments[1]


def _parts(expr: Expr) -> tuple[Expr, ...]:
    assert isinstance(expr, Apply)
    return expr.arguments


def _value(expr: Expr) -> float | None:
    return expr.value if isinstance(expr, Constant) else None


@dataclass
class Algebra:
    """Constructors that know which names are scalars. `kinds` gives the kind of each name; matrices need no entry."""

    kinds: dict[str, Kind] = field(default_factory=dict)

    def kind(self, expr: Expr) -> Kind:
        """Return whether `expr` is a number known without tensors, a scalar, or a matrix."""
        if isinstance(expr, Constant):
            return "number"
        if isinstance(expr, Ref):
            return self.kinds.get(expr.name, "matrix")
        if not isinstance(expr, Apply) or expr.function in MATRICES:
            return "matrix"
        if expr.function in NUMBERS:
            return "number"
        if expr.function in REDUCTIONS:
            return "scalar"
        kinds = [self.kind(argument) for argument in expr.arguments]
        return max(kinds, key=_ORDER.__getitem__, default="matrix")

    def scalar(self, expr: Expr) -> bool:
        """Whether `expr` has no matrix axes."""
        return self.kind(expr) != "matrix"

    def build(self, function: str, *arguments: Expr) -> Expr:
        """Return `function(arguments)`, simplified."""
        make = getattr(self, f"_{function}", None)
        if make is not None:
            built: Expr = make(*arguments)
            return built
        return call(function, *arguments)

    def simplify(self, expr: Expr) -> Expr:
        """Rebuild `expr` from its leaves with the simplifying constructors."""
        return self.replaced(expr, lambda _: None)

    def replaced(self, expr: Expr, found: Callable[[Expr], Expr | None]) -> Expr:
        """Return `expr` simplified, with the nodes replaced for which `found` gives others."""
        replacement = found(expr)
        if replacement is not None:
            return replacement
        if not isinstance(expr, Apply):
            return expr
        before = [substitute(argument, found, call) for argument in expr.arguments]
        return self.rebuilt(expr.function, before, [self.replaced(argument, found) for argument in expr.arguments])

    def rebuilt(self, function: str, before: Sequence[Expr], after: Sequence[Expr]) -> Expr:
        """Return `function(after)`, simplified, where `after` are the arguments `before` simplified.

        A function of a whole matrix keeps one as it was where all that is left of it is a number.
        """
        if function in _SHAPED:
            pairs = zip(before, after, strict=True)
            after = [b if self.scalar(a) and not self.scalar(b) else a for b, a in pairs]
        return self.build(function, *after)

    # --- sums ------------------------------------------------------------------------------------

    def _add(self, a: Expr, b: Expr) -> Expr:
        x, y = _value(a), _value(b)
        if x is not None and y is not None:
            return constant(x + y)
        if x == 0:
            return b
        if y == 0:
            return a
        if _is(b, "neg"):
            return self._sub(a, _parts(b)[0])
        if _is(a, "neg"):
            return self._sub(b, _parts(a)[0])
        return call("add", a, b)

    def _sub(self, a: Expr, b: Expr) -> Expr:
        x, y = _value(a), _value(b)
        if x is not None and y is not None:
            return constant(x - y)
        if y == 0:
            return a
        if x == 0:
            return self._neg(b)
        if _is(b, "neg"):
            return self._add(a, _parts(b)[0])
        return call("sub", a, b)

    def _neg(self, a: Expr) -> Expr:
        value = _value(a)
        if value is not None:
            return constant(-value)
        if _is(a, "neg"):
            return _parts(a)[0]
        if _is(a, "sub"):
            left, right = _parts(a)
            return self._sub(right, left)
        return call("neg", a)

    # --- elementwise products --------------------------------------------------------------------

    def _mul(self, a: Expr, b: Expr) -> Expr:
        x, y = _value(a), _value(b)
        if x is not None and y is not None:
            return constant(x * y)
        if y is not None or (x is None and self.scalar(b) and not self.scalar(a)):
            a, b, x = b, a, y
        if x is not None and x in (0, 1, -1):
            return {0: constant(0), 1: b, -1: self._neg(b)}[int(x)]
        if _is(a, "neg"):
            return self._neg(self._mul(_parts(a)[0], b))
        if _is(b, "neg"):
            return self._neg(self._mul(a, _parts(b)[0]))
        return self._gathered(a, b)

    def _gathered(self, a: Expr, b: Expr) -> Expr:
        """Multiply with scalar factors in front, numbers folded, and factors of ones dropped."""
        for one, other in ((a, b), (b, a)):
            if _is(one, "ones_like") and not self.scalar(other):
                return other
        if _is(b, "mul") and self.scalar(_parts(b)[0]) and (isinstance(a, Constant) or not self.scalar(a)):
            factor, rest = _parts(b)
            if isinstance(a, Constant) and not isinstance(factor, Constant):
                return call("mul", a, b)
            return self._mul(self._mul(a, factor), rest) if self.scalar(a) else self._mul(factor, self._mul(a, rest))
        if _is(a, "mul") and not self.scalar(a) and self.scalar(_parts(a)[0]):
            factor, rest = _parts(a)
            return self._mul(factor, self._mul(rest, b))
        return call("mul", a, b)

    def _div(self, a: Expr, b: Expr) -> Expr:
        x, y = _value(a), _value(b)
        if x is not None and y:
            return constant(x / y)
        if x == 0 or y == 1:
            return a
        if _is(a, "neg"):
            return self._neg(self._div(_parts(a)[0], b))
        if y and _is(a, "mul") and isinstance(_parts(a)[0], Constant):
            return self._mul(self._div(_parts(a)[0], b), _parts(a)[1])
        return call("div", a, b)

    def _pow(self, a: Expr, b: Expr) -> Expr:
        x, y = _value(a), _value(b)
        if x is not None and y is not None and (x > 0 or (x == 0 and y > 0)):
            return constant(x**y)
        if y == 1:
            return a
        if y == 0:
            return constant(1)
        return call("pow", a, b)

    def _dot(self, a: Expr, b: Expr) -> Expr:
        if _is(a, "neg"):
            return self._neg(self._dot(_parts(a)[0], b))
        if _is(b, "neg"):
            return self._neg(self._dot(a, _parts(b)[0]))
        return call("dot", a, b)

    # --- matrix products -------------------------------------------------------------------------

    def _outer(self, a: Expr, b: Expr) -> Expr:
        return self._matmul(self._transpose(a), b)

    def _transpose(self, a: Expr) -> Expr:
        if self.scalar(a) or _one(a):
            return a
        if _is(a, "transpose"):
            return _parts(a)[0]
        if _is(a, "neg"):
            return self._neg(self._transpose(_parts(a)[0]))
        if _is(a, "matmul"):
            left, right = _parts(a)
            return self._matmul(self._transpose(right), self._transpose(left))
        if isinstance(a, Apply) and a.function in ("add", "sub") and self._structured(a):
            return self.build(a.function, *(self._transpose(part) for part in a.arguments))
        if isinstance(a, Apply) and a.function in _PRODUCTS and self._scaled(a):
            return self.build(a.function, *(self._transpose(part) for part in a.arguments))
        return call("transpose", a)

    def _matmul(self, a: Expr, b: Expr) -> Expr:
        if _one(a):
            return b
        if _one(b):
            return a
        if 0 in (_value(a), _value(b)):
            return constant(0)
        rewritten = self._pulled(a, lambda part: self._matmul(part, b))
        if rewritten is None:
            rewritten = self._pulled(b, lambda part: self._matmul(a, part))
        if rewritten is not None:
            return rewritten
        if _is(b, "matmul") and _is(_parts(b)[0], "transpose"):
            left, right = _parts(b)
            return self._matmul(self._matmul(a, left), right)
        return call("matmul", a, b)

    def _pulled(self, side: Expr, product: Callable[[Expr], Expr]) -> Expr | None:
        """Move a sign, a scalar factor or a structured sum in `side` out of the product; None if there is none."""
        if _is(side, "neg"):
            return self._neg(product(_parts(side)[0]))
        if isinstance(side, Apply) and side.function in _PRODUCTS and self._scaled(side):
            first, second = side.arguments
            if self.scalar(first):
                return self.build(side.function, first, product(second))
            return self.build(side.function, product(first), second)
        if isinstance(side, Apply) and side.function in ("add", "sub") and self._structured(side):
            if any(self.scalar(part) for part in side.arguments):
                return None  # `1 - identity`: the number stands for a matrix, which a product has to have
            return self.build(side.function, *(product(part) for part in side.arguments))
        return None

    def _scaled(self, expr: Apply) -> bool:
        """Whether a product or quotient is a matrix times (or over) a scalar."""
        first, second = (self.scalar(argument) for argument in expr.arguments)
        return (first != second) if expr.function == "mul" else (second and not first)

    def _structured(self, expr: Expr) -> bool:
        """Whether a sum has the identity as a term, so that a product distributes over it at a gain."""
        if _one(expr):
            return True
        if isinstance(expr, Apply) and expr.function in ("add", "sub", "neg", "mul", "div"):
            return any(self._structured(argument) for argument in expr.arguments)
        return False
