"""Reverse mode on plan expressions: the inner gradient of an objective, as expressions.

The compiler differentiates objective ∘ structure itself, so that it can print the update equation and generate the
inner update without nesting automatic differentiation (the outer gradient is torch's). The gradient of one weight is a
sum of outer products, one for each time the weight is applied: `linear(x, w)` with adjoint g gives g xᵀ, and the
transposed `linear_t(u, w)` with adjoint g gives u gᵀ.
"""

from __future__ import annotations

from collections.abc import Callable

from nsam.compiler.expressions import ELEMENTWISE, Builder, Node, postorder
from nsam.dsl.records import dataclass


@dataclass(frozen=True, slots=True)
class OuterProduct:
    """`left rightᵀ`, [out] and [in] a token: one term of a weight's gradient. `read` is the layer it came from."""

    left: Node
    right: Node
    read: Node


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradient of one weight: outer products (matrices) and direct adjoints (vectors: biases, gains)."""

    products: tuple[OuterProduct, ...]
    direct: tuple[Node, ...] = ()


class NotDifferentiable(Exception):
    """An objective uses a function that the compiler has no derivative for."""

    def __init__(self, op: str) -> None:
        self.op = op
        super().__init__(op)


def gradients(builder: Builder, objective: Node, weights: list[Node]) -> dict[int, Gradient]:
    """Differentiate the scalar `objective` (one a token and head) with respect to `weights`.

    Returns a `Gradient` by node id of the weight; weights that the objective does not reach have an empty one.
    Raises `NotDifferentiable`. Stops at `given` nodes: keys and values are constants in the inner gradient.
    """
    wanted = {w.id for w in weights}
    order = list(postorder([objective]))
    depends = {w.id for w in weights}
    for node in order:
        if node.op != "given" and any(a.id in depends for a in node.args):
            depends.add(node.id)
    adjoint: dict[int, Node] = {objective.id: builder.number(1)}
    products: dict[int, list[OuterProduct]] = {w: [] for w in wanted}
    direct: dict[int, list[Node]] = {w: [] for w in wanted}
    for node in reversed(order):
        if node.id not in adjoint or node.id not in depends or node.id in wanted:
            continue
        upstream = adjoint[node.id]
        if node.op in ("linear", "linear_t") and node.args[1].id in wanted:
            _weight_term(builder, node, upstream, products)
        for argument, pullback in zip(node.args, _pullbacks(node), strict=True):
            if argument.id not in depends or pullback is None:
                continue
            if argument.id in wanted:
                direct[argument.id].append(pullback(builder, node, upstream))
                continue
            term = _unbroadcast(builder, pullback(builder, node, upstream), node, argument)
            if argument.id in adjoint:
                adjoint[argument.id] = builder.add(adjoint[argument.id], term)
            else:
                adjoint[argument.id] = term
    return {w: Gradient(tuple(products[w]), tuple(direct[w])) for w in wanted}


def _weight_term(b: Builder, node: Node, upstream: Node, products: dict[int, list[OuterProduct]]) -> None:
    x, weight = node.args
    upstream = _full(b, upstream, node)
    left, right = (upstream, x) if node.op == "linear" else (x, upstream)
    products[weight.id].append(OuterProduct(left, right, node))


def _full(b: Builder, adjoint: Node, like: Node) -> Node:
    """Expand a scalar adjoint to the shape of the value it belongs to."""
    if adjoint.layout in ("heads", "flat") and adjoint.shape == like.shape:
        return adjoint
    return b.make("expand_like", (adjoint, like), like.shape, like.layout)


def _unbroadcast(b: Builder, term: Node, node: Node, argument: Node) -> Node:
    """Sum a term over the last axis where `node` has stretched a scalar argument along it.

    The adjoint of a vector may be a scalar or a number that stands for equal elements (what `sum` and `mean` bring, see
    `_full`): a sum over n of them is n times as much.
    """
    if _last(argument) > 1:
        return term
    if _last(term) > 1:
        return b.reduce("sum", term)
    copies = max(map(_last, node.args)) if node.op in ELEMENTWISE else 1
    return b.scaled(term, b.number(copies))


def _last(node: Node) -> int:
    """Size of the last axis, 1 for numbers."""
    return node.shape[-1] if node.shape else 1


Pullback = Callable[[Builder, Node, Node], Node]


def _pullbacks(node: Node) -> tuple[Pullback | None, ...]:
    if node.op in _RULES:
        return _RULES[node.op]
    raise NotDifferentiable(node.op)


def _unary(slope: Callable[[Builder, Node, Node], Node]) -> tuple[Pullback, ...]:
    return (lambda b, n, g: b.scaled(g, slope(b, n.args[0], n)),)


def _max_mask(b: Builder, winner: Node, loser: Node) -> Node:
    """1 where winner > loser, ½ on ties, 0 elsewhere."""
    return b.mul(b.number(0.5), b.add(b.number(1), b.apply("sign", b.sub(winner, loser))))


def _pow_base(b: Builder, n: Node, g: Node) -> Node:
    x, p = n.args
    if p.op == "number" and 0 < p.value < 1:
        return b.mul(g, b.apply("root_slope", x, p))
    return b.mul(g, b.mul(p, b.apply("pow", x, b.sub(p, b.number(1)))))


def _lp(b: Builder, n: Node, g: Node) -> Node:
    """∂ (1/p)‖e‖_p^p / ∂e = sign(e)·|e|^(p−1)."""
    e, p = n.args[0], n.attr("p")
    assert isinstance(p, int | float)
    return b.mul(g, b.mul(b.apply("sign", e), b.apply("pow", b.apply("abs", e), b.number(p - 1))))


def _huber(b: Builder, n: Node, g: Node) -> Node:
    """Elementwise clip(e, −δ, δ)."""
    delta = n.attr("delta")
    assert isinstance(delta, int | float)
    return b.mul(g, b.apply("clip", n.args[0], b.number(-delta), b.number(delta)))


def _pseudo_huber(b: Builder, n: Node, g: Node) -> Node:
    """e / √(1 + ‖e‖²/δ²)."""
    e, delta = n.args[0], n.attr("delta")
    assert isinstance(delta, int | float)
    inside = b.add(b.number(1), b.div(b.reduce("dot", e, e), b.number(delta * delta)))
    return b.mul(g, b.div(e, b.apply("sqrt", inside)))


def _normalize(b: Builder, n: Node, g: Node) -> Node:
    """(g − y⟨g, y⟩)/|x| above the floor of 1e-6, g/1e-6 below it, where the map is linear."""
    return b.make("normalize_pullback", (n.args[0], _full(b, g, n)), n.shape, n.layout, **dict(n.attrs))


def _row(b: Builder, n: Node, g: Node) -> Node:
    """The adjoint of a state's row, which has no axis for the tokens: of an adjoint a token, a row for each."""
    if g.op == "number" or _last(g) == _last(n):
        return _full(b, g, n)
    return b.mul(g, b.make("expand_like", (b.number(1), n), n.shape, n.layout))


def _softmax(b: Builder, n: Node, g: Node) -> Node:
    return b.mul(n, b.sub(g, b.reduce("dot", g, n)))


_RULES: dict[str, tuple[Pullback | None, ...]] = {
    "add": (lambda b, n, g: g, lambda b, n, g: g),
    "sub": (lambda b, n, g: g, lambda b, n, g: b.neg(g)),
    "mul": (lambda b, n, g: b.scaled(g, n.args[1]), lambda b, n, g: b.scaled(g, n.args[0])),
    "div": (
        lambda b, n, g: b.div(g, n.args[1]),
        lambda b, n, g: b.neg(b.div(b.mul(g, n), n.args[1])),
    ),
    "neg": (lambda b, n, g: b.neg(g),),
    "pow": (_pow_base, lambda b, n, g: b.mul(g, b.mul(n, b.apply("log", n.args[0])))),
    "exp": _unary(lambda b, x, y: y),
    "log": _unary(lambda b, x, y: b.div(b.number(1), x)),
    "sqrt": _unary(lambda b, x, y: b.apply("sqrt_slope", x)),
    "abs": _unary(lambda b, x, y: b.apply("sign", x)),
    "sign": _unary(lambda b, x, y: b.number(0)),
    "sin": _unary(lambda b, x, y: b.apply("cos", x)),
    "cos": _unary(lambda b, x, y: b.neg(b.apply("sin", x))),
    "tanh": _unary(lambda b, x, y: b.sub(b.number(1), b.mul(y, y))),
    "sigmoid": _unary(lambda b, x, y: b.mul(y, b.sub(b.number(1), y))),
    "softplus": _unary(lambda b, x, y: b.apply("sigmoid", x)),
    "silu": _unary(lambda b, x, y: b.apply("silu_slope", x)),
    "gelu": _unary(lambda b, x, y: b.apply("gelu_slope", x)),
    "gelu_tanh": _unary(lambda b, x, y: b.apply("gelu_tanh_slope", x)),
    "relu": _unary(lambda b, x, y: b.apply("step_at", x)),
    "max": (
        lambda b, n, g: b.mul(g, _max_mask(b, n.args[0], n.args[1])),
        lambda b, n, g: b.mul(g, _max_mask(b, n.args[1], n.args[0])),
    ),
    "min": (
        lambda b, n, g: b.mul(g, _max_mask(b, n.args[1], n.args[0])),
        lambda b, n, g: b.mul(g, _max_mask(b, n.args[0], n.args[1])),
    ),
    "clip": (
        lambda b, n, g: b.mul(g, b.apply("inside", *n.args)),
        None,
        None,
    ),
    "sum": (lambda b, n, g: g,),
    "mean": (lambda b, n, g: b.div(g, b.number(n.args[0].shape[-1])),),
    "dot": (lambda b, n, g: b.mul(g, n.args[1]), lambda b, n, g: b.mul(g, n.args[0])),
    "norm": (lambda b, n, g: b.mul(g, b.div(n.args[0], b.reduce("length", n.args[0], floor=1e-12))),),
    "normalize": (_normalize,),
    "softmax": (_softmax,),
    "lp": (_lp,),
    "huber": (_huber,),
    "pseudo_huber": (_pseudo_huber,),
    "linear": (lambda b, n, g: b.linear_t(_full(b, g, n), n.args[1]), None),
    "linear_t": (lambda b, n, g: b.linear(_full(b, g, n), n.args[1]), None),
    "row": (_row,),
    "expand_like": (lambda b, n, g: g, None),
}
DIFFERENTIABLE = frozenset(_RULES)
