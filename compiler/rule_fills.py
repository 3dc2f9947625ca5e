"""Numbers that stand for whole matrices in a rule, and the matrices that they stand for.

`zeros` and `ones` are the numbers 0 and 1 to the algebra of rules, and it makes numbers of matrices: `0 * grad + 1` is
1. Where entries meet one by one the number does as well. Functions of a whole matrix need what the checker knows of it:
its shape. So each expression of a rule is lowered to a number, or to something that has the shape of its type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nsam.compiler.rule_algebra import Algebra, call, constant, ref
from nsam.compiler.rule_networks import Shape, size_of
from nsam.dsl.checked import Apply, Constant, Expr, ValueType
from nsam.dsl.records import dataclass
from nsam.dsl.sizes import Size
from nsam.dsl.spans import Span
from nsam.dsl.types import COLUMNS, ROWS

_KEEP_ZERO = frozenset({"matmul", "outer", "transpose", "orthogonalize", "sum", "norm", "dot"})
_LEAST = 1e-12
_VECTORS = {"key": COLUMNS, "err": ROWS}


@dataclass(frozen=True, slots=True)
class Fills:
    """Makes matrices of numbers in one scope of a rule.

    `shape` is that of the scope's `self` where it is not the host's, `bound` what the scope's names stand for.
    """

    algebra: Algebra
    shape: Shape | None
    bound: Mapping[str, Expr]

    def fill(self, expr: Apply) -> Expr:
        """Return `zeros` or `ones` as a number, `identity` as the matrix of its shape."""
        if expr.function == "identity":
            return call("identity", *self.sizes(expr.type.shape, expr.span))
        return constant(0 if expr.function == "zeros" else 1)

    def whole(self, value: Expr, type_: ValueType, span: Span) -> Expr:
        """Return a value in the shape of its type; numbers fill it."""
        if not type_.shape or not self.algebra.scalar(value):
            return value
        like = self.like(type_.shape)
        sizes = () if like is not None else self.sizes(type_.shape, span)

        def matrix(name: str) -> Expr:
            return call(f"{name}_of", *sizes) if like is None else call(f"{name}_like", like)

        number = value.value if isinstance(value, Constant) else None
        if number in (0, 1):
            return matrix("ones" if number else "zeros")
        return call("mul", value, matrix("ones"))

    def like(self, shape: tuple[Size, ...]) -> Expr | None:
        """Return something known that has this shape; of a vector it has its rows, one for each token of a window."""
        if shape == (ROWS, COLUMNS):
            return ref("self") if self.shape is None else None
        for name, size in _VECTORS.items():
            if shape == (size,) and name in self.bound and not self.algebra.scalar(self.bound[name]):
                return self.bound[name]
        return None

    def sizes(self, shape: tuple[Size, ...], span: Span) -> tuple[Expr, ...]:
        """Return rows and columns."""
        host = (call("rows", ref("self")), call("cols", ref("self"))) if self.shape is None else self.shape
        found = tuple(size_of(size, host, span) for size in shape)
        if len(found) == 2:
            return found
        rows = (self.bound[name] for name in _VECTORS if not self.algebra.scalar(self.bound.get(name, constant(1))))
        return (call("rows", next(rows)), *found)

    def reduced(self, expr: Apply, arguments: Sequence[Expr], simplify: bool) -> Expr | None:
        """Return what a function of whole matrices makes of numbers, None where that takes the matrices.

        Without `simplify` no 0 is made, so that what is derived still reads what it is derived by.
        """
        name, build = expr.function, self.algebra.build if simplify else call
        if simplify and name in _KEEP_ZERO and any(isinstance(a, Constant) and a.value == 0 for a in arguments):
            return constant(0)
        if not all(self.algebra.scalar(argument) for argument in arguments):
            return None
        if name in ("rows", "cols"):
            return self.sizes(expr.arguments[0].type.shape, expr.span)[name == "cols"]
        if name == "mean":
            return arguments[0]
        if name == "root_mean_square":
            return build("max", _absolute(arguments[0]), constant(_LEAST))
        if any(argument.type.shape for argument in expr.arguments):
            return None
        if name == "dot":
            return build("mul", *arguments)
        return _absolute(arguments[0]) if name == "norm" else arguments[0]

    def entries(self, expr: Apply, built: Expr, arguments: Sequence[Expr]) -> Expr:
        """Return an elementwise function, `built` of its arguments, in the shape of its type.

        A number in the place of a matrix is one beside what has fewer axes, as in `0 * self + key`.
        """
        shape = expr.type.shape
        pairs = list(zip(expr.arguments, arguments, strict=True))
        reaching = any(a.type.shape == shape for a, given in pairs if not self.algebra.scalar(given))
        if len(shape) < 2 or reaching or self.algebra.scalar(built):
            return built
        matrices = [
            call("mul", given, call("ones_of", *self.sizes(a.type.shape, expr.span)))
            if self.algebra.scalar(given) and len(a.type.shape) == len(shape)
            else given
            for a, given in pairs
        ]
        return call(expr.function, *matrices)


def _absolute(value: Expr) -> Expr:
    return constant(abs(value.value)) if isinstance(value, Constant) else call("abs", value)
