"""A rule's step as readable Python source on torch tensors.

The emitted function is pure:

    def step(self, states, grad, key, err, *, <parameters>, count):
        ...
        return self, states

Shapes: `self`, `grad` and every state [..., out, in] (leading axes are batches of matrices: batch, heads, stacked
parameters; a vector is [..., 1, n]); `key` [..., in] and `err` [..., out], or [..., n, in] and [..., n, out] for the n
rows of a window; parameters are numbers or tensors that broadcast with [..., 1, 1]; `count` is the number of updates
since the reset, this one included. On the step clock `gram` [..., in, in], the sum of a key's outer products, stands in
the place of `key`; or `key` and `err` have the rows of all tokens and `weight` [..., n, 1] follows (`token_rows.py`).
`states` is a tuple in the order of `plan.states`. Inputs that the rule does not use may be None.
"""

from __future__ import annotations

import keyword
import linecache
import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from nsam.backends.torch import orthogonalize as kernels
from nsam.backends.torch.token_rows import TOKEN_KERNELS
from nsam.compiler.rule_algebra import Algebra, call, functions, names, ref
from nsam.compiler.rule_passes import batched
from nsam.compiler.rule_plan import COUNT, GRAM, WEIGHT, Assign, RulePlan
from nsam.compiler.token_values import WHOLE
from nsam.dsl.checked import Apply, Constant, Expr, Ref
from nsam.dsl.diagnostics import fail

IMPORTS = """\
import math

import torch

from nsam.backends.torch.orthogonalize import (
    as_tensor,
    dot,
    identity,
    inverse_or_zero,
    norm,
    normalize,
    orthogonalize,
    orthogonalize_each,
    power,
    root_mean_square,
    sqrt,
)
"""

KERNELS = (
    "as_tensor",
    "dot",
    "identity",
    "inverse_or_zero",
    "norm",
    "normalize",
    "orthogonalize",
    "orthogonalize_each",
    "power",
    "root_mean_square",
    "sqrt",
)
_RESERVED = frozenset({"math", "torch", "states", "self", "grad", "key", "gram", "err", "weight", "count", *KERNELS})
_TOKENS = {kernel.__name__: kernel for kernel in TOKEN_KERNELS}
_INFIX = {
    "add": ("+", 1),
    "sub": ("-", 1),
    "mul": ("*", 2),
    "div": ("/", 2),
    "matmul": ("@", 2),
    "floor_div": ("//", 2),
}
_ATOM = 5
_TORCH = {
    "exp": "torch.exp",
    "log": "torch.log",
    "abs": "torch.abs",
    "sin": "torch.sin",
    "cos": "torch.cos",
    "erf": "torch.erf",
    "sign": "torch.sign",
    "tanh": "torch.tanh",
    "sigmoid": "torch.sigmoid",
    "relu": "torch.relu",
    "silu": "torch.nn.functional.silu",
    "gelu": "torch.nn.functional.gelu",
    "softplus": "torch.nn.functional.softplus",
}
_NUMBERS = {"exp": "math.exp", "log": "math.log", "abs": "abs", "sqrt": "math.sqrt", "tanh": "math.tanh"}
_WHOLE = frozenset({"norm", "normalize", "root_mean_square", "dot", "inverse_or_zero"})
ELEMENTWISE = frozenset(
    {"add", "sub", "mul", "div", "pow", "neg", "sqrt", "max", "min", "clip", "at_least", "zeros_like", "ones_like"}
    | {"inverse_or_zero", "floor_div", "gelu_tanh", *_TORCH}
)


def emit_step(plan: RulePlan, *, function: str = "step", due: frozenset[int] | None = None) -> str:
    """Return the source of the rule's step; its imports are `IMPORTS`.

    With `due` None the step branches on `count`, an int. With a set of strides (`plan.due(count)`) it is the
    straight-line step for the updates at which exactly these close, independent orthogonalisations batched; `count`
    may be a tensor.
    """
    return _Source(plan).step(function, due)


def emit_initial(plan: RulePlan, *, function: str = "initial") -> str:
    """Return the source of `initial(self, *, <parameters>)`: the states before the first update, shaped like `self`."""
    return _Source(plan).initial(function)


def scalar_keyword(parameter: str) -> str:
    """Return the keyword under which the emitted functions take a parameter of the rule."""
    return f"{parameter}_" if parameter in _RESERVED or keyword.iskeyword(parameter) else parameter


def elementwise(plan: RulePlan) -> bool:
    """Whether every entry of `self` moves on its own, so that the step is the same for any shape."""
    values = [assign.value for assign in plan.body] + [state.initial for state in plan.states]
    return all(state.shape is None for state in plan.states) and all(
        name in ELEMENTWISE for value in values for name in functions(value)
    )


def load(source: str, function: str, products: torch.dtype | None = None) -> Callable[..., Any]:
    """Compile emitted source and return one function of it; tracebacks show its lines.

    `products`: the precision of the matrix products that orthogonalise.
    """
    name = f"<nsam rule {function} {abs(hash(source)):x}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope: dict[str, Any] = {kernel: getattr(kernels, kernel) for kernel in KERNELS} | _TOKENS
    scope |= {"math": math, "torch": torch}
    if products is not None:
        scope |= {name: partial(scope[name], products=products) for name in ("orthogonalize", "orthogonalize_each")}
    exec(compile(source, name, "exec"), scope)
    loaded: Callable[..., Any] = scope[function]
    return loaded


def _zeros(expr: Expr) -> bool:
    return isinstance(expr, Apply) and expr.function == "zeros_of"


class _Source:
    """Writes one plan; knows the Python name of every name of the plan."""

    def __init__(self, plan: RulePlan) -> None:
        self.plan = plan
        self.algebra: Algebra = plan.algebra
        self.identifiers: dict[str, str] = {name: name for name in ("self", "grad", "key", "err")}
        self.identifiers |= {COUNT: "count", GRAM: "gram", WEIGHT: "weight"}
        self.identifiers |= {name: scalar_keyword(name) for name in plan.parameters}
        self.other_shapes = {state.name for state in plan.states if state.shape is not None}
        for state in plan.states:
            self.identifier(state.name)

    def identifier(self, name: str) -> str:
        """Return a Python name for a name of the plan: `slow'` is `slow_new`, `slow.sum` is `slow_sum`."""
        if name not in self.identifiers:
            base = re.sub(r"\W+", "_", re.sub(r"'+$", lambda m: "_new" + "_new" * (len(m[0]) - 1), name)).strip("_")
            base = base if base.isidentifier() else f"x_{base}"
            taken = set(self.identifiers.values()) | _RESERVED
            found, number = base, 2
            while found in taken or keyword.iskeyword(found):
                found, number = f"{base}_{number}", number + 1
            self.identifiers[name] = found
        return self.identifiers[name]

    # --- functions -------------------------------------------------------------------------------

    def step(self, function: str, due: frozenset[int] | None) -> str:
        plan = self.plan if due is None else self.plan.at(due)
        key = "gram" if GRAM in plan.inputs else "key"
        given = ["self", "states", "grad", key, "err", *(["weight"] if WEIGHT in plan.inputs else [])]
        lines = [f"def {function}({', '.join([*given, *self.keywords(True)])}):"]
        lines += [f'    """One update of rule {plan.name}: the new `self` and states."""']
        lines += ["    " + line for line in self.opening()]
        steps: Iterable[Assign | tuple[Assign, ...]] = plan.body if due is None else batched(plan)
        lines += ["    " + line for line in self.statements(list(steps))]
        results = dict(plan.results)
        new = self.tuple_of(results[s.name] for s in plan.states)
        return "\n".join([*lines, f"    return {self.identifier(results['self'])}, {new}"]) + "\n"

    def tuple_of(self, listed: Iterable[str]) -> str:
        found = [self.identifier(name) for name in listed]
        return f"({found[0]},)" if len(found) == 1 else f"({', '.join(found)})"

    def keywords(self, count: bool) -> list[str]:
        found = [self.identifiers[name] for name in self.plan.parameters] + (["count"] if count else [])
        return ["*", *found] if found else []

    def opening(self) -> list[str]:
        lines = []
        if self.plan.states:
            listed = self.tuple_of(s.name for s in self.plan.states)
            lines.append(f"{listed if len(self.plan.states) == 1 else listed[1:-1]} = states")
        for name, shape in (("key", "in"), ("err", "out")):
            if name in self.plan.inputs and WEIGHT not in self.plan.inputs:
                rows = f"{name}.unsqueeze(-2) if {name}.ndim < self.ndim else {name}"
                lines.append(f"{name} = {rows}  # [..., 1, {shape}], or a window's rows")
        return lines

    def initial(self, function: str) -> str:
        lines = [f"def {function}({', '.join(['self', *self.keywords(False)])}):"]
        lines.append(f'    """The states of rule {self.plan.name} before the first update."""')
        for state in self.plan.states:
            like = ref("self") if state.shape is None else call("zeros_of", *state.shape)
            value = self.filled(state.initial, like) + (".clone()" if isinstance(state.initial, Ref) else "")
            lines.append(f"    {self.identifier(state.name)} = {value}")
        return "\n".join([*lines, f"    return {self.tuple_of(s.name for s in self.plan.states)}"]) + "\n"

    # --- statements ------------------------------------------------------------------------------

    def statements(self, steps: list[Assign | tuple[Assign, ...]]) -> list[str]:
        lines: list[str] = []
        block: list[Assign] = []
        for step in steps:
            if isinstance(step, Assign) and step.stride > 1 and (not block or block[0].stride == step.stride):
                block.append(step)
                continue
            lines += self.branch(block)
            block = []
            if isinstance(step, tuple):
                lines.append(self.together(step))
            elif step.stride > 1:
                block = [step]
            else:
                lines.append(self.assignment(step))
        return lines + self.branch(block)

    def assignment(self, step: Assign) -> str:
        if not self.is_state(step.target):
            return f"{self.identifier(step.target)} = {self.text(step.value)}"
        state = step.target.rstrip("'")
        like = ref(state) if state in self.other_shapes else ref("self")
        return f"{self.identifier(step.target)} = {self.filled(step.value, like)}"

    def is_state(self, name: str) -> bool:
        return name.endswith("'")

    def filled(self, value: Expr, like: Expr) -> str:
        """A value that must be a whole matrix, shaped like another: scalars fill it, the identity is every head's."""
        zeros = self.text(like if _zeros(like) else call("zeros_like", like))
        if isinstance(value, Constant) and value.value == 0:
            return zeros
        if self.algebra.scalar(value) or self.single(value):
            return f"{zeros} + {self.text(value, 1)}"
        return self.text(value)

    def single(self, value: Expr) -> bool:
        """Whether a value is one matrix for all heads and sequences: made of the identity and of numbers."""
        if not isinstance(value, Apply):
            return self.algebra.scalar(value)
        return value.function == "identity" or (
            value.function not in ("ones_like", "zeros_like", "ones_of", "zeros_of")
            and all(self.single(argument) for argument in value.arguments)
        )

    def branch(self, block: list[Assign]) -> list[str]:
        if not block:
            return []
        lines = [f"if count % {block[0].stride} == 0:"] + ["    " + self.assignment(step) for step in block]
        kept = [step for step in block if step.otherwise is not None]
        if kept:
            lines.append("else:")
            lines += [f"    {self.identifier(s.target)} = {self.identifier(s.otherwise)}" for s in kept if s.otherwise]
        return lines

    def together(self, group: tuple[Assign, ...]) -> str:
        calls = [step.value for step in group if isinstance(step.value, Apply)]
        targets = ", ".join(self.identifier(step.target) for step in group)
        batch = ", ".join(self.text(c.arguments[0]) for c in calls)
        more = "".join(f", {self.text(argument)}" for argument in calls[0].arguments[1:])
        return f"{targets} = orthogonalize_each(({batch}){more})"

    # --- expressions -----------------------------------------------------------------------------

    def text(self, expr: Expr, tight: int = 0) -> str:
        """Return Python for `expr`, in brackets where its operator binds looser than `tight`."""
        if isinstance(expr, Constant):
            return self.literal(expr.value, tight)
        if isinstance(expr, Ref):
            return self.identifier(expr.name)
        assert isinstance(expr, Apply)
        if expr.function in _INFIX:
            sign, level = _INFIX[expr.function]
            left, right = expr.arguments
            written = f"{self.text(left, level)} {sign} {self.text(right, level + 1)}"
            return f"({written})" if level < tight else written
        if expr.function == "neg":
            written = f"-{self.text(expr.arguments[0], 3)}"
            return f"({written})" if tight > 2 else written
        if expr.function == "pow":
            return self.power(expr.arguments[0], expr.arguments[1], tight)
        return self.applied(expr)

    def literal(self, value: float, tight: int) -> str:
        written = (
            repr(value) if math.isfinite(value) else ("math.nan" if value != value else f"{'-' * (value < 0)}math.inf")
        )
        return f"({written})" if written.startswith("-") and tight > 1 else written

    def power(self, base: Expr, exponent: Expr, tight: int) -> str:
        if isinstance(exponent, Constant) and exponent.value == 2 and not self.algebra.scalar(base):
            return f"{self.text(base, _ATOM)}.square()"
        if not self.algebra.scalar(base) and not (isinstance(exponent, Constant) and exponent.value >= 1):
            return f"power({self.text(base)}, {self.text(exponent)})"
        written = f"{self.text(base, _ATOM)} ** {self.text(exponent, _ATOM)}"
        return f"({written})" if tight > 3 else written

    def applied(self, expr: Apply) -> str:
        name, arguments = expr.function, expr.arguments
        kind = self.algebra.kind(arguments[0]) if arguments else "matrix"
        if name in ("rows", "cols"):
            return f"{self.text(arguments[0], _ATOM)}.shape[{-2 if name == 'rows' else -1}]"
        if name in ("zeros_of", "ones_of"):
            return f"self.new_{name[:-3]}((*self.shape[:-2], {', '.join(self.text(size) for size in arguments)}))"
        if name == "identity":
            if arguments == (call("rows", ref("self")), call("cols", ref("self"))):
                return "identity(self)"
            sizes = ", ".join(self.text(size) for size in arguments)
            return f"torch.eye({sizes}, dtype=self.dtype, device=self.device)"
        if name == "count_of":
            inner = self.text(arguments[0], _ATOM)
            return f"({inner}.shape[-2] * {inner}.shape[-1])"
        if name in ("max", "min"):
            return self.extreme(name, *arguments)
        if name == WHOLE:
            return self.each_token(*arguments)
        if name in _TOKENS:
            return f"{name}({', '.join(self.text(argument) for argument in arguments)})"
        if name in _NUMBERS and kind == "number":
            return f"{_NUMBERS[name]}({self.text(arguments[0])})"
        if name == "gelu_tanh":
            return f'torch.nn.functional.gelu({self.tensor(arguments[0])}, approximate="tanh")'
        if name in _TORCH:
            return f"{_TORCH[name]}({self.tensor(arguments[0])})"
        return self.matrix_function(name, arguments)

    def matrix_function(self, name: str, arguments: tuple[Expr, ...]) -> str:
        first = self.tensor(arguments[0]) if name != "sqrt" else self.text(arguments[0])
        inner = self.text(arguments[0], _ATOM) if not self.algebra.scalar(arguments[0]) else first
        rest = "".join(f", {self.text(argument)}" for argument in arguments[1:])
        if name == "transpose":
            return f"{inner}.mT"
        if name in ("sum", "mean"):
            return f"{inner}.{name}((-2, -1), keepdim=True)"
        if name == "trace":
            return f"{inner}.diagonal(0, -2, -1).sum(-1)[..., None, None]"
        if name in ("ones_like", "zeros_like"):
            return f"torch.{name}({first})"
        if name == "at_least":
            return f"({first} >= {self.text(arguments[1], 1)}).to(self.dtype)"
        if name == "clip":
            return f"torch.clamp({first}{rest})"
        if name == "dot":
            return f"dot({first}, {self.tensor(arguments[1])})"
        if name in KERNELS:
            return f"{name}({first}{rest})"
        raise fail("N0480", f"rules cannot apply `{name}` yet")

    def each_token(self, weight: Expr, value: Expr) -> str:
        """A value that is computed for tokens as a batch; parameters are numbers, and the same inside."""
        used = dict.fromkeys(name for name in names(value) if name not in (*self.plan.parameters, COUNT))
        rows = [self.identifier(name) for name in used if name in self.plan.tokens]
        once = ["self", *(self.identifier(name) for name in used if name not in (*self.plan.tokens, "self"))]
        given = ", ".join((*rows, *once))
        listed = (f"[{', '.join(part)}]" for part in (rows, once))
        inner = self.text(value)
        return f"tokens_whole(lambda {given}: {inner}, {self.text(weight)}, {', '.join(listed)})"

    def tensor(self, expr: Expr) -> str:
        """A scalar may be a Python number, which torch functions do not take."""
        return f"as_tensor({self.text(expr)}, self)" if self.algebra.scalar(expr) else self.text(expr)

    def extreme(self, name: str, a: Expr, b: Expr) -> str:
        kinds = {self.algebra.kind(a), self.algebra.kind(b)}
        if kinds == {"number"}:
            return f"{name}({self.text(a)}, {self.text(b)})"
        if self.algebra.kind(a) == "number":
            a, b = b, a
        if self.algebra.kind(b) == "number":
            return f"torch.clamp({self.tensor(a)}, {'min' if name == 'max' else 'max'}={self.text(b)})"
        return f"torch.{name}imum({self.tensor(a)}, {self.tensor(b)})"
