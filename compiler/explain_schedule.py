"""The loops of a plan in words: what is done for the whole sequence at once, what inside which loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import shorten

from nsam.compiler.explain_model import Line
from nsam.compiler.expressions import Node
from nsam.compiler.fast_memory import FastMemory
from nsam.compiler.loops import plan_loops, uncompiled
from nsam.compiler.schedule import Level, UnitPlan
from nsam.dsl import checked as c

_INNER = frozenset({"rank_one", "momentum", "summed", "generic"})


def schedule_lines(plan: UnitPlan) -> tuple[Line, ...]:
    """Describe the nest of loops, what was hoisted out of it and what sinks behind it."""
    return tuple(_lines(plan))


def _lines(plan: UnitPlan) -> Iterator[Line]:
    learning = [each.memory.name for each in plan.lowered.end_to_end]
    if learning:
        yield Line(f"{', '.join(learning)}: moved from outside, between the chunks of the whole model")
    if not plan.levels and learning:
        yield Line("in a chunk nothing else moves: everything is done for its tokens at once")
        return
    if not plan.levels and any(map(moves, parts(plan.unit))):
        yield Line("no memory of its own moves inside the sequence; those of its parts do, see below")
        return
    if not plan.levels:
        yield Line("no memory moves inside the sequence: everything is done for all tokens at once")
        return
    if plan.merged is not None:
        cuts = ", ".join(str(n) for level in plan.levels for n in level.cuts)
        yield Line(f"one loop for periods {cuts}, because {plan.merged}")
    elif any(len(level.cuts) > 1 for level in plan.levels):
        yield Line("periods that do not divide each other share a loop; a block ends at every boundary of any of them")
    before = True
    for stage in plan.stages:
        work = describe(plan, stage.nodes)
        if work and before:
            yield Line(f"whole sequence, before the loop: {work}")
        elif work:
            yield Line(f"whole sequence, after the loop: {work}")
        if stage.event is not None:
            yield Line(f"whole sequence: run {stage.event.attr('name')}")
        if stage.loop:
            yield from _loops(plan, 0)
            yield _compiled(plan)
            before = False


def parts(unit: c.Unit) -> Iterator[c.Unit]:
    """Yield the systems that a unit calls, and the bodies of its repeats."""
    for step in unit.children:
        yield step.body if isinstance(step, c.Repeat) else step.unit


def moves(unit: c.Unit) -> bool:
    """Whether a memory of a unit, or of one inside it, moves within the sequence."""
    return any(memory.fast for memory in unit.memories) or any(map(moves, parts(unit)))


def _compiled(plan: UnitPlan) -> Line:
    """What one call through torch.compile covers, or why there is none."""
    reason = uncompiled(plan)
    if reason is not None:
        return Line(f"the loop runs as plain PyTorch, not through torch.compile: {reason}")
    tokens = " or ".join(str(loop.compiled) for loop in plan_loops(plan) if loop.compiled is not None)
    return Line(f"compiled: {tokens} tokens a call; a shorter piece at the end of a sequence runs as plain PyTorch")


def _loops(plan: UnitPlan, depth: int) -> Iterator[Line]:
    if depth == len(plan.levels):
        return
    level, indent = plan.levels[depth], "  " * depth
    yield Line(f"{indent}loop over {_blocks(plan, level)}: update {', '.join(level.memories) or 'nothing'}")
    work = describe(plan, level.before)
    if work:
        yield Line(f"{indent}  once a block: {work}")
    yield from _loops(plan, depth + 1)
    late = describe(plan, level.after)
    if late:
        yield Line(f"{indent}  after the inner loop: {late}")
    if level.resets:
        yield Line(f"{indent}  reset {', '.join(level.resets)}")


def _blocks(plan: UnitPlan, level: Level) -> str:
    sizes = f"blocks of {level.cuts[0]} token{'s' * (level.cuts[0] != 1)}"
    if len(level.cuts) > 1:
        sizes = f"blocks that end at multiples of {' and '.join(map(str, level.cuts))}"
    exact: list[FastMemory] = [plan.fast(name) for name in level.memories if plan.fast(name).exact]
    return f"{sizes} (each token still has its own state)" if exact else sizes


def describe(plan: UnitPlan, nodes: Iterable[Node]) -> str:
    """What some nodes do: whose weights they read, which named values they make, which memories they fold."""
    nodes = tuple(nodes)
    slow = _unique(str(a.attr("memory")) for n in nodes for a in n.args if a.op == "weight")
    attention = _unique(str(n.attr("memory")) for n in nodes if n.op == "attention")
    sources = [_state(a) for n in nodes if n.op not in _INNER for a in n.args if _is_state(a)]
    fast = _unique(str(s.attr("memory")) for s in sources if s.attr("memory") is not None)
    folds = _unique(str(n.attr("memory")) for n in nodes if n.op in _INNER)
    names = plan.lowered.builder.names
    own = {b.name for b in plan.unit.bindings}
    values = _unique(names[n.id] for n in nodes if names.get(n.id) in own)
    parts = []
    if slow or fast:
        parts.append(f"reads of {', '.join(_unique([*slow, *fast]))}")
    if attention:
        parts.append(f"attention {', '.join(attention)}")
    if values:
        parts.append(f"values {', '.join(values)}")
    if folds:
        parts.append(f"folds of {', '.join(folds)}")
    return shorten("; ".join(parts), 2000)


def _state(node: Node) -> Node:
    return node.args[0] if node.op == "shown" else node


def _is_state(node: Node) -> bool:
    return _state(node).op == "state" or _state(node).layout == "fold"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
