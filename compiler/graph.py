"""The level graph as a networkx graph: nodes are problems, edges transfers, levels by definition 2."""

from __future__ import annotations

import networkx as nx

from nsam.compiler.checks import check_cycles, check_initial_states
from nsam.compiler.collect import collect
from nsam.compiler.levels import assign_levels
from nsam.compiler.problems import Edge, LevelGraph, Problem
from nsam.dsl.checked import Train, Unit
from nsam.dsl.diagnostics import Report


def build_graph(unit: Unit, train: Train | None = None) -> nx.MultiDiGraph:
    """Return the level graph of a system with its parameters given.

    Nodes are keyed by the memory's full path; what a repeat makes stands once, at `repeat.*.…`, with its `count`. The
    training level is the node `graph.graph["training"]`. Node attributes:

        label, path, system (path of the unit), unit (name of the system), role ("memory", "weight", "attention",
        "generated", "rule-memory", "rule-state", "training"), level (int, 1 is the fastest),
        frequency (a comparable `Rate`: larger is faster), frequency_text, structure (the dataclass, or None),
        structure_text, context, objective, rule, initial, reads, reset, summed, span, count,
        parameters (learned numbers in one copy), size (numbers in one copy's state), hosts (what a rule's memory
        serves), reaches_output.

    Edges are keyed by kind (`backprop`, `direct`, `init`, `generate`), with attributes kind, declared, uses, shows
    ("same-time", "last boundary", "at reset"), carried (only from the pass before of a repeat) and span.

    Raises `ProgramError` when there is no order of levels (a cycle of same-time needs, N0301; an initial state from a
    faster level, N0302). Equations: definitions 2-4, section 3.3.
    """
    return to_networkx(ordered(unit, train))


def ordered(unit: Unit, train: Train | None = None) -> LevelGraph:
    """Return the level graph without networkx, after checking that its levels can be ordered."""
    graph = collect(unit, train)
    report = Report()
    check_cycles(graph, report)
    check_initial_states(graph, report)
    report.raise_if_failed()
    return graph


def levels_of(graph: LevelGraph) -> dict[str, int]:
    """Return the level of each problem, 1 the fastest."""
    return assign_levels({path: problem.rate for path, problem in graph.problems.items()}, graph.needs)


def to_networkx(graph: LevelGraph) -> nx.MultiDiGraph:
    """Return `graph` as a networkx graph, levels assigned."""
    levels = levels_of(graph)
    result = nx.MultiDiGraph(name=graph.name, training=graph.training, outputs=sorted(graph.reaching))
    result.graph["levels"] = {
        level: next(p.rate.text for path, p in graph.problems.items() if levels[path] == level)
        for level in sorted(set(levels.values()))
    }
    for path, problem in graph.problems.items():
        result.add_node(path, **_node(problem, levels[path], path in graph.reaching))
    for edge in graph.edges:
        result.add_edge(edge.source, edge.target, key=edge.kind, **_edge(edge))
    return result


def _node(problem: Problem, level: int, reaches: bool) -> dict[str, object]:
    return {
        "label": problem.path.rsplit(".*.", 1)[-1],
        "path": problem.path,
        "system": problem.system,
        "unit": problem.unit,
        "role": problem.role,
        "level": level,
        "frequency": problem.rate,
        "frequency_text": problem.rate.text,
        "structure": problem.structure,
        "structure_text": problem.structure_text,
        "context": problem.context,
        "objective": problem.objective,
        "rule": problem.rule,
        "initial": problem.initial,
        "reads": problem.reads,
        "reset": problem.reset,
        "summed": problem.summed,
        "span": problem.span,
        "count": problem.count,
        "parameters": problem.parameters,
        "size": problem.size,
        "hosts": problem.hosts,
        "reaches_output": reaches,
    }


def _edge(edge: Edge) -> dict[str, object]:
    return {
        "kind": edge.kind,
        "declared": edge.declared,
        "uses": edge.uses,
        "shows": edge.shows,
        "carried": edge.carried,
        "span": edge.span,
    }
