"""What the expressions of a rule are from token to token of a step: the same, or a number, a vector or a matrix each.

Vectors are rows: `row` is an expression for [n, features] of n tokens, of a column its transpose. A matrix of each
token is never written; it is kept as a sum of factors, from which the mean over tokens follows: `PRODUCT(w, a, b)` is
Σ w a bᵀ and `AVERAGE(w, x)` Σ w x over the rows, w [n, 1] their weights. `WHOLE(w, x)` is Σ w x where x has no such
form. `origin` is the same value as an expression of one token.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TypeAlias

from nsam.compiler.rule_algebra import Algebra, call, ref
from nsam.compiler.rule_plan import WEIGHT
from nsam.dsl.checked import Expr
from nsam.dsl.records import dataclass

PRODUCT, AVERAGE, WHOLE = "tokens_product", "tokens_average", "tokens_whole"


def joined(a: Expr | None, b: Expr, algebra: Algebra) -> Expr:
    """a · b, b where there is no a."""
    return b if a is None else algebra.build("mul", a, b)


@dataclass(frozen=True, slots=True)
class Pair:
    """A matrix of each token: its number `scalar` times a bᵀ of its vectors, or times the matrix `fixed` of all.

    `left` and `right` are rows; both are None where `fixed` is not. `factor` is the same for all tokens.
    """

    left: Expr | None
    scalar: Expr | None
    right: Expr | None
    fixed: Expr | None
    factor: Expr | None = None

    def mean(self, algebra: Algebra) -> Expr:
        """The sum over tokens by weight."""
        if self.fixed is not None:
            assert self.scalar is not None
            found = algebra.build("mul", call(AVERAGE, ref(WEIGHT), self.scalar), self.fixed)
        else:
            assert self.left is not None
            assert self.right is not None
            found = call(PRODUCT, ref(WEIGHT), joined(self.scalar, self.left, algebra), self.right)
        return joined(self.factor, found, algebra)

    def times(self, factor: Expr, algebra: Algebra) -> Term:
        """Times a number or a matrix, entry by entry."""
        if algebra.scalar(factor):
            return replace(self, factor=joined(self.factor, factor, algebra))
        return Each(algebra.build("mul", factor, self.mean(algebra)))

    def over(self, divisor: Expr, algebra: Algebra) -> Term:
        """Divided by a number or a matrix, entry by entry."""
        return Each(algebra.build("div", self.mean(algebra), divisor))

    def scaled(self, scalar: Expr, algebra: Algebra) -> Pair:
        """Times a number of each token."""
        return replace(self, scalar=joined(self.scalar, scalar, algebra))

    def transposed(self, algebra: Algebra) -> Pair:
        """The transpose."""
        fixed = None if self.fixed is None else algebra.build("transpose", self.fixed)
        return replace(self, left=self.right, right=self.left, fixed=fixed)

    def after(self, matrix: Expr, algebra: Algebra) -> Pair:
        """`matrix` times it."""
        if self.fixed is not None:
            return replace(self, fixed=algebra.build("matmul", matrix, self.fixed))
        assert self.left is not None
        return replace(self, left=algebra.build("matmul", self.left, algebra.build("transpose", matrix)))

    def applied(self, row: Expr, algebra: Algebra) -> Expr:
        """It times a vector of each token, as a row."""
        if self.fixed is not None:
            found = algebra.build("matmul", row, algebra.build("transpose", self.fixed))
        else:
            assert self.left is not None
            assert self.right is not None
            found = algebra.build("mul", call("row_dot", self.right, row), self.left)
        return joined(self.factor, joined(self.scalar, found, algebra), algebra)


@dataclass(frozen=True, slots=True)
class Each:
    """A sum over tokens that is written already."""

    value: Expr

    def mean(self, algebra: Algebra) -> Expr:
        """The sum itself."""
        return self.value

    def times(self, factor: Expr, algebra: Algebra) -> Term:
        """Times a number or a matrix, entry by entry."""
        return Each(algebra.build("mul", factor, self.value))

    def over(self, divisor: Expr, algebra: Algebra) -> Term:
        """Divided by a number or a matrix, entry by entry."""
        return Each(algebra.build("div", self.value, divisor))

    def transposed(self, algebra: Algebra) -> Each:
        """The transpose."""
        return Each(algebra.build("transpose", self.value))

    def after(self, matrix: Expr, algebra: Algebra) -> Each:
        """`matrix` times it."""
        return Each(algebra.build("matmul", matrix, self.value))


Term: TypeAlias = "Pair | Each"


@dataclass(frozen=True, slots=True)
class Once:
    """The same for all tokens."""

    origin: Expr

    @property
    def once(self) -> Expr:
        """The value."""
        return self.origin

    @property
    def each(self) -> None:
        """Nothing differs."""
        return

    @property
    def terms(self) -> tuple[Term, ...]:
        """Nothing differs."""
        return ()

    def total(self, algebra: Algebra) -> Expr:
        """The value."""
        return self.origin

    def mean(self, algebra: Algebra) -> Expr:
        """The value."""
        return self.origin


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number of each token: `once`, the same for all, plus `each` [n, 1]."""

    origin: Expr
    once: Expr | None
    each: Expr | None

    def total(self, algebra: Algebra) -> Expr:
        """The numbers, [n, 1]."""
        return total(self.once, () if self.each is None else (self.each,), algebra)

    def mean(self, algebra: Algebra) -> Expr:
        """Their mean."""
        each = () if self.each is None else (call(AVERAGE, ref(WEIGHT), self.each),)
        return total(self.once, each, algebra)


@dataclass(frozen=True, slots=True)
class Row:
    """A vector of each token: the rows of `row` [n, features], with `column` their transposes."""

    origin: Expr
    row: Expr
    column: bool = False

    def total(self, algebra: Algebra) -> Expr:
        """The rows."""
        return self.row

    def mean(self, algebra: Algebra) -> Expr:
        """Their mean, a row or a column."""
        mean = call(AVERAGE, ref(WEIGHT), self.row)
        return algebra.build("transpose", mean) if self.column else mean


@dataclass(frozen=True, slots=True)
class Square:
    """A matrix of each token: `once`, the same for all, plus the sum of `terms`."""

    origin: Expr
    once: Expr | None
    terms: tuple[Term, ...]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The terms that have factors."""
        return tuple(term for term in self.terms if isinstance(term, Pair))

    def total(self, algebra: Algebra) -> Expr:
        """Matrices of single tokens are not written."""
        raise AssertionError("a matrix of each token")

    def mean(self, algebra: Algebra) -> Expr:
        """Their mean."""
        return total(self.once, tuple(term.mean(algebra) for term in self.terms), algebra)


Value: TypeAlias = "Once | Scalar | Row | Square"


def total(once: Expr | None, terms: tuple[Expr, ...], algebra: Algebra) -> Expr:
    """The sum of what there is."""
    found = terms if once is None else (once, *terms)
    return reduce(lambda a, b: algebra.build("add", a, b), found)
