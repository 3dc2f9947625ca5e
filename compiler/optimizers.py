"""The memories and states inside rules: an optimizer's momenta are optimisation problems of their own (eq. 33-37).

A rule that serves one memory inside a sequence gives it nodes of its own (`m.trace`). The training level's rules serve
many memories at once: one node for each rule memory, each group of parameters and each period of the hosts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nsam.compiler.describe import clause, source_text, structure_text
from nsam.compiler.problems import Edge, Kind, Need, Problem
from nsam.compiler.rates import Rate
from nsam.dsl.checked import Expr, Read, Ref, Rule, RuleLet, RuleMemory, RuleState, RuleUpdate, State, walk
from nsam.dsl.records import dataclass


@dataclass(frozen=True, slots=True)
class Served:
    """What a rule serves: the hosts' paths, the rate at which it is applied, and where its own memories live.

    `moved` are the nodes whose update it is: the hosts, but the training level for those whose initial state it learns.
    """

    prefix: str
    system: str
    unit: str
    hosts: tuple[str, ...]
    moved: tuple[str, ...]
    rate: Rate
    size: int | None
    inside: bool


@dataclass(frozen=True, slots=True)
class Inside:
    """Nodes, transfers and same-time needs that one use of a rule adds."""

    problems: tuple[Problem, ...]
    edges: tuple[Edge, ...]
    needs: tuple[Need, ...]


def rule_problems(rule: Rule, served: Served) -> Inside:
    """Return the problems inside `rule` where it serves `served.hosts`, nested rules included.

    Transfers: the host writes the gradients that the rule's memory learns from (`generate`, section 3.3); the host's
    update is conditioned on the memory's state, with a gradient through it inside a sequence (`backprop`) and without
    one on the step clock (`direct`).
    """
    problems: list[Problem] = []
    edges: list[Edge] = []
    needs: list[Need] = []
    paths: dict[str, str] = {}
    lets: dict[str, Expr] = {}
    fresh: set[str] = set()
    back: Kind = "backprop" if served.inside else "direct"

    def connect(value: Expr, targets: Sequence[str], use: str) -> None:
        for name in _mentions(value, lets, paths):
            now = name in fresh
            shows = "same-time" if now else "last boundary"
            edges.extend(Edge(paths[name], to, back, (use,), shows, value.span) for to in targets if to != paths[name])  # type: ignore[arg-type]
            if now:
                needs.extend(Need(paths[name], to, use, value.span) for to in targets if to != paths[name])

    for statement in rule.statements:
        match statement:
            case RuleState():
                paths[statement.name] = f"{served.prefix}.{statement.name}"
                problems.append(_state(statement, rule, served))
            case RuleMemory():
                path = paths[statement.name] = f"{served.prefix}.{statement.name}"
                problem = _memory(statement, served)
                problems.append(problem)
                edges.extend(
                    Edge(h, path, "generate", ("gradient",), "last boundary", statement.span) for h in served.moved
                )
                for expr in (statement.context.key, statement.context.value):
                    if expr is not None:
                        connect(expr, [path], "key" if expr is statement.context.key else "value")
                for name, argument in statement.rule.arguments:
                    connect(argument, [path], name)
                if statement.reads == "running":
                    fresh.add(statement.name)
                # Its own rule is applied as a host's is: once for each update, or for each sum of them.
                rate = problem.rate if statement.summed else served.rate
                nested = Served(path, served.system, served.unit, (path,), (path,), rate, served.size, served.inside)
                deeper = rule_problems(statement.rule.rule, nested)
                problems += deeper.problems
                edges += deeper.edges
                needs += deeper.needs
            case RuleLet():
                lets[statement.name] = statement.value
            case RuleUpdate(target="self"):
                connect(statement.value, served.moved, "update")
            case RuleUpdate():
                path = paths[statement.target]
                connect(statement.value, [path], "update")
                if statement.target not in fresh:
                    edges.extend(
                        Edge(h, path, "generate", ("gradient",), "last boundary", statement.span) for h in served.moved
                    )
                fresh.add(statement.target)
    return Inside(tuple(problems), tuple(_merged(edges)), tuple(dict.fromkeys(needs)))


def _mentions(value: Expr, lets: dict[str, Expr], paths: dict[str, str]) -> list[str]:
    """Return the states and memories that an expression of a rule depends on, through its lets."""
    found: dict[str, None] = {}
    queue, seen = [value], set[str]()
    while queue:
        for node in walk(queue.pop()):
            name = node.name if isinstance(node, Ref) else node.memory if isinstance(node, State | Read) else None
            if name is None or name in seen:
                continue
            seen.add(name)
            if name in paths:
                found[name] = None
            elif name in lets:
                queue.append(lets[name])
    return list(found)


def _merged(edges: Iterable[Edge]) -> list[Edge]:
    kept: dict[tuple[str, str, str], Edge] = {}
    for edge in edges:
        kept.setdefault((edge.source, edge.target, edge.kind), edge)
    return list(kept.values())


def _memory(memory: RuleMemory, served: Served) -> Problem:
    alike = memory.structure.kind == "like"
    return Problem(
        path=f"{served.prefix}.{memory.name}",
        role="rule-memory",
        system=served.system,
        unit=served.unit,
        rate=served.rate.times(memory.period),
        span=memory.span,
        structure=memory.structure,
        structure_text="like its host" if alike else structure_text(memory.structure),
        context=clause(memory.context.span, "learn"),
        objective=clause(memory.objective.span, "minimize"),
        rule=clause(memory.rule.span, "by"),
        initial="zeros" if memory.initial is None else source_text(memory.initial),
        reads=memory.reads,
        reset="with its host",
        summed=memory.summed,
        parameters=0,
        size=served.size if alike else None,
        hosts=served.hosts,
    )


def _state(state: RuleState, rule: Rule, served: Served) -> Problem:
    updates = [s for s in rule.statements if isinstance(s, RuleUpdate) and s.target == state.name]
    return Problem(
        path=f"{served.prefix}.{state.name}",
        role="rule-state",
        system=served.system,
        unit=served.unit,
        rate=served.rate,
        span=state.span,
        structure_text="like its host",
        context="grad",
        rule="; ".join(f"{state.name} <- {source_text(update.value)}" for update in updates),
        initial=source_text(state.initial) or "zeros",
        reads="running",
        reset="with its host",
        parameters=0,
        size=served.size,
        hosts=served.hosts,
    )
