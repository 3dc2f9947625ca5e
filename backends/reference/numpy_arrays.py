# ruff: noqa: D102 - each operation is documented once, in `Arrays`
"""`Arrays` in NumPy float64, with gradients from the run-time tape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nsam.backends.reference.arrays import Loss
from nsam.backends.reference.tape import Backward, Traced, Values, backward, narrowed, plain, record

_erf = np.vectorize(math.erf, otypes=[np.float64])


class NumpyArrays:
    """See `Arrays`. With `outer`, inner gradients are themselves part of the tape, for `gradient` to go through."""

    def __init__(self, outer: bool = False) -> None:
        self.outer = outer
        self._still = False

    def array(self, value: Any) -> Values:
        return np.asarray(value, dtype=np.float64)

    def zeros(self, shape: tuple[int, ...]) -> Values:
        return np.zeros(shape)

    def shape(self, a: Any) -> tuple[int, ...]:
        return plain(a).shape

    def copy(self, a: Any) -> Any:
        return self._made(plain(a).copy(), (a, _same))

    def detach(self, a: Any) -> Values:
        return plain(a)

    def add(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)
        return self._made(x + y, (a, lambda g: self._narrow(g, x.shape)), (b, lambda g: self._narrow(g, y.shape)))

    def sub(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)
        to_right = lambda g: self._narrow(self.mul(g, self.array(-1.0)), y.shape)  # noqa: E731
        return self._made(x - y, (a, lambda g: self._narrow(g, x.shape)), (b, to_right))

    def mul(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)
        to_left = lambda g: self._narrow(self.mul(g, b), x.shape)  # noqa: E731
        return self._made(x * y, (a, to_left), (b, lambda g: self._narrow(self.mul(g, a), y.shape)))

    def div(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)

        def to_right(g: Any) -> Any:
            return self._narrow(self.div(self.mul(self.mul(g, self.array(-1.0)), a), self.mul(b, b)), y.shape)

        return self._made(x / y, (a, lambda g: self._narrow(self.div(g, b), x.shape)), (b, to_right))

    def known(self, a: Any) -> float | None:
        return None if isinstance(a, Traced) or np.ndim(a) else float(a)

    def power(self, a: Any, exponent: float) -> Any:
        x = plain(a)
        if exponent == 0:
            return np.ones_like(x)
        if 0 < exponent < 2 and exponent != 1 and not x.all():
            # A derivative, or that of the derivative, has no bound at 0: there the powers see 1, and are 0.
            there = x != 0
            return self._where(there, self.power(self._where(there, a, 1.0), exponent), 0.0)

        def back(g: Any) -> Any:
            return self.mul(self.mul(g, self.array(exponent)), self.power(a, exponent - 1))

        return self._made(x**exponent, (a, back))

    def matmul(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)

        def to_left(g: Any) -> Any:
            if x.ndim == 1:
                return self.matmul(b, g) if y.ndim == 2 else self.mul(g, b)
            return self._outer(g, b) if y.ndim == 1 else self.matmul(g, self.transpose(b))

        def to_right(g: Any) -> Any:
            if y.ndim == 1:
                return self.matmul(self.transpose(a), g) if x.ndim == 2 else self.mul(g, a)
            return self._outer(a, g) if x.ndim == 1 else self.matmul(self.transpose(a), g)

        return self._made(x @ y, (a, to_left), (b, to_right))

    def exp(self, a: Any) -> Any:
        result = self._made(np.exp(plain(a)), (a, lambda g: self.mul(g, result)))
        return result

    def log(self, a: Any) -> Any:
        return self._made(np.log(plain(a)), (a, lambda g: self.div(g, a)))

    def sin(self, a: Any) -> Any:
        return self._made(np.sin(plain(a)), (a, lambda g: self.mul(g, self.cos(a))))

    def cos(self, a: Any) -> Any:
        return self._made(np.cos(plain(a)), (a, lambda g: self.mul(self.mul(g, self.array(-1.0)), self.sin(a))))

    def tanh(self, a: Any) -> Any:
        one = self.array(1.0)
        result = self._made(np.tanh(plain(a)), (a, lambda g: self.mul(g, self.sub(one, self.mul(result, result)))))
        return result

    def sigmoid(self, a: Any) -> Any:
        x = plain(a)
        small, one = np.exp(-np.abs(x)), self.array(1.0)
        y = np.where(x >= 0, 1 / (1 + small), small / (1 + small))
        result = self._made(y, (a, lambda g: self.mul(self.mul(g, result), self.sub(one, result))))
        return result

    def softplus(self, a: Any) -> Any:
        return self._made(np.logaddexp(0.0, plain(a)), (a, lambda g: self.mul(g, self.sigmoid(a))))

    def erf(self, a: Any) -> Any:
        slope = self.array(2 / math.sqrt(math.pi))

        def back(g: Any) -> Any:
            return self.mul(self.mul(g, slope), self.exp(self.mul(self.mul(a, a), self.array(-1.0))))

        return self._made(_erf(plain(a)), (a, back))

    def absolute(self, a: Any) -> Any:
        x = plain(a)
        return self._made(np.abs(x), (a, lambda g: self.mul(g, np.sign(x))))

    def sign(self, a: Any) -> Any:
        return np.sign(plain(a))

    def sqrt(self, a: Any) -> Any:
        y = np.sqrt(plain(a))
        positive = y > 0

        def back(g: Any) -> Any:
            # Division must not see the zero at all, or its own derivative would be infinite there.
            slope = self.div(self.array(0.5), self._where(positive, result, 1.0))
            return self._where(positive, self.mul(g, slope), 0.0)

        result = self._made(y, (a, back))
        return result

    def maximum(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)
        return self._larger(np.maximum(x, y), (a, b), (x > y).astype(np.float64), x == y)

    def minimum(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)
        return self._larger(np.minimum(x, y), (a, b), (x < y).astype(np.float64), x == y)

    def total(self, a: Any) -> Any:
        x = plain(a)
        return self._made(x.sum(), (a, lambda g: self._widen(g, x.shape)))

    def total_last(self, a: Any) -> Any:
        x = plain(a)
        return self._made(x.sum(axis=-1, keepdims=True), (a, lambda g: self._widen(g, x.shape)))

    def largest_last(self, a: Any) -> Values:
        return np.asarray(np.max(plain(a), axis=-1, keepdims=True), dtype=np.float64)

    def transpose(self, a: Any) -> Any:
        return self._made(plain(a).T, (a, self.transpose))

    def reshape(self, a: Any, shape: tuple[int, ...]) -> Any:
        x = plain(a)
        return self._made(x.reshape(shape), (a, lambda g: self.reshape(g, x.shape)))

    def take(self, a: Any, index: int | slice) -> Any:
        x = plain(a)
        return self._made(x[index], (a, lambda g: self._spread(g, x.shape, index)))

    def stack(self, items: Sequence[Any]) -> Any:
        values = np.stack([plain(item) for item in items])
        return self._made(values, *((item, lambda g, i=i: self.take(g, i)) for i, item in enumerate(items)))

    def concatenate(self, items: Sequence[Any]) -> Any:
        sizes = [plain(item).shape[0] for item in items]
        ends = np.cumsum(sizes)
        links = [
            (item, lambda g, e=end, s=size: self.take(g, slice(e - s, e)))
            for item, end, size in zip(items, ends, sizes, strict=True)
        ]
        return self._made(np.concatenate([plain(item) for item in items]), *links)

    def derivatives(self, function: Loss, at: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        held = [a if self.outer and isinstance(a, Traced) else plain(a) for a in at]
        variables = [Traced(plain(a), ((a, _same),) if isinstance(a, Traced) else ()) for a in held]
        loss, intermediates, kept = function(list(variables))
        with self._quiet(not self.outer):
            since = variables[0].born if variables else 0
            found = backward(loss, [*variables, *intermediates], since, self.add)
        return list(found[: len(at)]), list(found[len(at) :]), kept if self.outer else [plain(a) for a in kept]

    def leaf(self, a: Any) -> Traced:
        return Traced(plain(a))

    def gradient(self, loss: Any, at: list[Any]) -> list[Values]:
        with self._quiet(True):
            return backward(loss, at, min(a.born for a in at), self.add)

    # --- what only gradients need ------------------------------------------------------------------

    def _made(self, value: Any, *links: tuple[Any, Backward]) -> Any:
        return np.asarray(value, dtype=np.float64) if self._still else record(value, *links)

    @contextmanager
    def _quiet(self, still: bool) -> Iterator[None]:
        """Record nothing meanwhile."""
        before, self._still = self._still, still
        try:
            yield
        finally:
            self._still = before

    def _narrow(self, a: Any, shape: tuple[int, ...]) -> Any:
        x = plain(a)
        return a if x.shape == shape else self._made(narrowed(x, shape), (a, lambda g: self._widen(g, x.shape)))

    def _widen(self, a: Any, shape: tuple[int, ...]) -> Any:
        x = plain(a)
        return self._made(np.broadcast_to(x, shape), (a, lambda g: self._narrow(g, x.shape)))

    def _outer(self, a: Any, b: Any) -> Any:
        return self.matmul(self.reshape(a, (-1, 1)), self.reshape(b, (1, -1)))

    def _where(self, chosen: NDArray[np.bool_], a: Any, other: float) -> Any:
        return self._made(np.where(chosen, plain(a), other), (a, lambda g: self._where(chosen, g, 0.0)))

    def _spread(self, a: Any, shape: tuple[int, ...], index: int | slice) -> Any:
        spread = np.zeros(shape)
        spread[index] = plain(a)
        return self._made(spread, (a, lambda g: self.take(g, index)))

    def _larger(self, value: Values, operands: tuple[Any, Any], first: Values, same: NDArray[np.bool_]) -> Any:
        """One of two, with the gradient to the one that it is, or half to each where they are the same."""
        a, b = operands
        x, y, share = plain(a), plain(b), np.where(same, 0.5, first)
        return self._made(
            value,
            (a, lambda g: self._narrow(self.mul(g, share), x.shape)),
            (b, lambda g: self._narrow(self.mul(g, 1 - share), y.shape)),
        )


def _same(g: Any) -> Any:
    return g
