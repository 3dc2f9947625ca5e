"""What `nsam schedule` prints: which memory moves at which token, the hyperperiod, the staleness of every transfer."""

from __future__ import annotations

from fractions import Fraction
from math import gcd, lcm
from typing import Literal

from nsam.compiler.graph import levels_of, ordered
from nsam.compiler.problems import Edge, LevelGraph, Problem
from nsam.dsl.checked import Train, Unit
from nsam.dsl.records import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """Memories of one unit that move together. `moves` and `resets` are tokens, counted from 1, up to the horizon.

    `resets` leaves out the start of the sequence. Both are empty for memories on the step clock. For an `adaptive`
    memory `moves` are the tokens at which it decides, each sequence for itself. `cut`: a reset may come between two
    moves, as it does for a rule's memory whose period does not divide its host's resets.
    """

    system: str
    names: tuple[str, ...]
    level: int
    frequency: str
    count: int
    clock: str
    moves: tuple[int, ...]
    resets: tuple[int, ...]
    summed: bool
    adaptive: bool = False
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Delay:
    """How old the state of `source` is, in `unit`s, where `target` sees it. None: it never moves there, or is not seen.

    `mean` is None too where it depends on the data: of an adaptive memory only the largest age is known.

    Over all tokens: `boundary` reads of period n show a state 1 to n tokens old; `running` reads show the current one
    (a summed memory's changes only at the closing token, so 0 to n - 1). A reset starts anew. At a reset: as of that
    token. The memories of a rule are seen where the rule is applied: of a host that is summed, once a period.
    """

    source: str
    target: str
    kind: str
    uses: tuple[str, ...]
    shows: str
    unit: Literal["token", "step"]
    most: int | None
    mean: Fraction | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """The schedule of a system over `tokens` tokens. `hyperperiod`: after so many tokens the pattern repeats."""

    name: str
    tokens: int
    hyperperiod: int
    rows: tuple[Row, ...]
    slow: tuple[Row, ...]
    delays: tuple[Delay, ...]

    def text(self, width: int = 100) -> str:
        """Return the schedule as plain text, no line longer than `width` (at least 72)."""
        from nsam.compiler.timeline_text import timeline_text

        return timeline_text(self, width)


def timeline(unit: Unit, train: Train | None = None, tokens: int = 128) -> Timeline:
    """Return when each memory of a system moves in its first `tokens` tokens, and how stale every transfer is.

    Raises `ProgramError` where the levels have no order, as `build_graph` does.
    """
    graph = ordered(unit, train)
    levels = levels_of(graph)
    groups: dict[tuple[object, ...], list[Problem]] = {}
    for path, problem in graph.problems.items():
        key = (
            levels[path],
            problem.system,
            problem.rate.text,
            problem.reset,
            _reset(problem, graph),
            problem.summed,
            problem.role == "training",
        )
        groups.setdefault(key, []).append(problem)
    rows = [_row(members, levels[members[0].path], tokens, _reset(members[0], graph)) for members in groups.values()]
    rows.sort(key=lambda row: row.level)
    return Timeline(
        graph.name,
        tokens,
        hyperperiod(graph),
        tuple(row for row in rows if row.clock != "step"),
        tuple(row for row in rows if row.clock == "step"),
        tuple(_delay(edge, graph) for edge in graph.edges),
    )


def hyperperiod(graph: LevelGraph) -> int:
    """Return the least common multiple of all periods and resets on the token clock (1 when there is none).

    What is reset repeats from reset to reset, whatever its own period.
    """
    repeats = [
        _reset(problem, graph) or (int(problem.rate.period) if problem.rate.clock == "token" else 1)
        for problem in graph.problems.values()
    ]
    return lcm(*repeats)


def _reset(problem: Problem, graph: LevelGraph) -> int:
    """Return the tokens between two resets (0 when there are none); a rule's memories are reset with their host."""
    while problem.rate.clock == "token" and _of_rule(problem):
        problem = graph.problems[problem.hosts[0]]
    memory = problem.memory
    return int(memory.reset.period) if memory is not None and memory.reset.period is not None else 0


def _row(members: list[Problem], level: int, tokens: int, reset: int) -> Row:
    first = members[0]
    prefix = f"{first.system}." if first.system else ""
    period = int(first.rate.period)
    moves: tuple[int, ...] = ()
    if first.rate.clock == "always":
        moves = tuple(range(1, tokens + 1))
    elif first.rate.clock == "token" and first.role != "generated":
        moves = tuple(t for t in range(1, tokens + 1) if ((t - 1) % reset + 1 if reset else t) % period == 0)
    return Row(
        first.system,
        tuple(problem.path.removeprefix(prefix) for problem in members),
        level,
        first.rate.text,
        int(first.count),
        first.rate.clock,
        moves,
        tuple(range(reset, tokens + 1, reset)) if reset else (),
        first.summed,
        first.rate.slowest is not None,
        reset % period != 0,
    )


def _delay(edge: Edge, graph: LevelGraph) -> Delay:
    source = graph.problems[edge.source]
    on_steps = source.rate.clock in ("step", "sequence")
    most, mean = _staleness(edge, source, graph)
    return Delay(
        edge.source, edge.target, edge.kind, edge.uses, edge.shows, "step" if on_steps else "token", most, mean
    )


def _staleness(edge: Edge, source: Problem, graph: LevelGraph) -> tuple[int | None, Fraction | None]:
    """Return the largest and the mean age of the source's visible state."""
    clock, period = source.rate.clock, int(source.rate.period)
    target = graph.problems[edge.target]
    if source.rate.slowest is not None and edge.shows != "same-time":
        return _adaptive_age(
            period, int(source.rate.slowest), _reset(target, graph) if edge.shows == "at reset" else None
        )
    if clock == "never":
        return None, None
    if clock in ("always", "sequence"):
        return 0, Fraction(0)
    if edge.shows == "at reset" and clock == "token":
        return _at_resets(period, _reset(target, graph))
    same = edge.shows == "same-time"
    if same and not source.summed:
        return 0, Fraction(0)
    apart = _applied(graph.problems[source.hosts[0]], graph) if _of_rule(source) else 1
    reset = _reset(source, graph)
    if 0 < reset < apart:
        return None, None
    most, mean = _ages(period // apart, reset // apart, 0 if same else 1)
    early = 1 if clock == "step" and not same else 0  # the state after the last step is 0 steps old
    return most * apart - early, mean * apart - early


def _of_rule(problem: Problem) -> bool:
    return problem.role in ("rule-memory", "rule-state")


def _applied(host: Problem, graph: LevelGraph) -> int:
    """Return after how many tokens or steps the rule of `host` is applied: what is in the rule is seen only there."""
    if _of_rule(host) and not host.summed:
        return _applied(graph.problems[host.hosts[0]], graph)
    return int(host.rate.period) if host.summed or host.rate.clock != "token" else 1


def _ages(period: int, reset: int, youngest: int) -> tuple[int, Fraction]:
    """Return the largest and the mean age of a state that is `youngest` where it moves, every `period` tokens.

    The tokens between its last move and the next reset are the start of a period that the reset cuts off.
    """
    whole, left = divmod(reset or period, period)
    total = whole * _sum(period, youngest) + _sum(left, 1)
    return min(period - 1 + youngest, reset or period), Fraction(total, reset or period)


def _sum(count: int, first: int) -> int:
    """Return the sum of `count` whole numbers from `first` on."""
    return count * (2 * first + count - 1) // 2


def _adaptive_age(period: int, slowest: int, reset: int | None) -> tuple[int, Fraction | None]:
    """Return the largest age of an adaptive memory's boundary state (at resets every `reset` tokens; 0: the start)."""
    if reset is None:
        return slowest, None
    return (slowest - gcd(period, reset), None) if reset else (0, Fraction(0))


def _at_resets(period: int, reset: int) -> tuple[int, Fraction]:
    """Return the age, at resets every `reset` tokens, of a state that moves every `period` tokens."""
    if not reset:
        return 0, Fraction(0)
    step = gcd(period, reset)
    ages = range(0, period, step)
    return max(ages), Fraction(sum(ages), len(ages))
