"""Declared transfers: that both ends are memories, and that what is declared can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsam.dsl import syntax
from nsam.dsl.checked import Transfer
from nsam.dsl.diagnostics import Label
from nsam.dsl.findings import Skip, did_you_mean
from nsam.dsl.memories import Info
from nsam.dsl.names import inside
from nsam.dsl.spans import Span

if TYPE_CHECKING:
    from nsam.dsl.bodies import Body


def build_transfers(body: Body) -> tuple[Transfer, ...]:
    """Return the transfers that a body declares, one for each pair of memories."""
    found: dict[tuple[str, str, bool], Transfer] = {}
    for node in body.statements:
        if isinstance(node, syntax.TransferDeclaration):
            try:
                _add(body, node, found)
            except Skip:
                body.failed = True
    return tuple(found.values())


def _add(body: Body, node: syntax.TransferDeclaration, found: dict[tuple[str, str, bool], Transfer]) -> None:
    sources = [info for name in node.sources for info in _members(body, name)]
    targets = [info for name in node.targets for info in _members(body, name)]
    initial = node.kind in ("init", "generate")
    for source in sources:
        for target in targets:
            transfer = Transfer(source.path, target.path, node.kind, node.span)  # type: ignore[arg-type]
            earlier = found.setdefault((source.path, target.path, initial), transfer)
            if earlier.kind != node.kind:
                raise body.findings.error(
                    "N0233",
                    f"the transfer {source.path} -> {target.path} is both `{earlier.kind}` and `{node.kind}`",
                    node.kind_span,
                    f"`{node.kind}` here",
                    secondary=[Label(earlier.span, f"`{earlier.kind}` here")],
                )
            if initial:
                _check_initial(body, node, source, target)


def _members(body: Body, name: syntax.Identifier) -> list[Info]:
    if name.id in body.memories:
        return body.memories[name.id].members
    outside = body.outer_memory(name.id)
    if outside is not None:
        raise body.refuse_outer(name.id, outside, name.span)
    what = "is no memory" if name.id in body.versions else "is unknown"
    raise body.findings.error(
        "N0206" if name.id in body.versions else "N0201",
        f"`{name.id}` {what}: a transfer joins memories",
        name.span,
        "not a memory",
        help=did_you_mean(name.id, body.memories),
    )


def _check_initial(body: Body, node: syntax.TransferDeclaration, source: Info, target: Info) -> None:
    """Check that `init` and `generate` agree with the target's `init` clause."""
    clause = next((clause for clause in target.node.clauses if isinstance(clause, syntax.Init)), None)
    expression = None if clause is None else clause.expression
    copied = isinstance(expression, syntax.Name) and expression.id == source.path
    made = expression is not None and _reads(body, expression, source.path, target.position)
    if copied if node.kind == "init" else made and not copied:
        return
    wanted = f"init {source.path}" if node.kind == "init" else f"init {source.path}(…)"
    secondary: list[Label] = [Label(target.span if clause is None else clause.span, f"`{target.path}` starts here")]
    _refuse(body, node, source, target, secondary, wanted)


def _refuse(
    body: Body, node: syntax.TransferDeclaration, source: Info, target: Info, secondary: list[Label], wanted: str
) -> None:
    place: Span = node.kind_span
    raise body.findings.error(
        "N0233",
        f"`{target.path}` does not take its initial state from `{source.path}` by `{node.kind}`",
        place,
        "declared here",
        secondary=secondary,
        help=f"write `{wanted}` in the clauses of `{target.path}`, or leave the transfer out",
    )


def _reads(body: Body, expression: syntax.Expression, path: str, position: int) -> bool:
    """Whether an initial state is made with memory `path`, directly or through lets."""
    waiting, seen = [expression], set[str]()
    while waiting:
        for node in inside([waiting.pop()]):
            name = node.id if isinstance(node, syntax.Name) else node.function if isinstance(node, syntax.Call) else ""
            if name == path:
                return True
            if name in body.versions and name not in seen:
                seen.add(name)
                waiting.extend(
                    statement.value
                    for statement in body.statements
                    if isinstance(statement, syntax.Let) and statement.name.id == name
                )
    return False
