"""Results on the terminal, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.case import Reading
from benchmarks.measure import CandidateResult, CaseResult, Spread

WIDTH = 132
MARKS = {True: "met", False: "missed", None: "not measured"}


@dataclass
class Outcome:
    """What one benchmark found."""

    name: str
    title: str
    cases: list[CaseResult] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)


def duration(seconds: float | None) -> str:
    """Seconds in a readable unit."""
    if seconds is None:
        return ""
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if abs(seconds) < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def size(count: float | None) -> str:
    """Bytes in MB."""
    return "" if count is None else f"{count / 1e6:,.3g} MB" if count < 1e7 else f"{count / 1e6:,.0f} MB"


def spread(found: Spread | None, show: Any = duration) -> str:
    """Median with its quartiles."""
    return "" if found is None else f"{show(found[1])} ({show(found[0])} to {show(found[2])})"


COLUMNS = (
    "candidate",
    "step (quartiles)",
    "times nsam",
    "tokens/s",
    "of roofline",
    "step memory",
    "first step",
    "error",
)


def wide_console() -> Console:
    """A console on which tables keep their columns, also when printed to a file."""
    console = Console()
    return console if console.width >= WIDTH else Console(width=WIDTH)


def row(one: CandidateResult, case: CaseResult) -> tuple[str, ...]:
    """One candidate's cells."""
    if one.failed:
        return (one.name, one.failed, "", "", "", size(one.step_memory), duration(one.cold or one.first), "")
    assert one.spread is not None
    return (
        one.name,
        spread(one.spread),
        "" if one.slower is None else spread(one.slower, lambda x: f"{x:.2f}"),
        f"{case.tokens / one.spread[1]:,.0f}" if case.tokens else "",
        "" if one.roofline is None else f"{one.roofline:.1%}",
        size(one.step_memory),
        duration(one.cold or one.first),
        "" if one.error is None else f"{one.error:.0e}",
    )


def targets(case: CaseResult) -> Iterable[str]:
    """Each target with what was measured; and whether there was nothing to compare nsam's values with."""
    for target in case.targets:
        found = "" if target.found is None else f", measured {target.found:.2f}"
        yield f"target {target.wanted:.2f} {target.what}{found}: {MARKS[target.met]}"
    if case.unchecked:
        yield "compared with nothing: no baseline ran"


def show_case(console: Console, name: str, case: CaseResult) -> None:
    """Print one case as a table."""
    rate = "" if case.rate is None else f"   matrix products {case.rate[1] / 1e9:,.0f} GFLOP/s"
    table = Table(title=f"{name}  {case.label}{rate}", title_justify="left", title_style="bold")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for one in case.candidates:
        table.add_row(*row(one, case))
    console.print(table)
    for line in targets(case):
        console.print(f"  {line}", style="red" if line.endswith(("missed", "ran")) else "", highlight=False)


def show_reading(console: Console, reading: Reading) -> None:
    """Print one reading as a line."""
    console.print(f"  {reading_text(reading)}", highlight=False)


def reading_text(reading: Reading) -> str:
    """One reading in words."""
    quarters = "" if reading.spread is None else f" ({duration(reading.spread[0])} to {duration(reading.spread[1])})"
    wanted = ""
    if reading.most is not None:
        wanted = f", target {duration(reading.most)}: {MARKS[reading.value <= reading.most]}"
    return f"{reading.label}: {duration(reading.value)}{quarters}{wanted}"


def markdown(machine: Mapping[str, object], outcomes: Iterable[Outcome]) -> str:
    """The whole run as one page."""
    lines = ["# Benchmark results", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    lines += [
        "",
        "Steps are medians with quartiles over interleaved rounds; `times nsam` is paired round by round; `of",
        "roofline` is the least FLOPs of the algorithm, over the matrix-product rate of the same rounds, over the",
        "time; memory is the peak of one step above what was in use before it; the first step includes compilation,",
        "with an empty cache of compiled code where memory was measured too (candidates of a case share the cache).",
    ]
    for outcome in outcomes:
        lines += ["", f"## {outcome.name}: {outcome.title}"]
        for case in outcome.cases:
            rate = "" if case.rate is None else f" (matrix products: {case.rate[1] / 1e9:,.0f} GFLOP/s)"
            lines += ["", f"**{case.label}**{rate}", "", _cells(COLUMNS), _cells(["---"] * len(COLUMNS))]
            lines += [_cells(row(one, case)) for one in case.candidates]
            lines += ["", *[f"- {line}" for line in targets(case)]]
            lines += [f"- {one.name}: {one.note}" for one in case.candidates if one.note]
        if outcome.readings:
            lines += ["", *[f"- {reading_text(reading)}" for reading in outcome.readings]]
    return "\n".join(lines) + "\n"


def _cells(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write(folder: Path, machine: Mapping[str, object], outcomes: list[Outcome]) -> None:
    """Write results.json and results.md."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {"machine": dict(machine), "benchmarks": [asdict(outcome) for outcome in outcomes]}
    (folder / "results.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
    (folder / "results.md").write_text(markdown(machine, outcomes))
