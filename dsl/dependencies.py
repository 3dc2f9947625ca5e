"""What must be computed before what, within one token; cycles are drawn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

from nsam.dsl import syntax
from nsam.dsl.diagnostics import Label
from nsam.dsl.memories import Info
from nsam.dsl.names import assigned_names, free_names, inside, memory_values, statement_values
from nsam.dsl.spans import Span

if TYPE_CHECKING:
    from nsam.dsl.bodies import Body

NodeId: TypeAlias = "int | str"
"""A statement's position, or a memory's path."""

START = -1
"""The position of inputs."""


def needs(body: Body, node: NodeId, infos: dict[str, Info], soft: bool) -> list[NodeId]:
    """Return what must be computed before `node`.

    Hard needs are what its type depends on. Soft ones also count what the memories that it reads need within the
    token: running reads see the current token's key and value, a generated initial state sees its generator.
    """
    if isinstance(node, int):
        statement = body.statements[node]
        if isinstance(statement, syntax.Repeat):
            names = [*assigned_names(statement.body), *free_names(statement.body)]
            return [need for name in names for need in _version_node(body, name, node)]
        return _mentioned(body, statement_values(statement), node, infos, soft)
    info = infos[node]
    if info.structure.kind == "attention":
        return _mentioned(body, memory_values(info.node), info.position, infos, soft)
    if not soft:
        return []
    made = [clause.expression for clause in info.node.clauses if isinstance(clause, syntax.Init)]
    values = memory_values(info.node) if info.running else [value for value in made if value is not None]
    return _mentioned(body, values, info.position, infos, soft)


def _mentioned(
    body: Body, values: Iterable[syntax.Expression], position: int, infos: dict[str, Info], soft: bool
) -> list[NodeId]:
    found: list[NodeId] = []
    for node in inside(values):
        name = node.id if isinstance(node, syntax.Name) else node.function if isinstance(node, syntax.Call) else ""
        if isinstance(node, syntax.Name):
            found.extend(_version_node(body, name, position))
        if name in body.memories:
            members = body.memories[name].members
            found.extend(info.path for info in members if soft or info.structure.kind == "attention")
    return found


def report_cycle(body: Body, cycle: list[NodeId]) -> None:
    """Report N0208 and draw the cycle, in the direction in which values flow."""
    body.failed = True
    places = [(_title(body, node), _place(body, node)) for node in reversed(cycle)]
    start = min(range(len(places)), key=lambda index: places[index][1].start)
    places = places[start:] + places[:start]
    text = " -> ".join([title for title, _ in [*places, places[0]]])
    body.findings.error(
        "N0208",
        f"these values need each other within one token: {text}",
        places[0][1],
        f"`{places[0][0]}` is needed for itself",
        secondary=[Label(place, f"`{title}`") for title, place in places[1:]],
        help="a memory that is read at its boundary breaks a cycle: it shows what it learnt before this token",
    )


def _title(body: Body, node: NodeId) -> str:
    if isinstance(node, str):
        return node
    statement = body.statements[node]
    return statement.name.id if isinstance(statement, syntax.Let | syntax.Assign) else "repeat"


def _place(body: Body, node: NodeId) -> Span:
    if isinstance(node, str):
        return next(info.span for named in body.memories.values() for info in named.members if info.path == node)
    statement = body.statements[node]
    return statement.name.span if isinstance(statement, syntax.Let | syntax.Assign) else statement.span


def _version_node(body: Body, name: str, position: int) -> list[NodeId]:
    version = body.version(name, position)
    return [] if version is None or version == START else [version]
