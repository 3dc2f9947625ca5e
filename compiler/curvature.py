"""What the gradient of an objective moves with: the mixed second derivatives that are not zero everywhere.

A parameter behind a memory's key or value learns through the memory's update, so through the derivative of the inner
gradient with respect to that key or value. Which of these exist is read off the objective's expression: for every
piece, what it depends on with a derivative, and in which pairs with a second one. A derivative that is zero wherever it
exists (of `sign`; the second one of `abs`, of `lp(1)`) counts as zero. What is not known counts as not zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from itertools import product

from nsam.dsl.checked import Apply, Constant, Expr, Objective, Output, Read, Ref, State, Structure
from nsam.dsl.records import dataclass

FLAT = frozenset({"sign", "position", "rows", "cols"})
"""Functions whose derivative is zero wherever it exists."""
_STRAIGHT = frozenset(
    {"add", "sub", "neg", "abs", "relu", "min", "max", "clip", "sum", "mean", "transpose", "identity"}
)
"""Functions that are linear in all their arguments together, but for kinks."""
_PRODUCTS = frozenset({"mul", "dot", "outer", "matmul"})
_GRAD, _ERR = "self", "output"
"""The state; and what is added to a layer's output, the derivative with respect to which is the rule's `err`."""


@dataclass(frozen=True, slots=True)
class Moves:
    """Names that move `grad`, that move `err`, and that the memory is read at; `key`, `value` or a rule's parameter."""

    grad: frozenset[str]
    err: frozenset[str]
    read: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Names with a derivative that is not zero, and pairs (in both orders) with such a second derivative."""

    slopes: frozenset[str] = frozenset()
    bends: frozenset[tuple[str, str]] = frozenset()


def moves(objective: Objective, structure: Structure) -> Moves:
    """Return what the gradient of `objective`, over a memory of this structure, moves with (`like` is linear)."""
    if objective.expression is None:
        return Moves(frozenset(), frozenset(), frozenset())
    walk = _Walk(structure)
    bends = walk.piece(objective.expression).bends
    return Moves(
        frozenset(name for at, name in bends if at == _GRAD) - {_GRAD, _ERR},
        frozenset(name for at, name in bends if at == _ERR) - {_GRAD, _ERR},
        frozenset(walk.read_at),
    )


class _Walk:
    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.read_at: set[str] = set()

    def piece(self, expr: Expr) -> _Piece:
        if isinstance(expr, Constant | Output):
            return _Piece()
        if isinstance(expr, Ref):
            return _Piece(frozenset({expr.name}))
        if isinstance(expr, State):
            return self.read(_Piece())
        if isinstance(expr, Read):
            at = self.piece(expr.argument)
            self.read_at |= at.slopes
            return self.read(at)
        assert isinstance(expr, Apply)
        return _applied(expr, [self.piece(argument) for argument in expr.arguments])

    def read(self, x: _Piece) -> _Piece:
        """The memory read at `x`; a bare state is a layer whose input is 1."""
        depth, act = len(self.structure.sizes) - 1, self.structure.act or "identity"
        if self.structure.kind != "mlp":
            return _layer(x)
        hidden = x
        for _ in range(depth - 1):
            z = _layer(hidden)
            if self.structure.gated:
                hidden = _product(_activated(act, _layer(hidden)), z)
            else:
                hidden = _activated(act, z)
        last = _layer(hidden)
        return _straight([x, last]) if self.structure.residual else last


def _applied(expr: Apply, arguments: list[_Piece]) -> _Piece:
    name = expr.function
    if is_flat(expr):
        return _Piece()
    if name in _STRAIGHT or (name == "lp" and expr.option("p") == 1):
        return _straight(arguments)
    if name in _PRODUCTS:
        return _product(*arguments)
    if name == "div":
        return _product(arguments[0], _bent([arguments[1]]))
    if name == "pow" and isinstance(expr.arguments[1], Constant) and expr.arguments[1].value == 1:
        return arguments[0]
    return _bent(arguments)


def is_flat(expr: Apply) -> bool:
    """Whether the derivative of a function is zero wherever it exists: `sign(a)`, and a^0."""
    power = expr.arguments[1] if expr.function == "pow" else None
    return expr.function in FLAT or (isinstance(power, Constant) and power.value == 0)


def _layer(x: _Piece) -> _Piece:
    return _straight([_product(_Piece(frozenset({_GRAD})), x), _Piece(frozenset({_GRAD, _ERR}))])


def _activated(name: str, z: _Piece) -> _Piece:
    return _straight([z]) if name in _STRAIGHT else _bent([z])


def _straight(pieces: Iterable[_Piece]) -> _Piece:
    return reduce(lambda a, b: _Piece(a.slopes | b.slopes, a.bends | b.bends), pieces, _Piece())


def _product(a: _Piece, b: _Piece) -> _Piece:
    crossed = frozenset(product(a.slopes, b.slopes)) | frozenset(product(b.slopes, a.slopes))
    return _Piece(a.slopes | b.slopes, a.bends | b.bends | crossed)


def _bent(pieces: Iterable[_Piece]) -> _Piece:
    every = _straight(pieces)
    return _Piece(every.slopes, every.bends | frozenset(product(every.slopes, every.slopes)))
