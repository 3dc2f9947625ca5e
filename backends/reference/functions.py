"""The language's functions without parameters, in terms of `Arrays`.

Values are those of one token, or in a rule those of one matrix: reductions (`sum`, `dot`, `norm`, …) go over all
elements; `normalize` and `softmax` go along the last axis, so that a matrix is a batch of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from nsam.backends.reference.arrays import Array, Arrays
from nsam.dsl.checked import Apply

NORMALIZE_FLOOR = 1e-6
ROOT_MEAN_SQUARE_FLOOR = 1e-12
ORTHOGONALIZE_FLOOR = 1e-7
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ROPE_BASE = 10_000.0


# --- activations ---------------------------------------------------------------------------------


def relu(ops: Arrays, a: Array) -> Array:
    """Return max(a, 0), with derivative 0 at 0."""
    return ops.mul(a, ops.maximum(ops.sign(a), ops.array(0.0)))


def silu(ops: Arrays, a: Array) -> Array:
    """Return a · sigmoid(a)."""
    return ops.mul(a, ops.sigmoid(a))


def gelu(ops: Arrays, a: Array) -> Array:
    """Return a · Φ(a), exactly."""
    cumulative = ops.add(ops.array(1.0), ops.erf(ops.mul(a, ops.array(1 / math.sqrt(2)))))
    return ops.mul(ops.mul(a, ops.array(0.5)), cumulative)


def gelu_tanh(ops: Arrays, a: Array) -> Array:
    """Return a/2 (1 + tanh(√(2/π) (a + 0.044715 a³)))."""
    near = clip(ops, a, ops.array(-10.0), ops.array(10.0))  # ±1 beyond; the cube of a large one would be infinite
    cube = ops.mul(ops.array(0.044715), ops.mul(near, ops.mul(near, near)))
    inner = ops.mul(ops.array(math.sqrt(2 / math.pi)), ops.add(near, cube))
    return ops.mul(ops.mul(a, ops.array(0.5)), ops.add(ops.array(1.0), ops.tanh(inner)))


# --- reductions ----------------------------------------------------------------------------------


def count(ops: Arrays, a: Array) -> int:
    """Return the number of elements."""
    return math.prod(ops.shape(a))


def mean(ops: Arrays, a: Array) -> Array:
    """Return the mean of all elements."""
    return ops.div(ops.total(a), ops.array(float(count(ops, a))))


def dot(ops: Arrays, a: Array, b: Array) -> Array:
    """Return Σ aᵢ bᵢ over all elements."""
    return ops.total(ops.mul(a, b))


def norm(ops: Arrays, a: Array) -> Array:
    """Return the Euclidean (Frobenius) norm."""
    return ops.sqrt(dot(ops, a, a))


def root_mean_square(ops: Arrays, a: Array) -> Array:
    """Return √mean(a²), at least 1e-12."""
    return ops.maximum(ops.sqrt(mean(ops, ops.mul(a, a))), ops.array(ROOT_MEAN_SQUARE_FLOOR))


# --- along the last axis -------------------------------------------------------------------------


def softmax(ops: Arrays, a: Array) -> Array:
    """Return exp(a) / Σ exp(a) along the last axis."""
    powers = ops.exp(ops.sub(a, ops.largest_last(a)))
    return ops.div(powers, ops.total_last(powers))


def normalize(ops: Arrays, a: Array) -> Array:
    """Return a / max(‖a‖, 1e-6) along the last axis."""
    length = ops.sqrt(ops.total_last(ops.mul(a, a)))
    return ops.div(a, ops.maximum(length, ops.array(NORMALIZE_FLOOR)))


def split(ops: Arrays, a: Array, heads: int) -> list[Array]:
    """Return the `heads` equal slices of a vector."""
    size = ops.shape(a)[0] // heads
    return [ops.take(a, slice(h * size, (h + 1) * size)) for h in range(heads)]


def per_head(ops: Arrays, function: Callable[[Array], Array], a: Array, heads: int | None) -> Array:
    """Apply `function` to each head's slice of a vector, or to all of it when there are no heads."""
    if heads is None or heads == 1:
        return function(a)
    return ops.concatenate([function(part) for part in split(ops, a, heads)])


def rope(ops: Arrays, a: Array, position: int, base: float = ROPE_BASE) -> Array:
    """Rotate the pairs (aᵢ, aᵢ₊ₕ), h half the size, by position · base^(−i/h)."""
    half = ops.shape(a)[0] // 2
    angles = [position * base ** (-i / half) for i in range(half)]
    cos, sin = ops.array([math.cos(x) for x in angles]), ops.array([math.sin(x) for x in angles])
    low, high = ops.take(a, slice(0, half)), ops.take(a, slice(half, 2 * half))
    return ops.concatenate(
        [ops.sub(ops.mul(low, cos), ops.mul(high, sin)), ops.add(ops.mul(low, sin), ops.mul(high, cos))]
    )


# --- matrices ------------------------------------------------------------------------------------


def matmul(ops: Arrays, a: Array, b: Array) -> Array:
    """Return a @ b; a number stands for a 1 × 1 matrix, so it scales."""
    if not ops.shape(a) or not ops.shape(b):
        return ops.mul(a, b)
    return ops.matmul(a, b)


def outer(ops: Arrays, a: Array, b: Array) -> Array:
    """Return a bᵀ; matrices are batches of rows, and their outer products are added: aᵀ b."""
    left, right = len(ops.shape(a)), len(ops.shape(b))
    if left == 2 and right == 2:
        return ops.matmul(ops.transpose(a), b)
    if left == 1 and right == 1:
        return ops.matmul(ops.reshape(a, (*ops.shape(a), 1)), ops.reshape(b, (1, *ops.shape(b))))
    return ops.mul(a, b)


def sides(ops: Arrays, a: Array) -> tuple[int, int]:
    """Return rows and columns; a vector is 1 × n."""
    shape = ops.shape(a)
    return (shape[0], shape[1]) if len(shape) == 2 else (1, count(ops, a))


def orthogonalize(ops: Arrays, a: Array, iterations: int) -> Array:
    """Newton-Schulz iteration with Muon's quintic, x ← αx + (βs + γs²)x with s = xxᵀ (paper, eq. 42)."""
    alpha, beta, gamma = (ops.array(c) for c in NEWTON_SCHULZ)
    shape, (rows, columns) = ops.shape(a), sides(ops, a)
    x = ops.reshape(a, (rows, columns))
    size = norm(ops, x)
    if (ops.known(ops.detach(size)) or 0.0) <= ORTHOGONALIZE_FLOOR:
        x = ops.detach(x)  # divided by the floor it would have a gradient 10⁷ times as large as elsewhere
    x = ops.div(x, ops.maximum(size, ops.array(ORTHOGONALIZE_FLOOR)))
    if rows > columns:
        x = ops.transpose(x)
    for _ in range(iterations):
        s = ops.matmul(x, ops.transpose(x))
        polynomial = ops.add(ops.mul(beta, s), ops.mul(gamma, ops.matmul(s, s)))
        x = ops.add(ops.mul(alpha, x), ops.matmul(polynomial, x))
    return ops.reshape(ops.transpose(x) if rows > columns else x, shape)


# --- objectives that are functions of an error -----------------------------------------------------


def lp(ops: Arrays, error: Array, p: float) -> Array:
    """Return (1/p) Σ |e|^p."""
    return ops.div(ops.total(ops.power(ops.absolute(error), p)), ops.array(p))


def huber(ops: Arrays, error: Array, delta: float) -> Array:
    """Return Σ ½e² where |e| ≤ δ, δ(|e| − ½δ) elsewhere."""
    if math.isinf(delta):
        return ops.mul(ops.array(0.5), dot(ops, error, error))
    size = ops.absolute(error)
    near = ops.minimum(size, ops.array(delta))
    quadratic = ops.mul(ops.array(0.5), ops.mul(near, near))
    return ops.total(ops.add(quadratic, ops.mul(ops.array(delta), ops.sub(size, near))))


def pseudo_huber(ops: Arrays, error: Array, delta: float) -> Array:
    """Return δ²(√(1 + ‖e‖²/δ²) − 1); δ = inf is ½‖e‖²."""
    square, one = dot(ops, error, error), ops.array(1.0)
    root = ops.sqrt(ops.add(one, ops.div(square, ops.array(delta * delta))))
    return ops.div(square, ops.add(root, one))  # the difference of the definition cancels where δ is large


# --- application -----------------------------------------------------------------------------------

Unary: TypeAlias = Callable[[Arrays, Array], Array]

UNARY: dict[str, Unary] = {
    "relu": relu,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "mean": mean,
    "norm": norm,
    "root_mean_square": root_mean_square,
    "softmax": softmax,
    "sum": lambda ops, a: ops.total(a),
    "exp": lambda ops, a: ops.exp(a),
    "log": lambda ops, a: ops.log(a),
    "sin": lambda ops, a: ops.sin(a),
    "cos": lambda ops, a: ops.cos(a),
    "tanh": lambda ops, a: ops.tanh(a),
    "sigmoid": lambda ops, a: ops.sigmoid(a),
    "softplus": lambda ops, a: ops.softplus(a),
    "abs": lambda ops, a: ops.absolute(a),
    "sign": lambda ops, a: ops.sign(a),
    "sqrt": lambda ops, a: ops.sqrt(a),
    "neg": lambda ops, a: ops.sub(ops.array(0.0), a),
    "transpose": lambda ops, a: ops.transpose(a),
    "rows": lambda ops, a: ops.array(float(sides(ops, a)[0])),
    "columns": lambda ops, a: ops.array(float(sides(ops, a)[1])),
    "cols": lambda ops, a: ops.array(float(sides(ops, a)[1])),
}
BINARY: dict[str, Callable[[Arrays, Array, Array], Array]] = {
    "add": lambda ops, a, b: ops.add(a, b),
    "sub": lambda ops, a, b: ops.sub(a, b),
    "mul": lambda ops, a, b: ops.mul(a, b),
    "div": lambda ops, a, b: ops.div(a, b),
    "max": lambda ops, a, b: ops.maximum(a, b),
    "min": lambda ops, a, b: ops.minimum(a, b),
    "matmul": matmul,
    "dot": dot,
    "outer": outer,
}


def clip(ops: Arrays, a: Array, low: Array, high: Array) -> Array:
    """Return `a` held between low and high; high where low is above it."""
    return ops.minimum(ops.maximum(a, low), high)


def fill(ops: Arrays, name: str, shape: tuple[int, ...]) -> Array:
    """Return the `zeros`, `ones` or `identity` of a shape."""
    if name == "identity":
        rows, columns = shape
        return ops.array([[1.0 if i == j else 0.0 for j in range(columns)] for i in range(rows)])
    zeros = ops.zeros(shape)
    return zeros if name == "zeros" else ops.add(zeros, ops.array(1.0))


def elementary(ops: Arrays, expr: Apply, arguments: list[Array]) -> Array | None:
    """Apply a function that needs neither clock nor compile-time options; None when it is not one of these."""
    if expr.function in UNARY and len(arguments) == 1:
        return UNARY[expr.function](ops, arguments[0])
    if expr.function == "clip":
        return clip(ops, *arguments)
    if expr.function == "concat":
        return ops.concatenate([a if ops.shape(a) else ops.reshape(a, (1,)) for a in arguments])
    if expr.function == "matmul" and len(expr.arguments[1].type.shape) == 1 and len(ops.shape(arguments[1])) == 2:
        # A window's rows where the rule has one vector: the matrix is applied to each of them.
        return ops.matmul(arguments[1], ops.transpose(arguments[0]))
    if expr.function in BINARY and len(arguments) == 2:
        return BINARY[expr.function](ops, arguments[0], arguments[1])
    return None
