"""Names: what a file declares, and which names a piece of syntax mentions."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import field
from typing import Generic, TypeVar

from nsam.dsl import syntax
from nsam.dsl.diagnostics import Label
from nsam.dsl.findings import Findings
from nsam.dsl.records import dataclass

D = TypeVar("D", syntax.SystemDeclaration, syntax.RuleDeclaration, syntax.TrainDeclaration)


@dataclass(frozen=True, eq=False)
class Declared(Generic[D]):
    """A declaration and the module whose names its body sees."""

    node: D
    module: Module


@dataclass(eq=False)
class Module:
    """One file's names: what it declares and what it brings in by `use` (with the module that declares it).

    `refused` are names in `use` that cannot be brought in: reported there, and not again where they are used.
    """

    file: syntax.File
    systems: dict[str, Declared[syntax.SystemDeclaration]] = field(default_factory=dict)
    rules: dict[str, Declared[syntax.RuleDeclaration]] = field(default_factory=dict)
    trains: dict[str, Declared[syntax.TrainDeclaration]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    def place_of(self, name: str) -> tuple[str, syntax.Declaration] | None:
        """Return the kind ("system", "rule" or "train") and the declaration of `name`, or None."""
        if name in self.systems:
            return "system", self.systems[name].node
        if name in self.rules:
            return "rule", self.rules[name].node
        return ("train", self.trains[name].node) if name in self.trains else None

    def names(self) -> list[str]:
        """Return every name declared or imported here."""
        return [*self.systems, *self.rules, *self.trains]

    def declare(self, node: syntax.Declaration, findings: Findings) -> None:
        """Add a declaration of this file; N0202 when the name is taken."""
        earlier = self.place_of(node.name.id)
        if earlier is not None:
            findings.error(
                "N0202",
                f"`{node.name.id}` is declared twice",
                node.name.span,
                "declared again here",
                secondary=[Label(earlier[1].name.span, f"the first one, a {earlier[0]}")],
                help="give one of the two another name, or leave it out",
            )
        elif isinstance(node, syntax.SystemDeclaration):
            self.systems[node.name.id] = Declared(node, self)
        elif isinstance(node, syntax.RuleDeclaration):
            self.rules[node.name.id] = Declared(node, self)
        else:
            self.trains[node.name.id] = Declared(node, self)

    def bring(self, name: str, source: Module) -> None:
        """Make `name` of another module visible here."""
        if name in source.systems:
            self.systems[name] = source.systems[name]
        if name in source.rules:
            self.rules[name] = source.rules[name]


# --- walks over syntax, without recursion ---------------------------------------------------------


def inside(expressions: Iterable[syntax.Expression | None]) -> Iterator[syntax.Expression]:
    """Yield the expressions and everything below them, in the order of the text."""
    stack = [node for node in expressions if node is not None][::-1]
    while stack:
        node = stack.pop()
        yield node
        match node:
            case syntax.ListOf():
                stack.extend(reversed(node.items))
            case syntax.Unary():
                stack.append(node.operand)
            case syntax.Binary():
                stack.extend((node.right, node.left))
            case syntax.Call():
                stack.extend(argument.value for argument in reversed(node.arguments))


def clause_expressions(clause: syntax.Clause) -> list[syntax.Expression]:
    """Return a clause's expressions over the system's values: not objectives, not periods."""
    match clause:
        case syntax.Learn():
            return [clause.key] if clause.value is None else [clause.key, clause.value]
        case syntax.By():
            return [argument.value for argument in clause.arguments]
        case syntax.Init() if clause.expression is not None:
            return [clause.expression]
    return []


def memory_values(node: syntax.MemoryDeclaration) -> list[syntax.Expression]:
    """Return the expressions over the system's values in a memory's clauses."""
    return [expression for clause in node.clauses for expression in clause_expressions(clause)]


def statement_values(node: syntax.Statement) -> list[syntax.Expression]:
    """Return a statement's expressions over the system's values; a repeat's are those of its body."""
    match node:
        case syntax.Let() | syntax.Assign() | syntax.Output():
            return [node.value]
        case syntax.MemoryDeclaration():
            return memory_values(node)
    return []


def all_statements(body: Iterable[syntax.Statement]) -> Iterator[syntax.Statement]:
    """Yield the statements of a body and of the repeats in it, in the order of the text."""
    stack = list(body)[::-1]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, syntax.Repeat):
            stack.extend(reversed(node.body))


def declared_names(body: Iterable[syntax.Statement]) -> dict[str, syntax.Identifier]:
    """Return the names that a body declares itself (lets, memories, inputs), not those of repeats in it."""
    found: dict[str, syntax.Identifier] = {}
    for node in body:
        if isinstance(node, syntax.Let | syntax.InputDeclaration):
            found.setdefault(node.name.id, node.name)
        elif isinstance(node, syntax.MemoryDeclaration):
            for name in node.names:
                found.setdefault(name.id, name)
    return found


def free_names(body: tuple[syntax.Statement, ...]) -> dict[str, syntax.Expression]:
    """Return the names that a repeat's body mentions and does not declare, with the first place of each."""
    found: dict[str, syntax.Expression] = {}
    own = declared_names(body)
    for node in body:
        if isinstance(node, syntax.Repeat):
            inner: Mapping[str, syntax.Expression] = free_names(node.body)
        else:
            hidden = node.index[0].id if isinstance(node, syntax.MemoryDeclaration) and node.index else None
            inner = {
                name.id: name
                for name in inside(statement_values(node))
                if isinstance(name, syntax.Name) and name.id != hidden
            }
        for name, place in inner.items():
            if name not in own:
                found.setdefault(name, place)
    return found


def assigned_names(body: tuple[syntax.Statement, ...]) -> dict[str, syntax.Identifier]:
    """Return the outer names that a repeat's body reassigns, with the first place of each."""
    found: dict[str, syntax.Identifier] = {}
    own = declared_names(body)
    for node in body:
        if isinstance(node, syntax.Assign):
            inner: Mapping[str, syntax.Identifier] = {node.name.id: node.name}
        else:
            inner = assigned_names(node.body) if isinstance(node, syntax.Repeat) else {}
        for name, place in inner.items():
            if name not in own:
                found.setdefault(name, place)
    return found


class UniqueNames:
    """Hands out names, each once: `h`, then `h_2`, `h_3`, …"""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._numbers: dict[str, int] = {}

    def take(self, name: str, besides: Container[str] = ()) -> str:
        """Return `name`, or the first `name_2`, `name_3`, … that is free and not in `besides`; it is taken then."""
        found, number = name, self._numbers.get(name, 1)
        while found in self._taken or found in besides:
            number += 1
            found = f"{name}_{number}"
        self._numbers[name] = number
        self._taken.add(found)
        return found
