"""Every function of the language in one table: its name, its arguments, where it is allowed, its shape, its meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from nsam.dsl.checked import ValueType
from nsam.dsl.records import dataclass
from nsam.dsl.sizes import Size, at_least, divides
from nsam.dsl.types import ANY, ShapeProblem, broadcast, matmul, same_shape, same_size, shape_text

Place: TypeAlias = Literal["system", "objective", "rule", "train"]
Options: TypeAlias = Mapping[str, Any]
ShapeRule: TypeAlias = Callable[[Sequence[ValueType], Options], "tuple[Size, ...]"]

EVERYWHERE: frozenset[Place] = frozenset({"system", "objective", "rule", "train"})
SYSTEM: frozenset[Place] = frozenset({"system"})
RULE: frozenset[Place] = frozenset({"rule"})
VALUES: frozenset[Place] = frozenset({"system", "objective", "train"})
TRAIN: frozenset[Place] = frozenset({"train"})


@dataclass(frozen=True, slots=True)
class Option:
    """A compile-time argument that follows the others, by position or by name."""

    name: str
    kind: Literal["int", "float"] = "int"
    default: int | float | None = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class Function:
    """One function. `least` and `most` count its arguments without options; `shape` gives the result's shape."""

    name: str
    least: int
    most: int
    places: frozenset[Place]
    shape: ShapeRule
    meaning: str
    options: tuple[Option, ...] = ()
    operator: str | None = None


# --- shapes --------------------------------------------------------------------------------------


def _elementwise(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    return broadcast(types)


def _scalar(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    return ()


def _same(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    return types[0].shape


def _need_axes(types: Sequence[ValueType], name: str) -> None:
    if not types[0].shape:
        raise ShapeProblem(f"`{name}` needs a vector, found the number {shape_text(types[0])}", (0,))


def _over_last(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    _need_axes(types, "softmax")
    return types[0].shape


def _dot(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    left, right = types
    if not same_shape(left.shape, right.shape) and ANY not in (*left.shape, *right.shape):
        raise ShapeProblem(f"`dot` of {shape_text(left)} and {shape_text(right)}: the shapes differ", (0, 1))
    return ()


def _outer(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    for index, type_ in enumerate(types):
        if len(type_.shape) != 1:
            raise ShapeProblem(f"`outer` takes two vectors, found {shape_text(type_)}", (index,))
    return (types[0].shape[0], types[1].shape[0])


def _by_heads(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    _need_axes(types, "normalize")
    heads, size = options.get("heads", 1), types[0].shape[-1]
    if len(types[0].shape) > 1 and heads != 1:
        raise ShapeProblem(f"slices for {heads} heads are of a vector, found {shape_text(types[0])}", (0,))
    if divides(heads, size) is False:
        raise ShapeProblem(f"{heads} heads do not divide {size}", (0,), "N0215")
    return types[0].shape


def _rotated(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    shape = _by_heads(types, options)
    heads, size = options.get("heads", 1), shape[-1]
    if types[0].per != "token":
        raise ShapeProblem("`rope` needs a value that varies with the token", (0,), "N0245")
    if len(types[0].shape) > 1:
        raise ShapeProblem(f"`rope` takes a vector, found {shape_text(types[0])}", (0,))
    if divides(2, size // heads) is False:
        over = "" if heads == 1 else f" over {heads} heads"
        raise ShapeProblem(f"`rope` turns pairs: {size}{over} is odd", (0,), "N0215")
    return shape


def _positions(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    if types[0].per != "token":
        raise ShapeProblem("`position` needs a value that varies with the token", (0,), "N0245")
    return ()


def _concat(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    total: Size = 0
    for index, type_ in enumerate(types):
        if len(type_.shape) > 1:
            raise ShapeProblem(f"`concat` takes vectors and numbers, found {shape_text(type_)}", (index,))
        total = total + (type_.shape[0] if type_.shape else 1)
    return (total,)


def _index(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    if len(types[0].shape) != 1:
        raise ShapeProblem(f"`index` takes a vector, found {shape_text(types[0])}", (0,))
    i, size = options["i"], types[0].shape[0]
    if at_least(size - i, 1) is False:
        raise ShapeProblem(f"there is no element {i} in {size}", (0,), help="the first element is 0")
    return ()


def _slice(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    if len(types[0].shape) != 1:
        raise ShapeProblem(f"`slice` takes a vector, found {shape_text(types[0])}", (0,))
    start, stop, size = options["start"], options["stop"], types[0].shape[0]
    if any(at_least(bound, least) is False for bound, least in ((start, 0), (stop - start, 1), (size - stop, 0))):
        raise ShapeProblem(
            f"no elements {start} to {stop} in {size}", (0,), help="from `start` up to, not with, `stop`"
        )
    return (stop - start,)


def _matmul(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    return matmul(types[0], types[1])


def _transpose(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    if len(types[0].shape) != 2:
        raise ShapeProblem(f"`transpose` takes a matrix, found {shape_text(types[0])}", (0,))
    return (types[0].shape[1], types[0].shape[0])


def _matrix(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    if len(types[0].shape) != 2:
        raise ShapeProblem(f"a matrix is needed here, found {shape_text(types[0])}", (0,))
    return types[0].shape


def _count(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    _matrix(types, options)
    return ()


def _cross_entropy(types: Sequence[ValueType], options: Options) -> tuple[Size, ...]:
    logits, target = types
    if target.vocab is None:
        raise ShapeProblem(f"the target of `cross_entropy` is a token, found {shape_text(target)}", (1,))
    if len(logits.shape) != 1 or not same_size(logits.shape[0], target.vocab):
        raise ShapeProblem(f"`cross_entropy` of {shape_text(logits)} against {shape_text(target)}", (0, 1))
    return ()


# --- the table -----------------------------------------------------------------------------------


def _unary(name: str, meaning: str) -> Function:
    return Function(name, 1, 1, EVERYWHERE, _elementwise, meaning)


def _binary(name: str, meaning: str, operator: str | None = None) -> Function:
    return Function(name, 2, 2, EVERYWHERE, _elementwise, meaning, operator=operator)


_HEADS = (Option("heads"),)

_TABLE = (
    _binary("add", "a + b, element by element", "+"),
    _binary("sub", "a - b, element by element", "-"),
    _binary("mul", "a * b, element by element", "*"),
    _binary("div", "a / b, element by element", "/"),
    _binary("pow", "a to the power b, element by element", "^"),
    Function("matmul", 2, 2, RULE, _matmul, "matrix product a @ b", operator="@"),
    _unary("neg", "-a"),
    _unary("exp", "e to the power a"),
    _unary("log", "natural logarithm"),
    _unary("sqrt", "square root; its outer gradient at 0 is 0"),
    _unary("abs", "absolute value"),
    _unary("sign", "-1, 0 or 1; its gradient is 0"),
    _unary("sin", "sine"),
    _unary("cos", "cosine"),
    _unary("tanh", "hyperbolic tangent"),
    _unary("sigmoid", "1 / (1 + exp(-a))"),
    _unary("silu", "a sigmoid(a)"),
    _unary("gelu", "a Φ(a), the exact one"),
    _unary("gelu_tanh", "gelu by its tanh approximation, a/2 (1 + tanh(√(2/π) (a + 0.044715 a³)))"),
    _unary("relu", "max(a, 0)"),
    _unary("softplus", "log(1 + exp(a))"),
    _binary("min", "the smaller of two, element by element"),
    _binary("max", "the larger of two, element by element"),
    Function("clip", 3, 3, EVERYWHERE, _elementwise, "clip(a, low, high)"),
    Function("sum", 1, 1, EVERYWHERE, _scalar, "sum of all elements (in a rule: of the matrix)"),
    Function("mean", 1, 1, EVERYWHERE, _scalar, "mean of all elements"),
    Function("norm", 1, 1, EVERYWHERE, _scalar, "square root of the sum of squares of all elements"),
    Function("dot", 2, 2, EVERYWHERE, _dot, "sum of the products of all elements"),
    Function("outer", 2, 2, frozenset({"system", "rule"}), _outer, "matrix of all products: row i is aᵢ b"),
    Function("softmax", 1, 1, VALUES, _over_last, "exp(a) over its sum, along the last axis"),
    Function("normalize", 1, 1, VALUES, _by_heads, "a / max(|a|, 1e-6), for each of `heads` slices", options=_HEADS),
    Function(
        "rope",
        1,
        1,
        SYSTEM,
        _rotated,
        "rotary position of the token, half-split, `base` 10000",
        options=(*_HEADS, Option("base")),
    ),
    Function(
        "position",
        1,
        1,
        SYSTEM,
        _positions,
        "number of the value's token in its sequence, from 0, as a token(n)",
        options=(Option("n", required=True),),
    ),
    Function("concat", 1, 64, SYSTEM, _concat, "vectors and numbers one after the other, as one vector"),
    Function("index", 1, 1, SYSTEM, _index, "element i of a vector, from 0", options=(Option("i", required=True),)),
    Function(
        "slice",
        1,
        1,
        SYSTEM,
        _slice,
        "elements start, …, stop - 1 of a vector",
        options=(Option("start", required=True), Option("stop", required=True)),
    ),
    Function("transpose", 1, 1, RULE, _transpose, "rows become columns"),
    Function("rows", 1, 1, RULE, _count, "number of rows; 1 for a vector"),
    Function("cols", 1, 1, RULE, _count, "number of columns"),
    Function(
        "orthogonalize",
        1,
        1,
        RULE,
        _matrix,
        "quintic Newton-Schulz towards the nearest orthogonal matrix (eq. 42), each head's matrix on its own",
        options=(Option("iterations", default=5),),
    ),
    Function("unbias", 2, 2, RULE, _same, "a / (1 - beta^t), t the number of updates since the reset"),
    Function("root_mean_square", 1, 1, RULE, _scalar, "square root of the mean square of all elements, at least 1e-12"),
    Function("cross_entropy", 2, 2, TRAIN, _cross_entropy, "-log softmax(logits)[token], in nats"),
    Function("next", 1, 1, TRAIN, _same, "the sequence one token later"),
)

FUNCTIONS: dict[str, Function] = {function.name: function for function in _TABLE}
"""The functions by name. Operators are in it under their canonical names (`add` for `+`)."""

ACTIVATIONS: tuple[str, ...] = ("silu", "gelu", "gelu_tanh", "relu", "tanh", "sigmoid", "softplus", "identity")
"""What `act` of an mlp may be."""

RULE_CONSTANTS: dict[str, str] = {
    "identity": "the identity matrix of the size that its place asks for",
    "zeros": "all zeros, of the shape that its place asks for",
    "ones": "all ones, of the shape that its place asks for",
}
"""Names that stand for a whole matrix in a rule; `Apply(name, ())` in the checked program."""

TAKES_TOKENS = frozenset({"next", "cross_entropy", "position"})
"""Functions whose arguments may be integer tokens."""


def names_in(place: Place) -> list[str]:
    """Return the names of the functions that may be written in `place`."""
    return [function.name for function in _TABLE if place in function.places and function.operator is None]
