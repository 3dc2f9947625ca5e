"""A program laid out flat: every unit at its path, and searches for the memories that a value comes from.

The searches are breadth-first over names, never recursive over the program, and look at a repeat's body once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import field

from nsam.dsl.checked import (
    Apply,
    Call,
    Child,
    Expr,
    Memory,
    Output,
    Read,
    Ref,
    Repeat,
    State,
    Unit,
    memory_expressions,
    walk,
)
from nsam.dsl.records import dataclass
from nsam.dsl.sizes import Size
from nsam.dsl.spans import Span


@dataclass(eq=False, slots=True)
class Scope:
    """One unit at one path: `""` for the system itself, `repeat.*.titans` for a call inside every pass of a repeat."""

    unit: Unit
    path: str = ""
    count: Size = 1
    parent: Scope | None = None
    site: Child | None = None
    children: dict[str, Scope] = field(default_factory=dict)
    values: dict[str, Expr] = field(default_factory=dict)
    memories: dict[str, Memory] = field(default_factory=dict)

    def place(self, name: str) -> str:
        """Return the full path of a memory of this unit."""
        return f"{self.path}.{name}" if self.path else name

    def find(self, name: str) -> tuple[Scope, Memory] | None:
        """Return the memory that `name` means here; a repeat's body also sees the memories around it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.memories:
                return scope, scope.memories[name]
            scope = scope.parent if isinstance(scope.site, Repeat) else None
        return None


@dataclass(frozen=True, slots=True)
class Found:
    """A memory whose output, or state, a value is made of. `carried`: it comes from the pass before (of a repeat)."""

    path: str
    span: Span
    carried: bool


def scopes(unit: Unit) -> list[Scope]:
    """Return the scope of `unit` and of every unit inside it, outer ones first."""
    found = [_scope(unit, "", 1, None, None)]
    for scope in found:
        for child in scope.unit.children:
            body, count, name = (
                (child.unit, scope.count, child.name)
                if isinstance(child, Call)
                else (child.body, scope.count * child.count, f"{child.name}.*")
            )
            inner = _scope(body, scope.place(name), count, scope, child)
            scope.children[child.name] = inner
            found.append(inner)
    return found


def _scope(unit: Unit, path: str, count: Size, parent: Scope | None, site: Child | None) -> Scope:
    scope = Scope(unit, path, count, parent, site)
    scope.values = {binding.name: binding.value for binding in unit.bindings}
    scope.memories = {memory.name: memory for memory in unit.memories}
    return scope


def arguments(child: Child) -> tuple[Expr, ...]:
    """Return the expressions fed to a child's inputs, in the order of its inputs."""
    if isinstance(child, Call):
        return child.arguments
    return tuple(value for _, value in (*child.carried, *child.captured))


def expressions(scope: Scope) -> Iterator[Expr]:
    """Yield every expression that stands in a unit: bindings, arguments of children, clauses, outputs."""
    yield from scope.values.values()
    for child in scope.unit.children:
        yield from arguments(child)
    for memory in scope.unit.memories:
        yield from memory_expressions(memory)
    yield from (value for _, value in scope.unit.outputs)


def behind(scope: Scope, expr: Ref | Output) -> Iterator[tuple[Scope, Expr, bool]]:
    """Yield what a name stands for: (scope, expression, whether it comes from the pass before)."""
    if isinstance(expr, Output):
        inner = scope.children[expr.child]
        yield inner, dict(inner.unit.outputs)[expr.name], False
        return
    if expr.name in scope.values:
        yield scope, scope.values[expr.name], False
        return
    if scope.site is None or scope.parent is None:
        return
    names = [given.name for given in scope.unit.inputs]
    if expr.name not in names:
        return
    yield scope.parent, arguments(scope.site)[names.index(expr.name)], False
    carried = dict(scope.unit.outputs)
    if isinstance(scope.site, Repeat) and expr.name in carried:
        yield scope, carried[expr.name], True


def sources(scope: Scope, starts: Iterable[Expr], *, through: bool = False, passes: bool = True) -> Iterator[Found]:
    """Yield the memories that the values of `starts` are made of, each path at most once for each `carried`.

    The search stops at a memory's read, unless `through`: then it goes on into what the memory is read at. With
    `passes` False it stays within one pass of every repeat. `self(…)` is transparent: only its argument is searched.
    """
    queue: list[tuple[Scope, Expr, bool]] = [(scope, expr, False) for expr in starts]
    seen: set[tuple[int, str, bool]] = set()
    given: set[tuple[str, bool]] = set()
    while queue:
        here, start, carried = queue.pop()
        for leaf, inner in leaves(start):
            if isinstance(leaf, Ref | Output):
                key = (id(here), leaf.name if isinstance(leaf, Ref) else f"{leaf.child}/{leaf.name}", carried)
                if key in seen:
                    continue
                seen.add(key)
                queue.extend((s, e, carried or c) for s, e, c in behind(here, leaf) if passes or not c)
                continue
            if isinstance(leaf, Read) and leaf.memory == "self":
                queue.append((here, leaf.argument, carried))
                continue
            place = here.find(leaf.memory)
            if place is None:
                continue
            path = place[0].place(leaf.memory)
            if (path, carried) not in given:
                given.add((path, carried))
                yield Found(path, leaf.span, carried)
            if through and inner is not None:
                queue.append((here, inner, carried))


def leaves(expr: Expr) -> Iterator[tuple[Ref | Output | Read | State, Expr | None]]:
    """Yield the names and reads that an expression is made of (not those inside a read's argument, given with it)."""
    stack = [expr]
    while stack:
        node = stack.pop()
        if isinstance(node, Apply):
            stack.extend(reversed(node.arguments))
        elif isinstance(node, Read):
            yield node, node.argument
        elif isinstance(node, Ref | Output | State):
            yield node, None


def all_reads(scope: Scope) -> Iterator[tuple[str, Expr]]:
    """Yield (path of the memory, argument) for every read that stands in a unit."""
    for start in expressions(scope):
        for node in walk(start):
            if isinstance(node, Read) and node.memory != "self":
                place = scope.find(node.memory)
                if place is not None:
                    yield place[0].place(node.memory), node.argument
