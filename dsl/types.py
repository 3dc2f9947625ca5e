"""Types of values: how shapes combine, and what is reported when they do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from nsam.dsl.checked import ValueType
from nsam.dsl.sizes import Poly, Size, equal

Per = Literal["token", "sequence", "constant"]

ROWS = Poly.variable("rows of self")
COLUMNS = Poly.variable("columns of self")
ANY = Poly.variable("any size", None)
"""Axes of the matrices in a rule; `ANY` is an axis of `identity`, `zeros` and `ones`, which fit everything."""

SCALAR = ValueType((), "constant")
_OF_RULES = frozenset({*ROWS.names, *COLUMNS.names})
_RANK: dict[str, int] = {"constant": 0, "sequence": 1, "token": 2}
_PER: tuple[Per, ...] = ("constant", "sequence", "token")


@dataclass(eq=False)
class ShapeProblem(Exception):
    """Arguments do not fit. `arguments` are the indices at fault, `code` the diagnostic to report."""

    message: str
    arguments: tuple[int, ...] = ()
    code: str = "N0214"
    help: str | None = None


def join(pers: Iterable[str]) -> Per:
    """Return how often a value made of parts changes: as often as the part that changes most."""
    return _PER[max((_RANK[per] for per in pers), default=0)]


def at_least_per(type_: ValueType, per: Per) -> ValueType:
    """Return `type_` varying at least as often as `per`."""
    return ValueType(type_.shape, join((type_.per, per)), type_.vocab)


def shape_text(type_: ValueType) -> str:
    """Return `[dim]`, `[]`, `token(vocab)`: a type as programs write it."""
    if type_.vocab is not None:
        return f"token({type_.vocab})"
    return f"[{', '.join(str(size) for size in type_.shape)}]"


def same_size(left: Size, right: Size) -> bool:
    """Whether two sizes are equal, or may be once parameters are given."""
    if left == right:
        return True
    if isinstance(left, Poly) and isinstance(right, Poly) and left.names | right.names <= _OF_RULES:
        return False
    return equal(left, right) is not False


def same_shape(left: Sequence[Size], right: Sequence[Size]) -> bool:
    """Whether two shapes are equal, or may be once parameters are given."""
    return len(left) == len(right) and all(same_size(a, b) for a, b in zip(left, right, strict=True))


def _broadcast_size(left: Size, right: Size) -> Size | None:
    if left == 1 or left == ANY:
        return right
    if right == 1 or right == ANY:
        return left
    if not same_size(left, right):
        return None
    return left if isinstance(left, int) else right


def broadcast(types: Sequence[ValueType]) -> tuple[Size, ...]:
    """Return the shape of an elementwise operation: axes are aligned at the end, axes of size 1 stretch.

    Raises ShapeProblem with the two arguments that do not fit.
    """
    result: tuple[Size, ...] = ()
    origin = 0
    for index, type_ in enumerate(types):
        longer, shorter = (result, type_.shape) if len(result) >= len(type_.shape) else (type_.shape, result)
        offset = len(longer) - len(shorter)
        sizes = list(longer)
        for axis, size in enumerate(shorter):
            common = _broadcast_size(longer[axis + offset], size)
            if common is None:
                message = f"shapes {shape_text(types[origin])} and {shape_text(type_)} do not fit"
                raise ShapeProblem(message, (origin, index))
            sizes[axis + offset] = common
        if tuple(sizes) != result:
            origin = index
        result = tuple(sizes)
    return result


def matmul(left: ValueType, right: ValueType) -> tuple[Size, ...]:
    """Return the shape of `left @ right`: matrices, or a vector on the left (one row) or the right (one column)."""
    if not left.shape or not right.shape:
        message = f"`@` multiplies matrices and vectors, not {shape_text(left)} and {shape_text(right)}"
        raise ShapeProblem(message, (0, 1), help="use `*` to scale")
    inner = right.shape[0]
    if left.shape[-1] != ANY and inner != ANY and not same_size(left.shape[-1], inner):
        raise ShapeProblem(f"`@` cannot multiply {shape_text(left)} by {shape_text(right)}", (0, 1))
    first = [right.shape[0] if size == ANY else size for size in left.shape[:-1]]
    last = [left.shape[-1] if size == ANY else size for size in right.shape[1:]]
    return (*first, *last)
