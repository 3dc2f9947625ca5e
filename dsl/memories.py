"""Memories as a body declares them, before their clauses are read: names, members of lists, structures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsam.dsl import syntax
from nsam.dsl.checked import Structure, ValueType
from nsam.dsl.constants import FUNCTIONS, Evaluator, UnknownList, Value
from nsam.dsl.findings import Skip, did_you_mean
from nsam.dsl.order import ordered
from nsam.dsl.spans import Span
from nsam.dsl.structures import Structures
from nsam.dsl.types import Per
from nsam.dsl.words import counted

if TYPE_CHECKING:
    from nsam.dsl.bodies import Body

MOST_MEMORIES = 100_000
MOST_MEMBERS = 128
"""Members of a list of memories; a chain of them is one expression inside another."""
_LIST = "a list is written `[1, 2, 4]`, or is a parameter such as `periods: list[int]`"


@dataclass(eq=False)
class Info:
    """One memory of a body. `per` says how often its state changes; `kept` are an attention's key and value types."""

    path: str
    node: syntax.MemoryDeclaration
    span: Span
    position: int
    evaluator: Evaluator
    structure: Structure
    per: Per = "constant"
    running: bool = False
    kept: tuple[ValueType, ValueType] | None = None

    def clauses(self, kind: type) -> list[syntax.Clause]:
        """Return the clauses of one kind, in order."""
        return [clause for clause in self.node.clauses if isinstance(clause, kind)]


@dataclass(eq=False)
class Named:
    """What a memory's name stands for: one memory, or a list of them. `length` is symbolic for a symbolic list."""

    name: syntax.Identifier
    members: list[Info]
    listed: bool
    length: Value


def declare_memories(body: Body) -> dict[str, Named]:
    """Return the memories of a body by name; a name whose declaration is wrong stands for nothing, silently."""
    found: dict[str, Named] = {}
    alike: dict[str, tuple[int, syntax.MemoryDeclaration]] = {}
    total = 0
    for position, node in enumerate(body.statements):
        if not isinstance(node, syntax.MemoryDeclaration):
            continue
        for name in node.names:
            found[name.id] = Named(name, [], node.index is not None, 1)
            if node.structure.kind == "like":
                alike[name.id] = (position, node)
        if node.structure.kind == "like":
            continue
        try:
            total += _declare(body, found, position, node, total)
        except Skip:
            body.failed = True
    _declare_alike(body, found, alike)
    return found


def _declare(body: Body, found: dict[str, Named], position: int, node: syntax.MemoryDeclaration, total: int) -> int:
    """Add the memories of one declaration; return how many there are."""
    evaluators, length = _members(body, node)
    count = len(evaluators) * len(node.names)
    if total + count > MOST_MEMORIES:
        raise body.findings.error(
            "N0240", f"more than {MOST_MEMORIES} memories", node.span, f"{counted(count, 'memory')} in this declaration"
        )
    structures = [Structures(evaluator).build(node.structure) for evaluator in evaluators]
    for name in node.names:
        named = found[name.id]
        named.length = length
        for index, (evaluator, structure) in enumerate(zip(evaluators, structures, strict=True)):
            path = f"{name.id}.{index}" if named.listed else name.id
            named.members.append(_info(path, node, name.span, position, evaluator, structure))
    return count


def _members(body: Body, node: syntax.MemoryDeclaration) -> tuple[list[Evaluator], Value]:
    """Return an evaluator for each member of a list (one for a single memory), and the list's length."""
    if node.index is None:
        return [body.evaluator], 1
    variable, values = node.index
    if isinstance(values, syntax.Call) and values.function not in FUNCTIONS:
        raise body.findings.error("N0210", "expected a list", values.span, "not a list", help=_LIST)
    items = body.evaluator.value(values)
    length: Value
    if isinstance(items, UnknownList):
        members, length = [items.item], items.length
    elif isinstance(items, tuple):
        members, length = list(items), len(items)
    else:
        raise body.findings.error("N0210", "expected a list", values.span, "not a list", help=_LIST)
    if not members:
        raise body.findings.error("N0211", "this list is empty", values.span, "no memory at all")
    if len(members) > MOST_MEMBERS:
        raise body.findings.error(
            "N0240", f"a list of more than {MOST_MEMBERS} memories", values.span, f"{length} here"
        )
    base = body.evaluator
    names = [dict(base.names) | {variable.id: item} for item in members]
    return [Evaluator(base.findings, found, base.explain) for found in names], length


def _info(
    path: str, node: syntax.MemoryDeclaration, span: Span, position: int, evaluator: Evaluator, structure: Structure
) -> Info:
    info = Info(path, node, span, position, evaluator, structure)
    info.running = any(isinstance(clause, syntax.Reads) and clause.mode == "running" for clause in node.clauses)
    moving = [clause for clause in node.clauses if isinstance(clause, syntax.Every) and clause.unit == "token"]
    made = [clause for clause in node.clauses if isinstance(clause, syntax.Init) and clause.kind == "expression"]
    if structure.kind == "attention" or (moving and evaluator.value(moving[0].period) != float("inf")):
        info.per = "token"
    elif made:
        info.per = "sequence"
    return info


def _declare_alike(body: Body, found: dict[str, Named], alike: dict[str, tuple[int, syntax.MemoryDeclaration]]) -> None:
    """Add the memories whose structure is `like(other)`, after the others that they are like."""

    def other(name: str) -> list[str]:
        sizes = alike[name][1].structure.sizes
        return [size.id for size in sizes if isinstance(size, syntax.Name)]

    order, cycles = ordered(list(alike), other)
    for cycle in cycles:
        node = alike[cycle[0]][1]
        text = " -> ".join([*cycle, cycle[0]])
        body.findings.error("N0208", f"these memories are like each other: {text}", node.structure.span, "a cycle")
        body.failed = True
    for name in order:
        position, node = alike[name]
        try:
            _like(body, found, found[name], position, node)
        except Skip:
            body.failed = True


def _like(body: Body, found: dict[str, Named], named: Named, position: int, node: syntax.MemoryDeclaration) -> None:
    structure = node.structure
    sizes = structure.sizes
    if len(sizes) != 1 or structure.named or structure.flags or not isinstance(sizes[0], syntax.Name):
        raise body.findings.error("N0219", "`like` takes the name of a memory", structure.span, help="`like(other)`")
    other = sizes[0].id
    if other not in found:
        raise body.findings.error(
            "N0201", f"unknown memory `{other}`", sizes[0].span, "no memory here", help=did_you_mean(other, found)
        )
    if not found[other].members:
        raise Skip
    evaluators, named.length = _members(body, node)
    copied = found[other].members[0].structure
    for index, evaluator in enumerate(evaluators):
        path = f"{named.name.id}.{index}" if named.listed else named.name.id
        named.members.append(_info(path, node, named.name.span, position, evaluator, copied))
