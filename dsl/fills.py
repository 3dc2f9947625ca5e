"""The shapes of `zeros`, `ones` and `identity` in a rule: each takes the one that its place asks for.

Beside something in an elementwise operation a fill has that one's shape, what becomes `self` or a state has its shape,
and a factor of a product is square. The checked program holds fills with these shapes, so that every backend makes the
same matrices; where nothing gives a shape, as in `sum(ones)`, that is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from nsam.dsl.checked import Apply, Expr, Read, Ref, State, ValueType, walk
from nsam.dsl.findings import Findings
from nsam.dsl.functions import RULE_CONSTANTS
from nsam.dsl.records import dataclass
from nsam.dsl.sizes import Size
from nsam.dsl.types import ANY, broadcast

Shape: TypeAlias = tuple[Size, ...]

_ALONE = frozenset({"sum", "mean", "norm", "root_mean_square", "rows", "cols"})
"""Functions of one matrix whose result says nothing about its shape."""


def is_fill(expr: Expr) -> bool:
    """Whether `expr` is `zeros`, `ones` or `identity`."""
    return isinstance(expr, Apply) and expr.function in RULE_CONSTANTS and not expr.arguments


def is_open(expr: Expr) -> bool:
    """Whether the shape of `expr` depends on its place."""
    return ANY in expr.type.shape


def filled(shape: Shape, wanted: Shape) -> Shape:
    """Return `shape` with its open axes as in `wanted`, the two aligned at the end."""
    offset = len(wanted) - len(shape)
    return tuple(
        wanted[axis + offset] if size == ANY and axis + offset >= 0 else size for axis, size in enumerate(shape)
    )


@dataclass(frozen=True, slots=True)
class Places:
    """Gives the fills of a rule their shapes. `reads` is the size of the vectors that a memory is read at."""

    findings: Findings
    reads: Callable[[Read], Size]

    def settled(self, expr: Expr, wanted: Shape = ()) -> Expr:
        """Return `expr` with every fill shaped, where `wanted` is the shape that its place asks for, () for none.

        Reports N0214 at a fill whose place asks for none.
        """
        parts = [part for part in walk(expr) if is_open(part)]
        if not parts or any(isinstance(part, Ref | State) for part in parts):
            return expr  # a name without a shape is of a declaration that was refused: it stands for anything
        shape = filled(expr.type.shape, wanted)
        type_ = ValueType(shape, expr.type.per, expr.type.vocab)
        if isinstance(expr, Read):
            inner = filled(expr.argument.type.shape, (*shape[:-1], self.reads(expr)))
            return replace(expr, type=type_, argument=self.settled(expr.argument, inner))
        assert isinstance(expr, Apply), f"{type(expr).__name__} without a shape"
        if is_fill(expr) and ANY in shape:
            raise self.findings.error(
                "N0214",
                f"nothing here says which shape `{expr.function}` has",
                expr.span,
                "no shape",
                help=f"`{expr.function} + 0 * self` has the shape of `self`",
            )
        asked = _asked(expr, shape)
        arguments = (self.settled(argument, each) for argument, each in zip(expr.arguments, asked, strict=True))
        return replace(expr, type=type_, arguments=tuple(arguments))


def _asked(expr: Apply, shape: Shape) -> Sequence[Shape]:
    """Return the shapes that `expr`, itself of `shape`, asks of its arguments."""
    shapes = [argument.type.shape for argument in expr.arguments]
    if expr.function == "matmul":
        return _factors(shapes[0], shapes[1], shape)
    if expr.function == "transpose":
        return [shape[::-1]]
    if expr.function in _ALONE or expr.function == "outer":
        return [()] * len(shapes)
    if expr.function == "dot":
        return [broadcast([argument.type for argument in expr.arguments])] * 2
    return [shape] * len(shapes)


def _factors(left: Shape, right: Shape, shape: Shape) -> Sequence[Shape]:
    """A factor whose shape is open is square; of two such, each is square where the product is."""
    if ANY in left and ANY in right:
        square = shape if len(shape) == 2 and shape[0] == shape[1] else ()
        return [square, square]
    return [
        tuple(right[0] if size == ANY else size for size in left),
        tuple(left[-1] if size == ANY else size for size in right),
    ]
