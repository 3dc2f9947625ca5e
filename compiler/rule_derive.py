"""Gradient of a rule memory's objective with respect to its state: a reverse mode over expressions.

A memory `like(self)` is a matrix T of the host's shape [out, in]. It reads a key K [batch, in] (a vector key is one
row, a matrix key is the batch of its rows) as K Tᵀ [batch, out], and its transpose reads V [batch, out] as V T. A
value-less memory reads as T itself. Keys and values are constants in the inner gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from nsam.compiler.rule_algebra import Algebra, call, constant, ref
from nsam.dsl.checked import Apply, Constant, Expr, Ref
from nsam.dsl.records import dataclass

READ, READ_TRANSPOSED = "read", "read_transposed"


class NotDifferentiable(Exception):
    """An objective applies a function that has no derivative here; carries the function's name."""


@dataclass(frozen=True, slots=True)
class InnerGradient:
    """`state` is dL/dT, `output` is dL/dŷ at the read of the key (None when the objective never reads the key)."""

    state: Expr
    output: Expr | None


def inner_gradient(objective: Expr, state: str, key: Expr | None, algebra: Algebra) -> InnerGradient:
    """Differentiate the scalar `objective` with respect to the matrix called `state`.

    `objective` holds `read(x)` and `read_transposed(x)` applications and `Ref(state)`; any other name is a constant.
    """
    adjoint = _adjoints(objective, (state,), algebra)
    total = adjoint.get(ref(state), constant(0))
    output = None if key is None else adjoint.get(call(READ, key))
    expand = Expansion(state, algebra)
    return InnerGradient(expand(total), None if output is None else expand(output))


def network_gradient(
    objective: Expr, states: Mapping[str, str], outputs: Mapping[str, Expr], algebra: Algebra
) -> dict[str, InnerGradient]:
    """Differentiate `objective`, written out in the weights of a network, with respect to each of them.

    `states` names the weights by tensor, `outputs` gives what each layer returns at the key, where it is read there.
    """
    adjoint = _adjoints(objective, tuple(states.values()), algebra)
    simple = algebra.simplify
    found = {}
    for tensor, name in states.items():
        output = adjoint.get(outputs[tensor]) if tensor in outputs else None
        total = adjoint.get(ref(name), constant(0))
        found[tensor] = InnerGradient(simple(total), None if output is None else simple(output))
    return found


def _adjoints(objective: Expr, states: tuple[str, ...], algebra: Algebra) -> dict[Expr, Expr]:
    """Return the derivative of `objective` by everything in it that depends on the states."""
    order = _topological(objective)
    adjoint: dict[Expr, Expr] = {objective: constant(1)}
    moving = _moving(order, states)
    for node in reversed(order):
        if node in adjoint and isinstance(node, Apply) and node in moving:
            for target, change in _pullbacks(node, adjoint[node], states[0], algebra):
                if target in moving:
                    adjoint[target] = algebra.build("add", adjoint[target], change) if target in adjoint else change
    return adjoint


@dataclass(frozen=True, slots=True)
class Expansion:
    """Writes reads of the memory as products with its state."""

    state: str
    algebra: Algebra

    def __call__(self, expr: Expr) -> Expr:
        """Return `expr` without `read` and `read_transposed`."""
        if not isinstance(expr, Apply):
            return expr
        before = [self.written_out(argument) for argument in expr.arguments]
        after = [self(argument) for argument in expr.arguments]
        if expr.function in (READ, READ_TRANSPOSED):
            matrix = self.matrix(expr.function)
            return self.algebra.rebuilt("matmul", [*before, matrix], [*after, matrix])
        return self.algebra.rebuilt(expr.function, before, after)

    def written_out(self, expr: Expr) -> Expr:
        """Return `expr` without reads, not simplified."""
        if not isinstance(expr, Apply):
            return expr
        arguments = [self.written_out(argument) for argument in expr.arguments]
        if expr.function in (READ, READ_TRANSPOSED):
            return call("matmul", *arguments, self.matrix(expr.function))
        return call(expr.function, *arguments)

    def matrix(self, read: str) -> Expr:
        """Return what a read multiplies its rows by."""
        return call("transpose", ref(self.state)) if read == READ else ref(self.state)


def _topological(root: Expr) -> list[Expr]:
    """Return the distinct nodes below `root`, arguments before applications."""
    order: dict[Expr, None] = {}

    def visit(node: Expr) -> None:
        if node not in order:
            for argument in node.arguments if isinstance(node, Apply) else ():
                visit(argument)
            order[node] = None

    visit(root)
    return list(order)


_SHAPES = frozenset({"identity", "ones_like", "zeros_like", "ones_of", "zeros_of", "rows", "cols", "count_of"})
"""Functions that look at a matrix's shape only."""


def _moving(order: list[Expr], states: tuple[str, ...]) -> set[Expr]:
    """Return the nodes that depend on the states, these included."""
    found: set[Expr] = {ref(state) for state in states}
    for node in order:
        if not isinstance(node, Apply) or node.function in _SHAPES:
            continue
        if node.function in (READ, READ_TRANSPOSED) or any(argument in found for argument in node.arguments):
            found.add(node)
    return found


def _pullbacks(node: Apply, e: Expr, state: str, algebra: Algebra) -> list[tuple[Expr, Expr]]:
    """Return what each argument of `node` (and the state) gains when `node` has the adjoint `e`."""
    b = algebra.build
    if node.function in (READ, READ_TRANSPOSED):
        (x,) = node.arguments
        e = _whole(e, node, algebra)
        if node.function == READ:
            return [(ref(state), b("matmul", b("transpose", e), x)), (x, call(READ_TRANSPOSED, e))]
        return [(ref(state), b("matmul", b("transpose", x), e)), (x, call(READ, e))]
    if node.function in _OF_ERROR:
        error, bound = node.arguments
        return [(error, b("mul", e, _error_slope(node.function, error, bound, algebra)))]
    if node.function in _BINARY and len(node.arguments) == 2:
        x, y = node.arguments
        pairs = zip((x, y), _binary(node.function, x, y, node, e, algebra), strict=True)
        return [(argument, _fit(change, argument, algebra)) for argument, change in pairs if change is not None]
    if len(node.arguments) == 1:
        (x,) = node.arguments
        return [(x, _unary(node.function, x, node, e, algebra))]
    if node.function == "clip":
        x, low, high = node.arguments
        inside = b("mul", call("at_least", x, low), call("at_least", high, x))
        return [(x, b("mul", e, inside))]
    raise NotDifferentiable(node.function)


def _whole(e: Expr, like: Expr, algebra: Algebra) -> Expr:
    """Return the adjoint of a matrix as a matrix (a scalar adjoint stands for the same number in every entry)."""
    return algebra.build("mul", e, call("ones_like", like)) if algebra.scalar(e) else e


def _fit(change: Expr, argument: Expr, algebra: Algebra) -> Expr:
    """Sum a matrix adjoint of a scalar argument."""
    return call("sum", change) if algebra.scalar(argument) and not algebra.scalar(change) else change


_BINARY = frozenset({"add", "sub", "mul", "div", "pow", "matmul", "dot", "max", "min", "outer"})


def _binary(name: str, x: Expr, y: Expr, node: Expr, e: Expr, algebra: Algebra) -> tuple[Expr | None, Expr | None]:
    b = algebra.build
    if name == "add":
        return e, e
    if name == "sub":
        return e, b("neg", e)
    if name in ("mul", "dot"):
        return b("mul", e, y), b("mul", e, x)
    if name == "div":
        return b("div", e, y), b("neg", b("div", b("mul", e, node), y))
    if name == "pow":
        slope = b("mul", y, b("pow", x, b("sub", y, constant(1))))
        if isinstance(y, Constant) and 0 < y.value < 1:  # 0 at 0, as that of the square root
            slope = b("mul", y, b("mul", node, call("inverse_or_zero", x)))
        return b("mul", e, slope), (
            None if isinstance(y, Constant | Ref) else b("mul", b("mul", e, node), call("log", x))
        )
    if name == "matmul":
        e = _whole(e, node, algebra)
        return b("matmul", e, b("transpose", y)), b("matmul", b("transpose", x), e)
    if name == "outer":
        e = _whole(e, node, algebra)
        return b("matmul", y, b("transpose", e)), b("matmul", x, e)
    first, second = (x, y) if name == "max" else (y, x)
    return b("mul", e, call("at_least", first, second)), b(
        "mul", e, b("sub", constant(1), call("at_least", first, second))
    )


_OF_ERROR = frozenset({"lp", "huber", "pseudo_huber"})


def _error_slope(name: str, u: Expr, bound: Expr, algebra: Algebra) -> Expr:
    """Gradient of a named objective at its error u = ŷ - v; `bound` is p of lp, δ of the others."""
    b = algebra.build
    if name == "lp":
        return b("mul", call("sign", u), b("pow", call("abs", u), b("sub", bound, constant(1))))
    if name == "huber":
        return call("clip", u, b("neg", bound), bound)
    square = b("div", call("sum", b("pow", u, constant(2))), b("pow", bound, constant(2)))
    return b("div", u, call("sqrt", b("add", constant(1), square)))


def _gelu_slope(x: Expr, algebra: Algebra) -> Expr:
    """Φ(x) + x φ(x), the derivative of the exact gelu."""
    b = algebra.build
    area = b("mul", constant(0.5), b("add", constant(1), call("erf", b("mul", constant(math.sqrt(0.5)), x))))
    bell = b(
        "mul", constant(1 / math.sqrt(2 * math.pi)), call("exp", b("mul", constant(-0.5), b("pow", x, constant(2))))
    )
    return b("add", area, b("mul", x, bell))


def _gelu_tanh(x: Expr, algebra: Algebra) -> Expr:
    """tanh(√(2/π) (x + 0.044715 x³))."""
    b = algebra.build
    cubic = b("add", x, b("mul", constant(0.044715), b("pow", x, constant(3))))
    return call("tanh", b("mul", constant(math.sqrt(2 / math.pi)), cubic))


def _gelu_tanh_slope(x: Expr, algebra: Algebra) -> Expr:
    """(1 + t)/2 + x/2 (1 − t²) √(2/π) (1 + 3 · 0.044715 x²), t the hyperbolic tangent in `gelu_tanh`."""
    b = algebra.build
    x = call("clip", x, constant(-10), constant(10))  # 0 or 1 beyond, and no square that is infinite
    t = _gelu_tanh(x, algebra)
    inside = b("add", constant(1), b("mul", constant(3 * 0.044715), b("pow", x, constant(2))))
    bell = b("mul", b("sub", constant(1), b("pow", t, constant(2))), b("mul", constant(math.sqrt(2 / math.pi)), inside))
    return b("mul", constant(0.5), b("add", b("add", constant(1), t), b("mul", x, bell)))


def _unary(name: str, x: Expr, node: Expr, e: Expr, algebra: Algebra) -> Expr:
    b = algebra.build
    one = constant(1)
    if name == "neg":
        return b("neg", e)
    if name == "transpose":
        return b("transpose", e)
    if name == "sum":
        return _whole(e, x, algebra)
    if name == "mean":
        return _whole(b("div", e, call("count_of", x)), x, algebra)
    if name == "norm":
        return b("mul", b("mul", e, call("inverse_or_zero", node)), x)
    slopes: dict[str, Callable[[], Expr]] = {
        "sqrt": lambda: b("mul", constant(0.5), call("inverse_or_zero", node)),
        "exp": lambda: node,
        "log": lambda: b("div", one, x),
        "abs": lambda: call("sign", x),
        "sign": lambda: constant(0),
        "sigmoid": lambda: b("mul", node, b("sub", one, node)),
        "tanh": lambda: b("sub", one, b("pow", node, constant(2))),
        "sin": lambda: call("cos", x),
        "cos": lambda: b("neg", call("sin", x)),
        "silu": lambda: b("mul", call("sigmoid", x), b("add", one, b("sub", x, node))),
        "gelu": lambda: _gelu_slope(x, algebra),
        "gelu_tanh": lambda: _gelu_tanh_slope(x, algebra),
        "relu": lambda: call("at_least", x, constant(0)),
        "softplus": lambda: call("sigmoid", x),
    }
    if name not in slopes:
        raise NotDifferentiable(name)
    return b("mul", e, slopes[name]())
