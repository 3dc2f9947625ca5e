# ruff: noqa: D102 - each operation is documented once, in `Arrays`
"""`Arrays` in NumPy float64, with inner gradients from the run-time tape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nsam.backends.reference.arrays import Loss
from nsam.backends.reference.tape import Traced, Values, backward, plain, record, unbroadcast

_erf = np.vectorize(math.erf, otypes=[np.float64])


class NumpyArrays:
    """See `Arrays`. There is no outer gradient here, so `detach` changes nothing but the tape."""

    def array(self, value: Any) -> Values:
        return np.asarray(value, dtype=np.float64)

    def zeros(self, shape: tuple[int, ...]) -> Values:
        return np.zeros(shape)

    def shape(self, a: Any) -> tuple[int, ...]:
        return plain(a).shape

    def detach(self, a: Any) -> Values:
        return plain(a)

    def add(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)
        return record(x + y, (a, lambda g: unbroadcast(g, x.shape)), (b, lambda g: unbroadcast(g, y.shape)))

    def sub(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)
        return record(x - y, (a, lambda g: unbroadcast(g, x.shape)), (b, lambda g: unbroadcast(-g, y.shape)))

    def mul(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)
        return record(x * y, (a, lambda g: unbroadcast(g * y, x.shape)), (b, lambda g: unbroadcast(g * x, y.shape)))

    def div(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)
        return record(
            x / y, (a, lambda g: unbroadcast(g / y, x.shape)), (b, lambda g: unbroadcast(-g * x / (y * y), y.shape))
        )

    def power(self, a: Any, exponent: float) -> Any:
        x = plain(a)
        if exponent == 0:
            return np.ones_like(x)
        return record(x**exponent, (a, lambda g: g * exponent * x ** (exponent - 1)))

    def matmul(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)

        def to_left(g: Values) -> Values:
            if x.ndim == 1:
                return y @ g if y.ndim == 2 else g * y
            return np.outer(g, y) if y.ndim == 1 else g @ y.T

        def to_right(g: Values) -> Values:
            if y.ndim == 1:
                return x.T @ g if x.ndim == 2 else g * x
            return np.outer(x, g) if x.ndim == 1 else x.T @ g

        return record(x @ y, (a, to_left), (b, to_right))

    def exp(self, a: Any) -> Any:
        y = np.exp(plain(a))
        return record(y, (a, lambda g: g * y))

    def log(self, a: Any) -> Any:
        x = plain(a)
        return record(np.log(x), (a, lambda g: g / x))

    def sin(self, a: Any) -> Any:
        x = plain(a)
        return record(np.sin(x), (a, lambda g: g * np.cos(x)))

    def cos(self, a: Any) -> Any:
        x = plain(a)
        return record(np.cos(x), (a, lambda g: -g * np.sin(x)))

    def tanh(self, a: Any) -> Any:
        y = np.tanh(plain(a))
        return record(y, (a, lambda g: g * (1 - y * y)))

    def sigmoid(self, a: Any) -> Any:
        x = plain(a)
        small = np.exp(-np.abs(x))
        y = np.where(x >= 0, 1 / (1 + small), small / (1 + small))
        return record(y, (a, lambda g: g * y * (1 - y)))

    def softplus(self, a: Any) -> Any:
        x = plain(a)
        slope = plain(self.sigmoid(x))
        return record(np.logaddexp(0.0, x), (a, lambda g: g * slope))

    def erf(self, a: Any) -> Any:
        x = plain(a)
        return record(_erf(x), (a, lambda g: g * (2 / math.sqrt(math.pi)) * np.exp(-x * x)))

    def absolute(self, a: Any) -> Any:
        x = plain(a)
        return record(np.abs(x), (a, lambda g: g * np.sign(x)))

    def sign(self, a: Any) -> Any:
        return np.sign(plain(a))

    def sqrt(self, a: Any) -> Any:
        y = np.sqrt(plain(a))
        slope = np.where(y > 0, 0.5 / np.where(y > 0, y, 1.0), 0.0)
        return record(y, (a, lambda g: g * slope))

    def maximum(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)
        share = np.where(x == y, 0.5, (x > y).astype(np.float64))
        return record(
            np.maximum(x, y),
            (a, lambda g: unbroadcast(g * share, x.shape)),
            (b, lambda g: unbroadcast(g * (1 - share), y.shape)),
        )

    def minimum(self, a: Any, b: Any) -> Any:
        x, y = plain(a), plain(b)
        share = np.where(x == y, 0.5, (x < y).astype(np.float64))
        return record(
            np.minimum(x, y),
            (a, lambda g: unbroadcast(g * share, x.shape)),
            (b, lambda g: unbroadcast(g * (1 - share), y.shape)),
        )

    def total(self, a: Any) -> Any:
        x = plain(a)
        return record(x.sum(), (a, lambda g: np.broadcast_to(g, x.shape)))

    def total_last(self, a: Any) -> Any:
        x = plain(a)
        return record(x.sum(axis=-1, keepdims=True), (a, lambda g: np.broadcast_to(g, x.shape)))

    def largest_last(self, a: Any) -> Values:
        return np.asarray(np.max(plain(a), axis=-1, keepdims=True), dtype=np.float64)

    def transpose(self, a: Any) -> Any:
        return record(plain(a).T, (a, lambda g: g.T))

    def reshape(self, a: Any, shape: tuple[int, ...]) -> Any:
        x = plain(a)
        return record(x.reshape(shape), (a, lambda g: g.reshape(x.shape)))

    def take(self, a: Any, index: int | slice) -> Any:
        x = plain(a)

        def back(g: Values) -> Values:
            spread = np.zeros_like(x)
            spread[index] = g
            return spread

        return record(x[index], (a, back))

    def stack(self, items: Sequence[Any]) -> Any:
        values = np.stack([plain(item) for item in items])
        return record(values, *((item, lambda g, i=i: g[i]) for i, item in enumerate(items)))

    def concatenate(self, items: Sequence[Any]) -> Any:
        sizes = [plain(item).shape[0] for item in items]
        ends = np.cumsum(sizes)
        links = [
            (item, lambda g, e=end, s=size: g[e - s : e]) for item, end, size in zip(items, ends, sizes, strict=True)
        ]
        return record(np.concatenate([plain(item) for item in items]), *links)

    def derivatives(self, function: Loss, at: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        variables = [Traced(plain(a)) for a in at]
        loss, intermediates, kept = function(list(variables))
        found = backward(loss, [*variables, *intermediates])
        return list(found[: len(at)]), list(found[len(at) :]), [plain(a) for a in kept]
