"""Which parameters the outer gradient can reach: a walk backwards from the system's output.

The walk follows reads, contexts and gates as backpropagation does. It stops at `direct` transfers, at functions,
rules and objectives whose derivative is zero, and at memories that never move; each stop is remembered, so that a
parameter left without a gradient can be explained by the stop that took it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import field
from typing import Literal, TypeAlias

from nsam.compiler.collect import in_sequence, members, uses
from nsam.compiler.curvature import Moves, is_flat, moves
from nsam.compiler.scopes import Scope, behind, leaves, scopes
from nsam.dsl.checked import (
    Apply,
    Expr,
    Memory,
    Output,
    Read,
    Ref,
    Rule,
    RuleLet,
    RuleMemory,
    RuleUpdate,
    State,
    Unit,
    ValueType,
)
from nsam.dsl.functions import FUNCTIONS
from nsam.dsl.records import dataclass
from nsam.dsl.spans import Span
from nsam.dsl.types import SCALAR

Cause: TypeAlias = Literal["direct", "frozen", "rule", "objective", "function"]


@dataclass(frozen=True, slots=True)
class Stop:
    """A place where the gradient ends: why, where, and at which memory's, rule's or function's hands (`by`).

    Of an objective, `by` says what its gradient does not move with: "value of `m`".
    """

    cause: Cause
    span: Span
    by: str


@dataclass(slots=True)
class Reached:
    """Paths that get a gradient, paths that are read on the way to the output at all, and who stopped the others."""

    live: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    stops: dict[str, Stop] = field(default_factory=dict)


_Item: TypeAlias = "tuple[Scope, Expr, str | None, Stop | None]"


def reached(unit: Unit) -> Reached:
    """Return which memories of a system the outer gradient reaches, and what stopped it before the others."""
    return _Walk(unit).run()


class _Walk:
    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.scopes = scopes(unit)
        self.memories = {scope.place(m.name): (scope, m) for scope in self.scopes for m in scope.unit.memories}
        self.direct = {
            (source, target): transfer.span
            for scope in self.scopes
            for transfer in scope.unit.transfers
            if transfer.kind == "direct"
            for source in members(transfer.source, scope, self.memories)
            for target in members(transfer.target, scope, self.memories)
        }
        self.guarded = {target for _, target in self.direct}
        self.found = Reached()
        self.seen: set[tuple[int, str, str | None, bool]] = set()
        self.opened: set[tuple[str, bool]] = set()
        self.queue: list[_Item] = []
        self.stopped: list[_Item] = []

    def run(self) -> Reached:
        """Walk with the gradient first, so that a stopped walk over the same names finds only what is left."""
        self.push((self.scopes[0], value, None, None) for _, value in self.unit.outputs)
        while self.queue or self.stopped:
            self.visit((self.queue or self.stopped).pop())
        return self.found

    def push(self, items: Iterable[_Item]) -> None:
        for item in items:
            (self.queue if item[3] is None else self.stopped).append(item)

    def visit(self, item: _Item) -> None:
        scope, start, into, stop = item
        for leaf, argument, flat in _leaves(start):
            ends = stop or (Stop("function", leaf.span, flat) if flat else None)
            if isinstance(leaf, Ref | Output):
                self.name(scope, leaf, into, ends)
            elif isinstance(leaf, Read) and leaf.memory == "self":
                if ends is None and into is not None and (into, into) in self.direct:
                    ends = Stop("direct", self.direct[into, into], into)
                self.push([(scope, leaf.argument, into, ends)])
            else:
                self.memory(scope, leaf.memory, argument, into, ends)

    def name(self, scope: Scope, leaf: Ref | Output, into: str | None, stop: Stop | None) -> None:
        guard = into if into in self.guarded else None
        name = leaf.name if isinstance(leaf, Ref) else f"{leaf.child}/{leaf.name}"
        key = (id(scope), name, guard, stop is None)
        if key not in self.seen:
            self.seen.add(key)
            self.push((place, value, guard, stop) for place, value, _ in behind(scope, leaf))

    def memory(self, scope: Scope, name: str, argument: Expr | None, into: str | None, stop: Stop | None) -> None:
        place = scope.find(name)
        if place is None:
            return
        path = place[0].place(name)
        if (path, into) in self.direct and stop is None:
            stop = Stop("direct", self.direct[path, str(into)], str(into))
        self.mark(path, stop)
        if argument is not None:
            self.push([(scope, argument, path, stop)])
        if (path, stop is None) not in self.opened:
            self.opened.add((path, stop is None))
            self.push(self.state(path, *place, stop))

    def mark(self, path: str, stop: Stop | None) -> None:
        self.found.used.add(path)
        if stop is None:
            self.found.live.add(path)
        else:
            self.found.stops.setdefault(path, stop)

    def state(self, path: str, scope: Scope, memory: Memory, stop: Stop | None) -> Iterator[_Item]:
        """Yield what a memory's state is made of: initial state, context, gates."""
        if memory.initial.expression is not None:
            yield scope, memory.initial.expression, path, stop
        if memory.initial.memory is not None:
            yield scope, State(ValueType(()), memory.span, memory.initial.memory), path, stop
        if not in_sequence(memory):
            return
        moving = memory.fast or memory.structure.kind == "attention"
        inner = None if memory.rule is None else _Inner(path, memory)
        for use, expr in uses(memory):
            ends = stop
            if ends is None and not moving:
                ends = Stop("frozen", memory.frequency.span if memory.frequency else memory.span, path)
            if ends is None and inner is not None:
                ends = inner.stop(use)
            yield scope, expr, path, ends


class _Inner:
    """The inner problem of a memory that has a rule: which clauses its new state moves with."""

    def __init__(self, path: str, memory: Memory) -> None:
        assert memory.rule is not None
        self.path, self.rule, self.objective = path, memory.rule, memory.objective
        self.names = derivative_names(memory.rule.rule)
        self.moves = None if memory.objective is None else moves(memory.objective, memory.structure)

    def stop(self, use: str) -> Stop | None:
        """Return what keeps a clause's value from the new state: the rule, the objective, or None for nothing."""
        rule = Stop("rule", self.rule.span, self.rule.rule.name)
        if use not in ("key", "value") or self.objective is None or self.moves is None:
            return None if use in self.names else rule
        if _smooth(use, self.names, self.moves):
            return None
        steep = Moves(frozenset({use}), frozenset({use}), self.moves.read)
        if not _smooth(use, self.names, steep):
            return rule
        return Stop("objective", self.objective.span, f"{use} of `{self.path}`")


def _smooth(use: str, names: frozenset[str], inner: Moves) -> bool:
    """Return whether a key or value reaches the new state with a gradient, given the names that the rule keeps.

    To the rule, `key` is what the layer reads: the memory's key, and what else the objective reads it at.
    """
    by_key = "key" in names and (use == "key" or use in inner.read)
    return by_key or ("grad" in names and use in inner.grad) or ("err" in names and use in inner.err)


def derivative_names(rule: Rule) -> frozenset[str]:
    """Return the names of a rule that its new `self` depends on with a derivative that is not zero everywhere.

    Names are those a rule may mention: key, grad, err, its parameters. Rules nested in it are looked into.
    """
    values: dict[str, list[Expr]] = {}
    inner: dict[str, RuleMemory] = {}
    for statement in rule.statements:
        if isinstance(statement, RuleLet):
            values.setdefault(statement.name, []).append(statement.value)
        elif isinstance(statement, RuleUpdate):
            values.setdefault(statement.target, []).append(statement.value)
        elif isinstance(statement, RuleMemory):
            inner[statement.name] = statement
    names: set[str] = set()
    queue = list(values.get("self", ()))
    while queue:
        for leaf, argument, flat in _leaves(queue.pop()):
            name = leaf.name if isinstance(leaf, Ref) else getattr(leaf, "memory", "")
            if flat:
                continue
            if argument is not None:
                queue.append(argument)
            if name in names:
                continue
            names.add(name)
            queue.extend(values.get(name, ()))
            if name in inner:
                queue.extend(_inner_values(inner[name]))
    return frozenset(names)


def _inner_values(memory: RuleMemory) -> Iterator[Expr]:
    names = derivative_names(memory.rule.rule)
    inner = moves(memory.objective, memory.structure)
    if memory.context.key is not None and _smooth("key", names, inner):
        yield memory.context.key
    if _smooth("value", names, inner):
        yield memory.context.value
    for name in (inner.grad | inner.err | inner.read) - {"key", "value"}:
        if _smooth(name, names, inner):
            yield Ref(SCALAR, memory.objective.span, name)
    for name, argument in memory.rule.arguments:
        if name in names:
            yield argument


def _leaves(expr: Expr) -> Iterator[tuple[Ref | Output | Read | State, Expr | None, str]]:
    """Yield (leaf, argument of a read, name of a flat function above it or "")."""
    stack: list[tuple[Expr, str]] = [(expr, "")]
    while stack:
        node, flat = stack.pop()
        if isinstance(node, Apply):
            below = _written(node.function) if is_flat(node) else flat
            stack.extend((argument, below) for argument in node.arguments)
        else:
            yield from ((leaf, argument, flat) for leaf, argument in leaves(node))


def _written(function: str) -> str:
    return FUNCTIONS[function].operator or function
