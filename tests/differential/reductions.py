"""One-step reductions of a program's syntax tree. Many are not valid programs; whoever asks checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tree import rewrite, variants, walk

from nsam.dsl import syntax as s
from nsam.dsl.spans import Source, Span

NOWHERE = Span(Source("<shrunk>", ""), 0, 0)
Sequence = tuple[Any, ...]


def reductions(file: s.File, system: str) -> Iterator[s.File]:
    """Smaller files, the boldest first: without declarations, statements, then with one node made simpler."""
    yield from _without_declarations(file, system)
    for index, declaration in enumerate(file.declarations):
        if not isinstance(declaration, s.TrainDeclaration):
            for smaller in _without_statements(declaration):
                yield _with_declaration(file, index, smaller)
    yield from _smaller_numbers(file)
    for index, declaration in enumerate(file.declarations):
        places = _Places(declaration)
        for simpler in variants(declaration, places.simpler):
            yield _with_declaration(file, index, simpler)


def size(file: s.File) -> tuple[int, int, float]:
    """What a reduction makes smaller: statements and clauses, nodes, the sum of whole numbers."""
    nodes = list(walk(file))
    large = sum(not isinstance(n, s.Number | s.Name | s.Call | s.Binary | s.Argument | s.Identifier) for n in nodes)
    numbers = sum(float(n.value) for n in nodes if isinstance(n, s.Number) and n.is_int and n.value != float("inf"))
    return large, len(nodes), numbers


def _with_declaration(file: s.File, index: int, declaration: Any) -> s.File:
    return replace(file, declarations=(*file.declarations[:index], declaration, *file.declarations[index + 1 :]))


# --- declarations ---


def _without_declarations(file: s.File, system: str) -> Iterator[s.File]:
    used = {n.rule for n in walk(file) if isinstance(n, s.By)} | {
        n.function for n in walk(file) if isinstance(n, s.Call)
    }
    kept = tuple(d for d in file.declarations if d.name.id == system or d.name.id in used)
    uses = tuple(replace(u, names=tuple(n for n in u.names if n.id in used)) for u in file.uses)
    yield replace(file, declarations=kept, uses=tuple(u for u in uses if u.names))
    for declaration in kept:  # a system that is called may fail on its own
        if isinstance(declaration, s.SystemDeclaration) and declaration.name.id != system:
            main = replace(declaration, name=s.Identifier(NOWHERE, system))
            others = tuple(d for d in kept if d.name.id != system and d is not declaration)
            yield replace(file, declarations=(*others, main))


# --- statements ---


def _without_statements(declaration: Any) -> Iterator[Any]:
    """A declaration without some of the statements of one of its bodies: halves first, single ones last."""

    def shorter(node: Any) -> Iterator[Any]:
        if isinstance(node, s.SystemDeclaration | s.RuleDeclaration | s.Repeat):
            for kept, dropped in _splits(node.body):
                yield replace(node, body=_without(kept, dropped))
        if isinstance(node, s.MemoryDeclaration) and len(node.names) > 1:
            yield from (replace(node, names=(*node.names[:i], *node.names[i + 1 :])) for i in range(len(node.names)))

    found = list(variants(declaration, shorter))
    return (_mended(declaration, smaller) for smaller in found)


def _splits(body: Sequence) -> Iterator[tuple[Sequence, Sequence]]:
    """What is kept and what is dropped: runs of a half, a quarter, … of the statements, from the end."""
    length = max(len(body) // 2, 1)
    while True:
        for stop in range(len(body), 0, -length):
            start = max(stop - length, 0)
            yield (*body[:start], *body[stop:]), body[start:stop]
        if length == 1:
            return
        length = max(length // 2, 1)


def _without(kept: Sequence, dropped: Sequence) -> Sequence:
    """Statements with the names of dropped ones replaced: a `let` by its value, a read by what it reads."""
    values = {d.name.id: d.value for d in dropped if isinstance(d, s.Let)}
    values |= {d.name.id: s.Name(NOWHERE, "grad") for d in dropped if isinstance(d, s.StateDeclaration)}
    memories = {n.id for d in dropped if isinstance(d, s.MemoryDeclaration) for n in d.names}
    for _ in range(len(values)):
        values = {name: _replaced(value, values, set()) for name, value in values.items()}
    return tuple(_replaced(statement, values, memories) for statement in kept)


def _mended(before: Any, after: Any) -> Any:
    """Without what refers to memories that are no longer there."""

    def names(declaration: Any) -> set[str]:
        return {n.id for m in walk(declaration) if isinstance(m, s.MemoryDeclaration) for n in m.names}

    gone = names(before) - names(after)
    if not gone:
        return after
    after = _replaced(after, {}, gone)

    def cut(node: Any) -> Any:
        if not isinstance(node, s.SystemDeclaration | s.Repeat):
            return node
        body = []
        for statement in node.body:
            if isinstance(statement, s.TransferDeclaration):
                sources = tuple(n for n in statement.sources if n.id not in gone)
                targets = tuple(n for n in statement.targets if n.id not in gone)
                statement = replace(statement, sources=sources, targets=targets)
                if not sources or not targets:
                    continue
            body.append(statement)
        return replace(node, body=tuple(body))

    return rewrite(after, cut)


def _replaced(node: Any, values: dict[str, Any], memories: set[str]) -> Any:
    def change(inner: Any) -> Any:
        if isinstance(inner, s.Name) and inner.id in values:
            return values[inner.id]
        if isinstance(inner, s.Call) and inner.function in memories and inner.arguments:
            return inner.arguments[0].value
        return inner

    return rewrite(node, change)


# --- numbers ---


def _smaller_numbers(file: s.File) -> Iterator[s.File]:
    """One whole number smaller wherever it stands: sizes must agree."""
    found = {int(n.value) for n in walk(file) if isinstance(n, s.Number) and n.is_int and n.value != float("inf")}

    for old in sorted(found, reverse=True):
        for new in _below(old):

            def change(node: Any, old: int = old, new: int = new) -> Any:
                if isinstance(node, s.Number) and node.is_int and node.value == old:
                    return replace(node, value=new)
                return node

            yield rewrite(file, change)


def _below(n: int) -> list[int]:
    return [m for m in dict.fromkeys((1, 2, n // 2, n - 1)) if 0 < m < n]


# --- nodes ---


class _Places:
    """What a node can be replaced by; values by the inputs of the declaration that it stands in."""

    def __init__(self, declaration: Any) -> None:
        rule = isinstance(declaration, s.RuleDeclaration)
        inputs = [n.name.id for n in walk(declaration) if isinstance(n, s.InputDeclaration)]
        self.names = [s.Name(NOWHERE, name) for name in (["grad"] if rule else inputs)]

    def simpler(self, node: Any) -> Iterator[Any]:
        match node:
            case s.Binary():
                yield from (*self.names, node.left, node.right)
            case s.Unary():
                yield node.operand
            case s.Call():
                yield from self.names
                yield from (a.value for a in node.arguments)
                yield from _fewer(node, "arguments")
            case s.Name():
                yield from (name for name in self.names if name.id < node.id)
            case s.Number(is_int=True) if node.value != float("inf"):
                yield from (replace(node, value=n) for n in _below(int(node.value)))
            case s.Argument() if not isinstance(node.value, s.Number):
                yield replace(node, value=s.Number(NOWHERE, 0.1, is_int=False))
            case s.MemoryDeclaration():
                yield replace(node, clauses=()) if node.clauses else replace(node, braced=False)
                yield from _fewer(node, "clauses")
            case s.Structure():
                yield from _structures(node)
            case s.Learn() | s.Minimize() | s.By() | s.Every() | s.Reset() | s.Init():
                yield from _clauses(node)


def _fewer(node: Any, name: str) -> Iterator[Any]:
    items = getattr(node, name)
    yield from (replace(node, **{name: (*items[:i], *items[i + 1 :])}) for i in range(len(items) - 1, -1, -1))


def _structures(node: s.Structure) -> Iterator[s.Structure]:
    if node.kind == "mlp":
        yield s.Structure(NOWHERE, "linear", NOWHERE, (node.sizes[0], node.sizes[-1]), arrows=True)
        yield from (replace(node, sizes=(*node.sizes[:i], *node.sizes[i + 1 :])) for i in range(1, len(node.sizes) - 1))
    yield from _fewer(node, "flags")
    yield from _fewer(node, "named")


def _clauses(node: Any) -> Iterator[Any]:
    match node:
        case s.Learn() if node.window is not None:
            yield replace(node, window=None)
        case s.Minimize():
            yield from (replace(node, objective=s.Name(NOWHERE, name)) for name in ("dot", "l2"))
        case s.By():
            tenth = s.Argument(NOWHERE, "lr", s.Number(NOWHERE, 0.1, is_int=False))
            yield s.By(NOWHERE, "gd", NOWHERE, (tenth,), node.targets)
            yield from _fewer(node, "arguments")
        case s.Every():
            if node.slowest is not None:
                yield replace(node, slowest=None, threshold=None)
                yield replace(node, period=node.slowest, slowest=None, threshold=None)
            if node.summed:
                yield replace(node, summed=False)
        case s.Init():
            yield from (s.Init(NOWHERE, kind) for kind in ("zeros", "learned"))
