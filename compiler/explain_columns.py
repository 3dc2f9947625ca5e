"""Rules in the paper's orientation: a layer's input and error are columns.

A rule computes with rows (a token's `key` is 1 × n, so that several tokens are as many rows and nothing else changes),
and its straight-line form says `key selfᵀ` where the paper writes M x. Here products of rows are turned into products
of columns: x Mᵀ becomes M x, and gᵀ x becomes g xᵀ. Values are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from nsam.compiler.rule_algebra import REDUCTIONS, call
from nsam.dsl.checked import Apply, Expr, Ref

Kind = Literal["row", "column", "other"]
_NOT_ELEMENTWISE = REDUCTIONS | {"matmul", "transpose", "outer", "orthogonalize", "normalize", "rows", "cols"}


@dataclass
class Columns:
    """Turns expressions; `rows` are the names that stand for rows and are shown as columns, `scalar` tells numbers."""

    scalar: Callable[[Expr], bool]
    rows: set[str] = field(default_factory=set)

    def assigned(self, target: str, value: Expr) -> Expr:
        """The right side of an assignment as it is shown; a target that is a row is a column from now on."""
        shown, kind = self.turn(value)
        if kind == "row":
            self.rows.add(target)
        return shown

    def turn(self, expr: Expr) -> tuple[Expr, Kind]:
        """`expr` with columns for rows. For a row the result is its transpose; for anything else its value."""
        if isinstance(expr, Ref):
            return expr, "row" if expr.name in self.rows else "other"
        if not isinstance(expr, Apply):
            return expr, "other"
        parts = [self.turn(a) for a in expr.arguments]
        if expr.function == "transpose":
            inner, kind = parts[0]
            turned: dict[Kind, Kind] = {"row": "column", "column": "row"}
            return (inner, turned[kind]) if kind in turned else (self.rebuilt(expr, [inner]), "other")
        if expr.function == "matmul":
            return self.product(expr, *parts)
        kinds = {kind for (_, kind), a in zip(parts, expr.arguments, strict=True) if not self.scalar(a)}
        if len(kinds) == 1 and expr.function not in _NOT_ELEMENTWISE:
            return self.rebuilt(expr, [part for part, _ in parts]), kinds.pop()
        if expr.function in REDUCTIONS and len(kinds) == 1:
            return self.rebuilt(expr, [part for part, _ in parts]), "other"
        return self.rebuilt(expr, [plain(*part) for part in parts]), "other"

    def product(self, expr: Apply, left: tuple[Expr, Kind], right: tuple[Expr, Kind]) -> tuple[Expr, Kind]:
        """A product of matrices, rows and columns."""
        (a, kind), (b, other) = left, right
        if kind == "row" and other == "other":
            return call("matmul", _transposed(b), a), "row"
        if kind == "other" and other == "column":
            return call("matmul", a, b), "column"
        if kind == "column" and other == "row":
            return call("outer", a, b), "other"
        return self.rebuilt(expr, [plain(a, kind), plain(b, other)]), "other"

    def rebuilt(self, expr: Apply, arguments: list[Expr]) -> Expr:
        """`expr` with other arguments."""
        return Apply(expr.type, expr.span, expr.function, tuple(arguments), expr.options)


def plain(expr: Expr, kind: Kind) -> Expr:
    """The value itself: of a row, which is kept as its transpose, the transpose."""
    return _transposed(expr) if kind == "row" else expr


def _transposed(expr: Expr) -> Expr:
    if isinstance(expr, Apply) and expr.function == "transpose":
        return expr.arguments[0]
    return call("transpose", expr)
