"""The syntax tree: what the text says, before names and types mean anything.

Every node is frozen and carries its span. Spans and comments do not take part in equality, so that
`parse(format(p)) == parse(p)` compares meaning.
"""

from __future__ import annotations

from dataclasses import field
from typing import TypeAlias

from nsam.dsl.records import dataclass
from nsam.dsl.spans import Span


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of syntax with its place in the text."""

    span: Span = field(compare=False, repr=False)


# --- expressions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Number(Node):
    """`4`, `1e-3`, `inf`; `is_int` when written without point or exponent."""

    value: float | int
    is_int: bool


@dataclass(frozen=True, slots=True)
class Text(Node):
    """A string literal, escapes resolved."""

    value: str


@dataclass(frozen=True, slots=True)
class Boolean(Node):
    """`true` or `false`."""

    value: bool


@dataclass(frozen=True, slots=True)
class Name(Node):
    """An identifier in an expression (`self`, `key`, `grad` … are ordinary names here)."""

    id: str


@dataclass(frozen=True, slots=True)
class ListOf(Node):
    """`[a, b, c]`."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Unary(Node):
    """`-a`."""

    operator: str
    operand: Expression


@dataclass(frozen=True, slots=True)
class Binary(Node):
    """`a + b`; operators + - * / @ ^."""

    operator: str
    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True)
class Argument(Node):
    """`x` or `name = x` in a call."""

    name: str | None
    value: Expression


@dataclass(frozen=True, slots=True)
class Call(Node):
    """`f(a, b, name = c)`; a memory read, a system, or a function; `transposed` for `m.T(x)`."""

    function: str
    function_span: Span = field(compare=False, repr=False)
    arguments: tuple[Argument, ...] = ()
    transposed: bool = False


Expression: TypeAlias = Number | Text | Boolean | Name | ListOf | Unary | Binary | Call


# --- types and structures ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TypeName(Node):
    """Type of a parameter: `int`, `float`, `bool`, `str`, `list[int]`; `element` for lists."""

    id: str
    element: str | None = None


@dataclass(frozen=True, slots=True)
class ValueShape(Node):
    """Type of an input: `[dim]`, `[a, b]`, `[]`; or `token(vocab)` with `vocab` set."""

    sizes: tuple[Expression, ...]
    vocab: Expression | None = None


@dataclass(frozen=True, slots=True)
class Structure(Node):
    """`mlp(dim -> 4*dim -> dim, act = silu, residual, heads = heads)`.

    `sizes` is the arrow chain or the leading positional arguments; `named` the `name = value` ones;
    `flags` bare words after them (`residual`, `bias`, `gated`). A lone word among the arguments
    parses as a size; the checker decides whether it is a flag.
    """

    kind: str
    kind_span: Span = field(compare=False, repr=False)
    sizes: tuple[Expression, ...] = ()
    arrows: bool = False
    named: tuple[Argument, ...] = ()
    flags: tuple[Name, ...] = ()


# --- clauses of a memory -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Learn(Node):
    """`learn key -> value over last n tokens`."""

    key: Expression
    value: Expression | None = None
    window: Expression | None = None


@dataclass(frozen=True, slots=True)
class Minimize(Node):
    """`minimize OBJECTIVE`: a bare name, a call, or an expression."""

    objective: Expression


@dataclass(frozen=True, slots=True)
class By(Node):
    """`by rule(args)`; `targets` is `matrices`, `others` or None (only inside `train`)."""

    rule: str
    rule_span: Span = field(compare=False, repr=False)
    arguments: tuple[Argument, ...] = ()
    targets: str | None = None


@dataclass(frozen=True, slots=True)
class Every(Node):
    """`every n tokens|steps|updates [summed]`; `unit` is singular: token, step, update.

    `every n..m tokens when surprise > x`: `period` is n, `slowest` m, `threshold` x. The parser sets both or neither.
    """

    period: Expression
    unit: str
    summed: bool = False
    slowest: Expression | None = None
    threshold: Expression | None = None


@dataclass(frozen=True, slots=True)
class Reads(Node):
    """`reads boundary|running`."""

    mode: str


@dataclass(frozen=True, slots=True)
class Reset(Node):
    """`reset every n tokens` (kind `every`), `reset per sequence` (`sequence`), `reset never`."""

    kind: str
    period: Expression | None = None


@dataclass(frozen=True, slots=True)
class Init(Node):
    """`init learned [normal(s)]` (kind `learned`), `init zeros`, `init EXPR` (`expression`)."""

    kind: str
    deviation: Expression | None = None
    expression: Expression | None = None


Clause: TypeAlias = Learn | Minimize | By | Every | Reads | Reset | Init


# --- statements ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identifier(Node):
    """A name where it is declared or assigned."""

    id: str


@dataclass(frozen=True, slots=True)
class Parameter(Node):
    """`dim: int = 64`; rules leave out the type."""

    name: str
    type: TypeName | None = None
    default: Expression | None = None


@dataclass(frozen=True, slots=True)
class InputDeclaration(Node):
    """`input x: [dim] [per sequence]`."""

    name: Identifier
    type: ValueShape
    per_sequence: bool = False


@dataclass(frozen=True, slots=True)
class MemoryDeclaration(Node):
    """`memory a, b[p in list]: STRUCTURE { clauses }`; `index` is (variable, list)."""

    names: tuple[Identifier, ...]
    structure: Structure
    clauses: tuple[Clause, ...] = ()
    index: tuple[Identifier, Expression] | None = None
    braced: bool = False


@dataclass(frozen=True, slots=True)
class Let(Node):
    """`let name = value`."""

    name: Identifier
    value: Expression


@dataclass(frozen=True, slots=True)
class Assign(Node):
    """`name = value`, a reassignment inside `repeat`."""

    name: Identifier
    value: Expression


@dataclass(frozen=True, slots=True)
class Repeat(Node):
    """`repeat N { … }`."""

    count: Expression
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class TransferDeclaration(Node):
    """`transfer a, b -> c : kind`."""

    sources: tuple[Identifier, ...]
    targets: tuple[Identifier, ...]
    kind: str
    kind_span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Output(Node):
    """`output EXPR`."""

    value: Expression


@dataclass(frozen=True, slots=True)
class StateDeclaration(Node):
    """`state m = zeros` in a rule."""

    name: Identifier
    initial: Expression


@dataclass(frozen=True, slots=True)
class Update(Node):
    """`self <- EXPR` in a rule."""

    target: Identifier
    value: Expression


@dataclass(frozen=True, slots=True)
class Field(Node):
    """`model hope(…)`, `data text(…)` or `steps 150` in a `train` declaration."""

    name: str
    value: Expression


Statement: TypeAlias = (
    InputDeclaration
    | MemoryDeclaration
    | Let
    | Assign
    | Repeat
    | TransferDeclaration
    | Output
    | StateDeclaration
    | Update
)


# --- declarations and files ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Use(Node):
    """`use std.rules (a, b)` (`module` set) or `use "./file.nsam" (a)` (`path` set)."""

    module: str | None
    path: str | None
    names: tuple[Identifier, ...]


@dataclass(frozen=True, slots=True)
class RuleDeclaration(Node):
    """`rule NAME(params) { … }`."""

    name: Identifier
    parameters: tuple[Parameter, ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class SystemDeclaration(Node):
    """`system NAME(params) { … }`."""

    name: Identifier
    parameters: tuple[Parameter, ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class TrainDeclaration(Node):
    """`train NAME { … }`; `fields` in source order: Field, Minimize, By, Every."""

    name: Identifier
    fields: tuple[Field | Minimize | By | Every, ...]


Declaration: TypeAlias = RuleDeclaration | SystemDeclaration | TrainDeclaration


@dataclass(frozen=True, slots=True)
class Comment(Node):
    """A `#` comment with its text; `alone` when nothing else stands on its line."""

    text: str
    alone: bool


@dataclass(frozen=True, slots=True)
class File(Node):
    """One `.nsam` file."""

    edition: int
    docstring: str | None
    uses: tuple[Use, ...]
    declarations: tuple[Declaration, ...]
    comments: tuple[Comment, ...] = field(default=(), compare=False)
