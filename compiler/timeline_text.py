"""The plain-text form of a schedule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from textwrap import wrap
from typing import TypeAlias

from nsam.compiler.describe import cut
from nsam.compiler.timeline import Delay, Row, Timeline

IDLE, ONE, MANY, RESET, DECIDES = "·", "●", "█", "↺", "○"
_SCALES = (1, 2, 4, 5, 8, 10, 16, 20, 32, 40, 50, 64, 100, 128, 200, 256, 500, 512, 1000, 1024)


def timeline_text(schedule: Timeline, width: int) -> str:
    """Return the schedule: the chart, the step clock below it, the staleness of every transfer; at least 72 wide."""
    width = max(72, width)
    lines = [f"{schedule.name}: {_tokens(schedule.tokens)}, hyperperiod {_tokens(schedule.hyperperiod)}", ""]
    lines += _chart(schedule, width)
    lines += _slow(schedule, width)
    lines += _delays(schedule, width)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def scale(tokens: int, cells: int) -> int:
    """Return how many tokens one cell stands for, so that all fit into `cells` (one at least)."""
    cells = max(cells, 1)
    return next((s for s in _SCALES if -(-tokens // s) <= cells), -(-tokens // cells))


def _chart(schedule: Timeline, width: int) -> Iterator[str]:
    if not schedule.rows:
        yield "no memory moves inside the sequence"
        yield ""
        return
    names = max(12, min(30, max(len(name) for row in schedule.rows for name in _names(row))))
    rates = max(len(row.frequency) for row in schedule.rows)
    left = 6 + names + 2 + rates + 2
    each = scale(schedule.tokens, width - left)
    cells = -(-schedule.tokens // each)
    yield f"{'level':<6}{'memory':<{names + 2}}{'moves':<{rates + 2}}{_axis(cells, each)}"
    drawn: set[str] = set()
    system = None
    for row in schedule.rows:
        cells_of_row = _cells(row, cells, each)
        drawn.update(cells_of_row)
        if row.system != system and row.system:
            yield f"      {cut(row.system, names + 10)}{f'  ×{row.count}' if row.count != 1 else ''}"
        system = row.system
        for index, name in enumerate(_names(row)):
            head = f"{row.level:<6}{cut(name, names):<{names + 2}}{row.frequency:<{rates + 2}}"
            yield head + (cells_of_row if index == 0 else '"')
    yield ""
    yield from _key(schedule, each, drawn)


def _key(schedule: Timeline, each: int, drawn: set[str]) -> Iterator[str]:
    """What the marks mean that were drawn."""
    means = {
        ONE: "moves once" if each > 1 else "moves",
        MANY: "moves more than once",
        DECIDES: "moves if surprised",
        RESET: "resets" if any(row.cut for row in schedule.rows) else "moves, then resets",
    }
    marks = [f"{mark} {meaning}" for mark, meaning in means.items() if mark in drawn]
    yield f"one mark = {_tokens(each)};  " + ("  ".join(marks) or "nothing moves so soon")
    yield ""


def _names(row: Row) -> list[str]:
    indent = "  " if row.system else ""
    return [f"{indent}{name}" for name in row.names]


def _axis(cells: int, each: int) -> str:
    line = [" "] * (cells + 8)
    for cell in range(9, cells, 10):
        label = str((cell + 1) * each)
        line[cell - len(label) + 1 : cell + 1] = label
    return "".join(line)[:cells]


def _cells(row: Row, cells: int, each: int) -> str:
    moves = [0] * cells
    for token in row.moves:
        moves[(token - 1) // each] += 1
    marks = [IDLE if count == 0 else DECIDES if row.adaptive else ONE if count == 1 else MANY for count in moves]
    for token in row.resets:
        marks[(token - 1) // each] = RESET
    return "".join(marks)


def _slow(schedule: Timeline, width: int) -> Iterator[str]:
    if not schedule.slow:
        return
    yield "below the sequence, on the step clock"
    rates = max(14, *(len(row.frequency) for row in schedule.slow)) + 2
    for row in schedule.slow:
        place = f"{row.system}: " if row.system else ""
        times = f"  ×{row.count}" if row.count != 1 else ""
        text = f"{place}{', '.join(row.names)}{times}"
        head = f"{row.level:<6}{row.frequency:<{rates}}"
        yield from wrap(text, width, initial_indent=head, subsequent_indent=" " * (6 + rates))
    yield ""


def _delays(schedule: Timeline, width: int) -> Iterator[str]:
    shown = [delay for delay in schedule.delays if delay.unit == "token"]
    if shown:
        yield "staleness of transfers, in tokens: the age of the source's state where the target sees it"
        most_width = max(5, *(len(_number(delay.most)) for delay in shown))
        mean_width = max(7, *(len(_number(delay.mean)) + 1 for delay in shown))
        left = most_width + mean_width + 13
        yield f"{'max':>{most_width}} {'mean':>{mean_width}}  {'kind':<9} transfer"
        system = ""
        for (most, mean, kind, place, source), targets in _gathered(shown, _systems(schedule)).items():
            if place != system and place:
                yield f"{'':{left}}{place}"
            system = place
            average = "varies" if mean is None and most is not None else _number(mean)
            head = f"{_number(most):>{most_width}} {average:>{mean_width}}  {kind:<9} "
            parts = [f"{', '.join(names)} ({use})" for use, names in targets.items()]
            text = f"{source} -> {'; '.join(parts)}"
            yield from wrap(
                text, width, initial_indent=head, subsequent_indent=" " * (left + 2), break_on_hyphens=False
            )
        yield ""
    steps = [delay for delay in schedule.delays if delay.unit == "step" and delay.most is not None]
    if steps:
        yield "transfers from the step clock: constant within a sequence; their staleness in steps"
        left = max(5, *(len(_number(delay.most)) for delay in steps))
        middle = max(7, *(len(_number(delay.mean)) + 1 for delay in steps))
        yield f"{'max':>{left}} {'mean':>{middle}}  transfers"
        for most, mean in sorted({(delay.most or 0, delay.mean or Fraction(0)) for delay in steps}):
            count = sum(delay.most == most for delay in steps)
            yield f"{_number(most):>{left}} {_number(mean):>{middle}}  {count}"


def _systems(schedule: Timeline) -> dict[str, str]:
    """Return the unit of each memory, by path."""
    rows = (*schedule.rows, *schedule.slow)
    return {f"{row.system}.{name}" if row.system else name: row.system for row in rows for name in row.names}


_Heading: TypeAlias = "tuple[int | None, Fraction | None, str, str, str]"


def _gathered(delays: Iterable[Delay], systems: dict[str, str]) -> dict[_Heading, dict[str, list[str]]]:
    """Group transfers by source and age; names are told from the source's unit where they lie in it."""
    found: dict[_Heading, dict[str, list[str]]] = {}
    for delay in delays:
        system = systems.get(delay.source, "")
        prefix = f"{system}." if system else ""
        key = (delay.most, delay.mean, delay.kind, system, delay.source.removeprefix(prefix))
        uses = found.setdefault(key, {})
        uses.setdefault(", ".join(delay.uses), []).append(delay.target.removeprefix(prefix))
    return dict(sorted(found.items(), key=lambda item: item[0][3]))


def _number(value: int | Fraction | None) -> str:
    """`never`, a whole number to the last digit, or a mean to one decimal."""
    if value is None:
        return "never"
    return str(int(value)) if value == int(value) else f"{float(value):.1f}"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count:,} tokens"
