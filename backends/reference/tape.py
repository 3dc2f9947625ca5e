"""A run-time tape over NumPy: reverse-mode differentiation of what was actually computed.

`Traced` is an array that remembers how it came to be. Operations on plain arrays record nothing. A gradient goes back
by the same operations, so that it can itself be on the tape and be differentiated again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]
Backward: TypeAlias = Callable[[Any], Any]

_clock = itertools.count()


class Traced:
    """An array on the tape: its value, and for each traced operand how a gradient goes back to it."""

    __slots__ = ("born", "links", "value")

    def __init__(self, value: Values, links: tuple[tuple[Traced, Backward], ...] = ()) -> None:
        self.value = value
        self.links = links
        self.born = next(_clock)


def plain(a: Any) -> Values:
    """Return the value of a traced or plain array."""
    return a.value if isinstance(a, Traced) else a


def record(value: Any, *links: tuple[Any, Backward]) -> Any:
    """Return `value`, traced when one of the operands in `links` (operand, backward) is."""
    traced = tuple((operand, backward) for operand, backward in links if isinstance(operand, Traced))
    value = np.asarray(value, dtype=np.float64)
    return Traced(value, traced) if traced else value


def narrowed(a: Values, shape: tuple[int, ...]) -> Values:
    """Sum over the axes along which an array of `shape` was broadcast to that of `a`."""
    while a.ndim > len(shape):
        a = a.sum(axis=0)
    for axis, size in enumerate(shape):
        if size == 1 and a.shape[axis] != 1:
            a = a.sum(axis=axis, keepdims=True)
    return a


def backward(loss: Any, targets: list[Any], since: int, add: Callable[[Any, Any], Any]) -> list[Any]:
    """Return d loss / d target for each target; zeros for a target that the loss does not depend on.

    What is older than `since` (see `Traced.born`) is constant. `add` sums the gradients of one node.
    """
    found: dict[int, Any] = {}
    if isinstance(loss, Traced):
        found[id(loss)] = np.ones_like(loss.value)
        for node in sorted(_reachable(loss, since), key=lambda n: n.born, reverse=True):
            gradient = found[id(node)]
            for operand, back in node.links:
                if operand.born >= since:
                    piece = back(gradient)
                    found[id(operand)] = add(found[id(operand)], piece) if id(operand) in found else piece
    return [found[id(target)] if id(target) in found else np.zeros_like(plain(target)) for target in targets]


def _reachable(loss: Traced, since: int) -> list[Traced]:
    seen: dict[int, Traced] = {}
    stack = [loss]
    while stack:
        node = stack.pop()
        if id(node) not in seen and node.born >= since:
            seen[id(node)] = node
            stack.extend(operand for operand, _ in node.links)
    return list(seen.values())
