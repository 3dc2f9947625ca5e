"""Rejections that need the level graph: cycles, initial states, declared transfers, parameters without a gradient.

Loads no graph library, so that `nsam check` stays quick. Sizes may still be without value.
"""

from __future__ import annotations

from nsam.compiler.collect import collect, in_sequence, members
from nsam.compiler.gradients import Stop, reached
from nsam.compiler.levels import find_cycles
from nsam.compiler.problems import Edge, LevelGraph, Need, Problem
from nsam.compiler.scopes import Scope, scopes
from nsam.compiler.step_keys import check_step_keys
from nsam.compiler.step_periods import check_step_periods
from nsam.dsl.checked import Memory, Train, Transfer, Unit
from nsam.dsl.diagnostics import Label, ProgramError, Report, fail


def check_unit(unit: Unit, train: Train | None = None, *, report: Report) -> None:
    """Add to `report` everything that is wrong with the levels of a system (codes N0301 to N0399)."""
    try:
        graph = collect(unit, train)
    except ProgramError as error:
        report.diagnostics.extend(error.diagnostics)
        return
    places = scopes(unit)
    memories = {scope.place(m.name): (scope, m) for scope in places for m in scope.unit.memories}
    check_cycles(graph, report)
    check_initial_states(graph, report)
    check_transfers(graph, places, memories, report)
    check_gradients(unit, graph, report)
    check_used(graph, report)
    check_step_keys(unit, train, report)
    check_step_periods(memories, train, report)


def require_levels(unit: Unit, train: Train | None = None) -> None:
    """Check the levels of a system at the values that were asked for; raise `ProgramError` with everything wrong.

    A program that is right at its own values need not be at others: a period may be a parameter.
    """
    report = Report()
    check_unit(unit, train, report=report)
    report.raise_if_failed()


def require_tokens(unit: Unit) -> None:
    """Check that a system can be run by itself; raise `ProgramError` (N0405) otherwise."""
    if not any(given.type.per == "token" for given in unit.inputs):
        message = f"`{unit.name}` has no input with a value for each token"
        help_text = "give it one, `input x: [dim]`, or call it from a system that has one"
        raise fail("N0405", message, unit.span, "nothing to go through", help=help_text)


# --- same-time cycles ----------------------------------------------------------------------------


def check_cycles(graph: LevelGraph, report: Report) -> None:
    """Reject memories that need each other's state at one and the same token."""
    for cycle in find_cycles(graph.needs):
        names = [need.source for need in cycle]
        first = graph.problems[names[0]]
        drawn = " -> ".join(f"{name} ({graph.problems[name].rate.text})" for name in [*names, names[0]])
        who = f"`{names[0]}` needs its own state" if len(names) == 1 else f"{_listed(names)} need each other's state"
        report.add(
            "N0301",
            f"{who} at one and the same token: {drawn}",
            first.span,
            "reads running: its state after the current token is needed to compute that state",
            secondary=[
                Label(need.span, f"{_possessive(need)} needs `{need.source}` after this token") for need in cycle
            ],
            notes=["\n".join(_drawing(cycle, graph))],
            help=_way_out(names, graph),
        )


def _drawing(cycle: tuple[Need, ...], graph: LevelGraph) -> list[str]:
    lines = ["the cycle, each memory with its frequency:"]
    for need in cycle:
        problem = graph.problems[need.source]
        lines.append(f"  {need.source}  [{problem.rate.text}, reads {problem.reads}]")
        lines.append(f"    |  {need.use} of {need.target}")
        lines.append("    v")
    first = graph.problems[cycle[0].source]
    return [*lines, f"  {first.path}  [{first.rate.text}]  (again)"]


def _way_out(names: list[str], graph: LevelGraph) -> str:
    able = next((name for name in names if graph.problems[name].role == "memory"), None)
    if able is None:
        return "attention always shows the current token: let one of them learn from something else"
    return f"let one of them show its last boundary: `reads boundary` in `{able}`"


def _possessive(need: Need) -> str:
    return f"the {need.use} of `{need.target}`"


def _listed(names: list[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " and " + quoted[-1]


# --- initial states ------------------------------------------------------------------------------


def check_initial_states(graph: LevelGraph, report: Report) -> None:
    """Reject an initial state that comes from a faster level, and states that start from each other."""
    starts = [edge for edge in graph.edges if edge.uses == ("initial",) and edge.source != graph.training]
    for edge in starts:
        source, target = graph.problems[edge.source], graph.problems[edge.target]
        if source.rate.faster_than(target.rate):
            report.add(
                "N0302",
                f"`{target.path}` ({target.rate.text}) starts from the faster `{source.path}` ({source.rate.text})",
                edge.span,
                "initial state from a faster level",
                secondary=[Label(source.span, f"moves {source.rate.text}")],
                help="a reset hands knowledge from slow to fast: start from a slower memory, or `init learned`",
            )
    needs = [Need(edge.source, edge.target, "initial state", edge.span) for edge in starts if edge.kind == "init"]
    for cycle in find_cycles(needs):
        names = [need.source for need in cycle]
        report.add(
            "N0303",
            f"{_listed(names)} start from {'itself' if len(names) == 1 else 'each other'}: "
            + " -> ".join([*names, names[0]]),
            cycle[0].span,
            "this initial state leads back to itself",
            secondary=[Label(need.span, f"starts from `{need.source}`") for need in cycle[1:]],
            help="let one of them say `init learned` or `init zeros`",
        )


# --- declared transfers --------------------------------------------------------------------------


def check_transfers(
    graph: LevelGraph, places: list[Scope], memories: dict[str, tuple[Scope, Memory]], report: Report
) -> None:
    """Reject declared transfers that match no use, say another kind than the use, or contradict each other."""
    uses: dict[tuple[str, str], list[Edge]] = {}
    for edge in graph.edges:
        uses.setdefault((edge.source, edge.target), []).append(edge)
    for scope in places:
        matched = {_declared(t) for t in scope.unit.transfers if _pairs(t, scope, memories) & uses.keys()}
        for transfer in scope.unit.transfers:
            sources = members(transfer.source, scope, memories)
            targets = members(transfer.target, scope, memories)
            pairs = [(source, target) for source in sources for target in targets]
            if any(pair in uses for pair in pairs):
                _check_kind(transfer, [edge for pair in pairs for edge in uses.get(pair, ())], report)
            elif _declared(transfer) not in matched:
                matched.add(_declared(transfer))
                _report_unused(transfer, graph, targets, report)


def _declared(transfer: Transfer) -> tuple[object, str, str]:
    """What the program names: of lists of memories, one pair that is used is enough."""
    return transfer.span, transfer.source.split(".")[0], transfer.target.split(".")[0]


def _pairs(transfer: Transfer, scope: Scope, memories: dict[str, tuple[Scope, Memory]]) -> set[tuple[str, str]]:
    sources, targets = members(transfer.source, scope, memories), members(transfer.target, scope, memories)
    return {(source, target) for source in sources for target in targets}


def _check_kind(transfer: Transfer, edges: list[Edge], report: Report) -> None:
    if transfer.kind == "direct" and all(set(edge.uses) == {"read"} for edge in edges):
        report.add(
            "N0305",
            f"`{transfer.source}` is only what `{transfer.target}` is read with: there is no gradient to stop here",
            transfer.span,
            "stops nothing",
            secondary=[Label(edges[0].span, "this read")],
            help="`direct` stops what enters a memory's clauses (context, rule, initial state); leave the line out",
        )
        return
    if any(edge.kind == transfer.kind for edge in edges):
        return
    kinds = sorted({edge.kind for edge in edges})
    edge = edges[0]
    report.add(
        "N0305",
        f"`{transfer.source}` -> `{transfer.target}` is declared `{transfer.kind}`, but its use is `{edge.kind}`",
        transfer.span,
        f"says {transfer.kind}",
        secondary=[Label(edge.span, f"this use is {_kind_of_use(edge)}")],
        help=f"declare it `{' or '.join(kinds)}`, or leave the line out: the kind is inferred from the use",
    )


def _kind_of_use(edge: Edge) -> str:
    if edge.kind == "init":
        return "initialisation: the state starts as the other's state"
    if edge.kind == "generate":
        return "generation: one memory's output is written into the other's state"
    return f"a forward use ({', '.join(edge.uses)}): `backprop`, or `direct` to stop the gradient"


def _report_unused(transfer: Transfer, graph: LevelGraph, targets: list[str], report: Report) -> None:
    feeding = sorted({edge.source for edge in graph.edges if edge.target in targets and edge.source != graph.training})
    told = f"`{transfer.target}` is fed by {_listed(feeding)}" if feeding else f"nothing feeds `{transfer.target}`"
    report.add(
        "N0304",
        f"nothing passes from `{transfer.source}` to `{transfer.target}`",
        transfer.span,
        "this transfer matches no use",
        notes=[told],
        help="name the memory whose output is used directly, or remove the line",
    )


# --- parameters without a gradient ---------------------------------------------------------------

_CODES = {"direct": "N0306", "rule": "N0307", "objective": "N0307", "function": "N0307", "frozen": "N0308"}


def check_gradients(unit: Unit, graph: LevelGraph, report: Report) -> None:
    """Warn about parameters that reach the output but get no gradient at all, and say what took it."""
    found = reached(unit)
    groups: dict[Stop, list[Problem]] = {}
    for path, stop in found.stops.items():
        problem = graph.problems[path]
        if path not in found.live and problem.memory is not None and has_parameter(problem.memory):
            groups.setdefault(stop, []).append(problem)
    for stop, problems in groups.items():
        names = _listed(sorted({problem.path for problem in problems}))
        plural = len({problem.path for problem in problems}) > 1
        verb = "get" if plural else "gets"
        why, help_ = _explained(stop, "their only way" if plural else "its only way")
        report.add(
            _CODES[stop.cause],
            f"{names} {verb} no gradient: {why}",
            stop.span,
            "the gradient ends here",
            secondary=[Label(problem.span, "never learns") for problem in problems],
            help=help_,
        )


def check_used(graph: LevelGraph, report: Report) -> None:
    """Warn about memories that have no say in the output."""
    for path, problem in graph.problems.items():
        if problem.memory is not None and path not in graph.reaching:
            report.add(
                "N0310",
                f"`{path}` has no say in the output",
                problem.span,
                "never read on the way to the output",
                help="read it, or remove it",
            )


def has_parameter(memory: Memory) -> bool:
    """Return whether a memory owns something that the training level learns."""
    if memory.structure.kind == "attention" or memory.initial.kind in ("memory", "expression"):
        return False
    return memory.initial.kind == "learned" or not in_sequence(memory)


def _explained(stop: Stop, way: str) -> tuple[str, str]:
    if stop.cause == "direct":
        return (
            f"{way} to the output is a `direct` transfer into `{stop.by}`",
            "remove the transfer to let the gradient through, or use a memory that needs no training",
        )
    if stop.cause == "rule":
        return (
            f"{way} to the output is through the rule `{stop.by}`, whose derivative is zero there",
            "train it by another way as well, or use a rule with a derivative",
        )
    if stop.cause == "objective":
        return (
            f"{way} to the output is the {stop.by}, and the gradient of its objective does not move with it",
            "use an objective whose gradient moves with it, such as l2 or huber(d), or train it by another way as well",
        )
    if stop.cause == "function":
        return (
            f"{way} to the output is through `{stop.by}`, whose derivative is zero",
            "use a smooth function in its place",
        )
    return (
        f"{way} to the output is what `{stop.by}` learns, and `{stop.by}` never moves (period inf)",
        "give it a finite period, or leave its `learn` clause out",
    )
