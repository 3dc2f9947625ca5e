"""The few array operations that the interpreter is written in; NumPy and torch implement them in float64.

Everything above this file (functions, structures, rules, memories) is written once, against `Arrays`. An array is
whatever the implementation says it is: `Any` here, because the two have no common type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

Array: TypeAlias = Any
Loss: TypeAlias = "Callable[[list[Array]], tuple[Array, list[Array], list[Array]]]"


class Arrays(Protocol):
    """Elementary operations on float64 arrays of 0, 1 or 2 axes (attention stacks tokens on the first).

    Operands are arrays, never bare Python numbers; binary operations broadcast as NumPy does.
    """

    def array(self, value: Any) -> Array:
        """Return `value` (a number, nested lists, or an array) as an array."""

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Return zeros."""

    def shape(self, a: Array) -> tuple[int, ...]:
        """Return the shape of `a`."""

    def copy(self, a: Array) -> Array:
        """Return `a` in memory of its own: whatever is written into that of `a` later does not change it."""

    def detach(self, a: Array) -> Array:
        """Return `a` as a constant: no outer gradient flows through it."""

    def add(self, a: Array, b: Array) -> Array:
        """Return a + b."""

    def sub(self, a: Array, b: Array) -> Array:
        """Return a - b."""

    def mul(self, a: Array, b: Array) -> Array:
        """Return a * b, elementwise."""

    def div(self, a: Array, b: Array) -> Array:
        """Return a / b."""

    def known(self, a: Array) -> float | None:
        """Return a number that no gradient is asked for; None for other values."""

    def power(self, a: Array, exponent: float) -> Array:
        """Return a ** exponent, elementwise."""

    def matmul(self, a: Array, b: Array) -> Array:
        """Return the product of matrices and vectors (at least one axis each)."""

    def exp(self, a: Array) -> Array:
        """Return the exponential."""

    def log(self, a: Array) -> Array:
        """Return the natural logarithm."""

    def sin(self, a: Array) -> Array:
        """Return the sine."""

    def cos(self, a: Array) -> Array:
        """Return the cosine."""

    def tanh(self, a: Array) -> Array:
        """Return the hyperbolic tangent."""

    def sigmoid(self, a: Array) -> Array:
        """Return 1 / (1 + exp(-a)) without overflow."""

    def softplus(self, a: Array) -> Array:
        """Return log(1 + exp(a)) without overflow."""

    def erf(self, a: Array) -> Array:
        """Return the error function."""

    def absolute(self, a: Array) -> Array:
        """Return |a|, with derivative 0 at 0."""

    def sign(self, a: Array) -> Array:
        """Return the sign, with derivative 0 everywhere."""

    def sqrt(self, a: Array) -> Array:
        """Return the square root, with derivative 0 at 0."""

    def maximum(self, a: Array, b: Array) -> Array:
        """Return the larger one; where equal, each gets half of the gradient."""

    def minimum(self, a: Array, b: Array) -> Array:
        """Return the smaller one; where equal, each gets half of the gradient."""

    def total(self, a: Array) -> Array:
        """Return the sum of all elements."""

    def total_last(self, a: Array) -> Array:
        """Return the sum over the last axis, which is kept with size 1."""

    def largest_last(self, a: Array) -> Array:
        """Return the maximum over the last axis, kept with size 1, as a constant."""

    def transpose(self, a: Array) -> Array:
        """Return the transposed matrix."""

    def reshape(self, a: Array, shape: tuple[int, ...]) -> Array:
        """Return `a` in row-major order under another shape."""

    def take(self, a: Array, index: int | slice) -> Array:
        """Return `a[index]`, along the first axis."""

    def stack(self, items: Sequence[Array]) -> Array:
        """Return the arrays stacked along a new first axis."""

    def concatenate(self, items: Sequence[Array]) -> Array:
        """Return the arrays joined along their first axis."""

    def derivatives(self, function: Loss, at: list[Array]) -> tuple[list[Array], list[Array], list[Array]]:
        """Differentiate a scalar. `function(variables)` gets copies of `at` and returns (loss, intermediates, kept).

        Returns d loss / d variables, d loss / d intermediates (zeros where the loss does not depend on them), and the
        values of `kept`. Whatever `function` closes over is a constant here; all results are part of the outer graph.
        """

    def leaf(self, a: Array) -> Array:
        """Return `a` as a variable of its own, at which `gradient` can be taken."""

    def gradient(self, loss: Array, at: list[Array]) -> list[Array]:
        """Return d loss / d leaf for each of the leaves `at`, through everything computed since, inner gradients too.

        Zeros where the loss does not depend on one. It may be asked for again.
        """
