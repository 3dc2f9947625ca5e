"""Whether a rule fits what it moves.

A rule is checked once, over a matrix of unknown size: whether a memory that it declares with a size of its own
(`linear(3 -> 3)`) fits `grad` is known where the rule is used. There its expressions are gone through once more, with
the sizes of the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from nsam.dsl.checked import (
    Apply,
    Expr,
    Read,
    Repeat,
    Rule,
    RuleLet,
    RuleMemory,
    RuleState,
    RuleUpdate,
    RuleUse,
    Structure,
    Unit,
    ValueType,
)
from nsam.dsl.diagnostics import Label
from nsam.dsl.findings import Findings
from nsam.dsl.functions import FUNCTIONS
from nsam.dsl.sizes import Poly, Size, substituted
from nsam.dsl.spans import Span
from nsam.dsl.structures import input_size, output_size, state_shape
from nsam.dsl.types import ANY, COLUMNS, ROWS, ShapeProblem, same_size, shape_text

Host = tuple[Size, Size]
"""Rows and columns of a matrix that a rule moves; a vector is one row."""


def require_fit(findings: Findings, use: RuleUse, hosts: Iterable[Host], span: Span) -> None:
    """Check that a rule fits its hosts: N0214 at `span`, with the place in the rule beside."""
    if not any(has_own_sizes(use.rule)):
        return
    for rows, columns in dict.fromkeys(hosts):
        try:
            _Fit(rows, columns).rule(use.rule)
        except _Misfit as problem:
            raise findings.error(
                "N0214",
                f"rule `{use.rule.name}` does not fit a matrix [{rows}, {columns}]: {problem.message}",
                span,
                "this matrix has other sizes than the rule asks for",
                secondary=[Label(problem.span, "here")],
                help="write the sizes of memories in a rule with `rows(self)` and `cols(self)`",
            ) from None


def has_own_sizes(rule: Rule) -> Iterator[bool]:
    """Yield for each memory in a rule, and in those of its memories, whether it is shaped otherwise than its host."""
    for statement in rule.statements:
        if isinstance(statement, RuleMemory):
            yield statement.structure.kind != "like"
            yield from has_own_sizes(statement.rule.rule)


def hosts_of(structure: Structure) -> Iterator[Host]:
    """Yield what a rule moves of a memory: each tensor, of one head."""
    for shape in structure.tensors().values():
        sizes = shape if structure.heads is None else shape[1:]
        yield (1, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def trained_hosts(unit: Unit, matrices: bool | None) -> Iterator[Host]:
    """Yield what a training level's rule moves: matrices (of linear and mlp memories), the others, or (None) all."""
    for memory in unit.memories:
        layers = memory.structure.kind in ("linear", "mlp")
        if memory.rule is None or memory.fast:
            for host, shape in zip(hosts_of(memory.structure), memory.structure.tensors().values(), strict=True):
                flat = len(shape) - (memory.structure.heads is not None) == 1
                if matrices is None or matrices == (layers and not flat):
                    yield host
    for child in unit.children:
        yield from trained_hosts(child.body if isinstance(child, Repeat) else child.unit, matrices)


class _Misfit(Exception):
    def __init__(self, message: str, span: Span) -> None:
        super().__init__(message)
        self.message, self.span = message, span


class _Fit:
    """A rule over a matrix of known size. Sizes of the system that have no value yet fit what they may."""

    def __init__(self, rows: Size, columns: Size) -> None:
        self.host = (rows, columns)
        (rows_name,), (columns_name,) = ROWS.names, COLUMNS.names
        self.values: Mapping[str, Size] = {rows_name: rows, columns_name: columns}
        self.structures: dict[str, Structure] = {}

    def size(self, size: Size) -> Size:
        return substituted(size, self.values) if isinstance(size, Poly) else size

    def type(self, expr: Expr) -> ValueType:
        """Return an expression's type; raise `_Misfit` for shapes that do not fit."""
        if isinstance(expr, Apply):
            types = [self.type(argument) for argument in expr.arguments]
            if expr.function not in FUNCTIONS:  # constant matrices, which fit all places, and objectives, numbers
                return expr.type
            try:
                shape = FUNCTIONS[expr.function].shape(types, dict(expr.options))
            except ShapeProblem as problem:
                raise _Misfit(problem.message, expr.span) from None
            return ValueType(shape, expr.type.per)
        if isinstance(expr, Read):
            argument = self.type(expr.argument)
            structure = self.structures.get(expr.memory)
            if structure is not None and structure.kind != "like":
                into = self.size(input_size(structure, expr.transposed))
                if argument.shape and not _fits(argument.shape[-1:], (into,)):
                    message = f"`{expr.memory}` reads [{into}], this is {shape_text(argument)}"
                    raise _Misfit(message, expr.argument.span)
        return ValueType(tuple(map(self.size, expr.type.shape)), expr.type.per)

    def rule(self, rule: Rule) -> None:
        for statement in rule.statements:
            if isinstance(statement, RuleMemory):
                self.memory(statement)
            elif isinstance(statement, RuleLet):
                self.type(statement.value)
            elif isinstance(statement, RuleState | RuleUpdate):
                value = statement.initial if isinstance(statement, RuleState) else statement.value
                found = self.type(value)
                if found.shape and not _fits(found.shape, self.host):
                    raise _Misfit(f"{shape_text(found)} is not {shape_text(ValueType(self.host))}", value.span)

    def memory(self, memory: RuleMemory) -> None:
        structure = memory.structure
        self.structures |= {memory.name: structure, "self": structure}
        key, value = memory.context.key, memory.context.value
        if key is None:
            shape = self.host if structure.kind == "like" else state_shape(structure) or ()
        else:
            read = Read(memory.context.value.type, memory.span, memory.name, key)
            self.type(read)
            out = ROWS if structure.kind == "like" else output_size(structure)
            shape = (*self.type(key).shape[:-1], out)
        wanted = tuple(map(self.size, shape))
        found = self.type(value)
        if not _fits(found.shape, wanted):
            message = f"`{memory.name}` learns {shape_text(ValueType(wanted))}, this is {shape_text(found)}"
            raise _Misfit(message, value.span)
        if memory.objective.expression is not None:
            self.type(memory.objective.expression)
        for _, argument in memory.rule.arguments:
            self.type(argument)
        for host in self.own_hosts(structure):
            _Fit(*host).rule(memory.rule.rule)

    def own_hosts(self, structure: Structure) -> Iterator[Host]:
        """Yield what the rule of a rule's memory moves."""
        if structure.kind == "like":
            yield self.host
            return
        for into, out in pairwise(map(self.size, structure.sizes)):
            yield (out, into)


def _fits(found: tuple[Size, ...], wanted: tuple[Size, ...]) -> bool:
    return len(found) == len(wanted) and all(a == ANY or same_size(a, b) for a, b in zip(found, wanted, strict=True))
