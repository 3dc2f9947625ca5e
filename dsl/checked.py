"""The checked program: every name resolved, every shape known, every named objective an expression.

This is what `dsl` hands to `compiler`. One `Unit` is a system (or the body of a `repeat`) with its parameters given;
units nest exactly as modules do in the generated code. Sizes are `int` once parameters are given and `Poly` (see
`sizes.py`) while a program is only being checked. Everything is frozen and carries its span.

Expressions (all of them, for systems, objectives, rules and training alike):

    e ::= Constant(value)                       a compile-time number
        | Ref(name)                             a binding or an input; in rules self, key, grad, err, a state, a let;
                                                in objectives key, value; in rules a parameter
        | Apply(function, arguments, options)   a function without parameters, see `functions.py`
        | Read(memory, argument, transposed)    m(x), m.T(x); memory "self" is the memory being declared
        | State(memory)                         the state of a vector memory, or of a memory inside a rule
        | Output(child, name)                   what a call or a repeat of this unit returns
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from nsam.dsl.records import dataclass
from nsam.dsl.sizes import Size
from nsam.dsl.spans import Span

Constant_: TypeAlias = "int | float | bool | str | tuple[Constant_, ...]"


@dataclass(frozen=True, slots=True)
class ValueType:
    """Shape of one token's value. Batch and time axes are implicit.

    `per`: "token" (varies along the sequence), "sequence" (one value a sequence), "constant" (depends on slow
    weights only: neither batch nor time axis). `vocab` is set for integer tokens (then `shape` is ()).
    """

    shape: tuple[Size, ...]
    per: Literal["token", "sequence", "constant"] = "token"
    vocab: Size | None = None


# --- expressions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Expr:
    """An expression with its type and place; both are left out of equality."""

    type: ValueType = field(compare=False, repr=False)
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Constant(Expr):
    """A number known at compile time (parameters of systems are folded into these)."""

    value: float | int


@dataclass(frozen=True, slots=True)
class Ref(Expr):
    """A name bound in the surrounding unit, rule or objective."""

    name: str


@dataclass(frozen=True, slots=True)
class Apply(Expr):
    """A function or operator (`add sub mul div neg pow matmul` for + - * / unary - ^ @).

    `options` are compile-time arguments by name, e.g. `(("heads", 4),)` for `normalize(x, heads)`.
    """

    function: str
    arguments: tuple[Expr, ...]
    options: tuple[tuple[str, float | int | str], ...] = ()

    def option(self, name: str, default: float | int | str | None = None) -> float | int | str | None:
        """Return the option called `name`, or `default`."""
        return dict(self.options).get(name, default)


@dataclass(frozen=True, slots=True)
class Read(Expr):
    """`m(x)`, or `m.T(x)` when `transposed`; `memory` is "self" inside the memory's own clauses."""

    memory: str
    argument: Expr
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class State(Expr):
    """A memory's bare name: the tensor of a `vector`, or the state of a memory declared in a rule."""

    memory: str


@dataclass(frozen=True, slots=True)
class Output(Expr):
    """Result `name` of the call or repeat called `child` in this unit (`name` is "output" for calls)."""

    child: str
    name: str = "output"


# --- memories ------------------------------------------------------------------------------------

StructureKind: TypeAlias = Literal[
    "linear", "mlp", "conv", "table", "vector", "rmsnorm", "layernorm", "attention", "like"
]


@dataclass(frozen=True, slots=True)
class Structure:
    """What a memory's state is.

    `sizes`: linear (in, out); mlp (in, hidden…, out); conv (dim, width); table (n, dim); vector (n,);
    rmsnorm and layernorm (dim,); attention (); `like` (inside rules: the shape of the host's `self`) ().
    `heads`: n independent copies on the n slices of the input, or None when not declared (no head axis). `eps`: what
    a norm adds under its root, None where it is not declared (1e-6).
    """

    kind: StructureKind
    sizes: tuple[Size, ...]
    heads: Size | None = None
    act: str | None = None
    residual: bool = False
    gated: bool = False
    bias: bool = False
    kv_heads: Size | None = None
    window: Size | None = None
    eps: float | None = None

    def tensors(self) -> dict[str, tuple[Size, ...]]:
        """Return the state's tensors by `state_dict` name, with shapes, heads axis first.

        linear `weight` [out, in] and `bias` [out]; mlp `w1`, `w2`, … in the order in which they apply, each
        [out, in], then `g1`, … (the gates of a gated mlp, one for each hidden layer) and `b1`, …; conv `weight`
        [dim, width], last tap on the current token; table `weight` [n, dim]; vector `weight` [n]; rmsnorm `weight`
        [dim]; layernorm `weight` and `bias` [dim].
        """
        lead: tuple[Size, ...] = () if self.heads is None else (self.heads,)
        split = 1 if self.heads is None else self.heads
        if self.kind in ("linear", "mlp"):
            sizes = [size // split for size in self.sizes]
            layers = list(pairwise(sizes))
            if self.kind == "linear":
                found = {"weight": (*lead, layers[0][1], layers[0][0])}
                return found | ({"bias": (*lead, layers[0][1])} if self.bias else {})
            found = {f"w{i}": (*lead, out, into) for i, (into, out) in enumerate(layers, 1)}
            if self.gated:
                found |= {f"g{i}": (*lead, out, into) for i, (into, out) in enumerate(layers[:-1], 1)}
            if self.bias:
                found |= {f"b{i}": (*lead, out) for i, (_, out) in enumerate(layers, 1)}
            return found
        if self.kind in ("conv", "table"):
            return {"weight": (self.sizes[0], self.sizes[1])}
        if self.kind in ("vector", "rmsnorm"):
            return {"weight": (self.sizes[0],)}
        if self.kind == "layernorm":
            return {"weight": (self.sizes[0],), "bias": (self.sizes[0],)}
        return {}


@dataclass(frozen=True, slots=True)
class Context:
    """`learn key -> value over last window tokens`; a value-less context has `key` None."""

    key: Expr | None
    value: Expr
    window: Size | None
    span: Span


@dataclass(frozen=True, slots=True)
class Objective:
    """`minimize …`. `expression` is the scalar to minimise, in `Read("self", …)`, `Ref("key")`, `Ref("value")`.

    `name` is dot, l2, lp, huber, pseudo_huber, oja, task or expression; `task` has no expression: its error is what
    backpropagation brings. Value-less contexts: `Read("self", Constant(1))` stands for the state itself.
    """

    name: str
    expression: Expr | None
    span: Span


@dataclass(frozen=True, slots=True)
class Frequency:
    """`every period tokens|steps|updates [summed]`; period `inf` is frequency 0.

    `every period..slowest tokens when surprise > threshold` is adaptive: both are set or neither. At each multiple of
    `period` each sequence decides for itself, all heads together: the memory moves if its surprise, the mean of its
    objective at the last boundary's state over heads and the tokens since its last update, exceeds `threshold`, or if
    `slowest` tokens have passed. No gradient flows through the decision.
    """

    period: Size | float
    unit: Literal["token", "step", "update"]
    summed: bool
    span: Span
    slowest: Size | None = None
    threshold: float | Any = None


@dataclass(frozen=True, slots=True)
class Reset:
    """`reset every n tokens` ("every"), per sequence ("sequence"), never ("never")."""

    kind: Literal["every", "sequence", "never"]
    period: Size | None = None


@dataclass(frozen=True, slots=True)
class Initial:
    """Initial state: "learned" (`deviation` None means the structure's default), "zeros", "memory" (a copy of memory
    `memory`'s state), or "expression" (a generator's output, row-major layer by layer)."""

    kind: Literal["learned", "zeros", "memory", "expression"]
    deviation: float | None = None
    memory: str | None = None
    expression: Expr | None = None


@dataclass(frozen=True, slots=True)
class RuleUse:
    """`by rule(arguments)`. `arguments` binds every parameter of the rule, defaults filled in, in order.

    In a system they are expressions of the unit (Constant, or one scalar or [heads] value a token); in a rule's
    memory, expressions of the surrounding rule.
    """

    rule: Rule
    arguments: tuple[tuple[str, Expr], ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Memory:
    """One associative memory of a unit. `name` is its path in the unit: `mem`, `level.0`.

    A memory without `frequency` is a parameter of the level that trains the system. `reads` is "boundary" or
    "running". For attention, `context` holds the keys and values that are kept.
    """

    name: str
    structure: Structure
    span: Span
    context: Context | None = None
    objective: Objective | None = None
    rule: RuleUse | None = None
    frequency: Frequency | None = None
    reads: Literal["boundary", "running"] = "boundary"
    reset: Reset = Reset("sequence")
    initial: Initial = Initial("learned")

    @property
    def fast(self) -> bool:
        """Whether the state moves inside the sequence (token clock, finite period)."""
        return self.frequency is not None and self.frequency.unit == "token" and self.frequency.period != float("inf")

    @property
    def end_to_end(self) -> bool:
        """Whether the state moves inside the sequence by the model's own loss (`minimize task` on the token clock)."""
        return self.fast and self.objective is not None and self.objective.name == "task"


# --- rules ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RuleState:
    """`state m = zeros`: a tensor like the host's `self`, initial value a scalar expression or `zeros`."""

    name: str
    initial: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class RuleMemory:
    """A memory declared in a rule: its context is gradients. `structure.kind` is "like" for `like(self)`.

    `initial` is what every tensor starts from, a number or a multiple of the identity; None is zeros.
    """

    name: str
    structure: Structure
    context: Context
    objective: Objective
    rule: RuleUse
    period: int
    summed: bool
    reads: Literal["boundary", "running"]
    span: Span
    initial: Expr | None = None


@dataclass(frozen=True, slots=True)
class RuleLet:
    """`let name = value` in a rule."""

    name: str
    value: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class RuleUpdate:
    """`target <- value`; `target` is "self" or a state."""

    target: str
    value: Expr
    span: Span


RuleStatement: TypeAlias = RuleState | RuleMemory | RuleLet | RuleUpdate


@dataclass(frozen=True, slots=True)
class Rule:
    """A learning rule, instantiated: compile-time arguments (periods, iterations) are folded in.

    `statements` run in order. Shapes inside are those of one matrix and unknown (`ValueType(())` for scalars,
    `ValueType(("matrix",))`-like markers are not used): backends work on tensors of the host's shape.
    `needs` is the subset of {"key", "grad", "err"} that the body mentions.
    """

    name: str
    parameters: tuple[str, ...]
    statements: tuple[RuleStatement, ...]
    needs: frozenset[str]
    span: Span


# --- units ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Input:
    """An input of a unit."""

    name: str
    type: ValueType
    span: Span


@dataclass(frozen=True, slots=True)
class Binding:
    """`name = value`, assigned once (`h`, then `h_2`, … for reassignments; `source` is the user's name)."""

    name: str
    source: str
    value: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class Call:
    """A system used in a unit: a child unit fed with `arguments` (one expression for each of its inputs)."""

    name: str
    unit: Unit
    arguments: tuple[Expr, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Repeat:
    """`repeat count { … }`: `count` copies of `body`, each with its own memories, one after the other.

    The body's inputs are the carried names, in the order of `carried`, then the captured outer values, in the order
    of `captured`. Its outputs are the carried names. `carried` and `captured` give the expressions fed to the first
    pass; pass i + 1 gets the outputs of pass i for the carried ones.
    """

    name: str
    count: Size
    body: Unit
    carried: tuple[tuple[str, Expr], ...]
    captured: tuple[tuple[str, Expr], ...]
    span: Span


Child: TypeAlias = Call | Repeat


@dataclass(frozen=True, slots=True)
class Transfer:
    """A declared `transfer source -> target : kind`."""

    source: str
    target: str
    kind: Literal["backprop", "direct", "init", "generate"]
    span: Span


@dataclass(frozen=True, slots=True)
class Unit:
    """A system, or the body of a repeat, with its parameters given.

    `steps` holds bindings and children in an order in which every name is defined before its use within the token
    (reads of memories' earlier state are not uses). `outputs` is `(("output", expr),)` for a system.
    """

    name: str
    parameters: Mapping[str, Constant_] = field(hash=False)
    inputs: tuple[Input, ...]
    memories: tuple[Memory, ...]
    steps: tuple[Binding | Child, ...]
    outputs: tuple[tuple[str, Expr], ...]
    transfers: tuple[Transfer, ...]
    span: Span

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """The let bindings, in order."""
        return tuple(step for step in self.steps if isinstance(step, Binding))

    @property
    def children(self) -> tuple[Child, ...]:
        """Calls and repeats, in order."""
        return tuple(step for step in self.steps if isinstance(step, Call | Repeat))

    def memory(self, name: str) -> Memory:
        """Return the memory called `name`; KeyError when there is none."""
        for memory in self.memories:
            if memory.name == name:
                return memory
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Train:
    """A `train` declaration: the level whose clock is the step.

    `objective` is an expression over `Output("model")`, the model's inputs (`Ref`) and `Apply("next", …)`.
    `rules` pairs each rule with "matrices", "others" or "all". `data` is (kind, options).
    """

    name: str
    model: Unit
    data: tuple[str, Mapping[str, Constant_]]
    objective: Expr
    rules: tuple[tuple[RuleUse, Literal["matrices", "others", "all"]], ...]
    every: int
    steps: int
    span: Span


def walk(expr: Expr) -> Iterator[Expr]:
    """Yield `expr` and everything below it, parents first, without recursion."""
    stack = [expr]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, Apply):
            stack.extend(reversed(node.arguments))
        elif isinstance(node, Read):
            stack.append(node.argument)


def memory_expressions(memory: Memory) -> Iterator[Expr]:
    """Yield the expressions in a memory's clauses: key, value, rule arguments, generated initial state."""
    if memory.context is not None:
        if memory.context.key is not None:
            yield memory.context.key
        yield memory.context.value
    if memory.rule is not None:
        yield from (argument for _, argument in memory.rule.arguments)
    if memory.initial.expression is not None:
        yield memory.initial.expression
