"""One picture a benchmark, beside its results."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from benchmarks.case import Reading
from benchmarks.measure import CaseResult
from benchmarks.report import Outcome

AXES = {
    "B1": "chunk, tokens",
    "B2": "dim",
    "B3": "tokens in a sequence",
    "B4": "tokens in a sequence",
    "B5": "dim",
}
"""What `x` of the cases counts."""

LEGEND, TITLE = 100, 62
"""Characters that fit beside each other in a panel's width: of the legend, of the title."""
WIDE = 5.0
"""From this ratio of times on the axis is logarithmic, with points: a bar needs a zero."""


def draw(folder: Path, outcome: Outcome) -> None:
    """Write <name>.svg: times by case; lines over context or size where a series has several points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = _series(outcome.cases)
    readings = _reading_series(outcome.readings)
    timed = [case for case in outcome.cases if any(one.slower for one in case.candidates)]
    names = dict.fromkeys(one.name for case in outcome.cases for one in case.candidates if one.spread)
    colours = {name: f"C{index}" for index, name in enumerate(names)}
    panels = (1 if timed else 0) + len(lines) + len(readings)
    if not panels:
        return
    height = max(3.0, 0.25 * sum(len(case.candidates) + 1 for case in timed))
    figure, axes = pyplot.subplots(1, panels, figsize=(6.5 * panels, height), squeeze=False, layout="constrained")
    free = list(axes[0])
    if timed:
        _ratios(free.pop(0), timed, colours)
    for series, points in lines.items():
        _speeds(free.pop(0), series, points, colours, AXES.get(outcome.name, ""))
    for series, values in readings.items():
        _lines(free.pop(0), series, values)
    if colours:
        handles = [_patch(colour, name) for name, colour in colours.items()]
        columns = max(1, min(4, LEGEND * panels // (max(map(len, colours)) + 8)))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    figure.suptitle(textwrap.fill(f"{outcome.name}: {outcome.title}", TITLE * panels))
    figure.savefig(folder / f"{outcome.name}.svg")
    pyplot.close(figure)


def _series(cases: list[CaseResult]) -> dict[str, list[CaseResult]]:
    found: dict[str, list[CaseResult]] = {}
    for case in cases:
        if case.series and case.x is not None and case.tokens:
            found.setdefault(case.series, []).append(case)
    return {series: points for series, points in found.items() if len(points) > 1}


def _reading_series(readings: list[Reading]) -> dict[str, list[Reading]]:
    found: dict[str, list[Reading]] = {}
    for reading in readings:
        if reading.series:
            found.setdefault(reading.series, []).append(reading)
    return found


def _ratios(axis: Any, cases: list[CaseResult], colours: dict[str, str]) -> None:
    """Time of each candidate over nsam's, with quartiles."""
    most = max(one.slower[1] for case in cases for one in case.candidates if one.slower is not None)
    place, ticks, labels = 0.0, [], []
    for case in cases:
        found = [(one.name, one.slower) for one in case.candidates if one.slower is not None]
        if not found:
            continue
        ticks.append(place + (len(found) - 1) / 2)
        labels.append(case.label)
        for name, (q1, q2, q3) in found:
            spread = [[q2 - q1], [q3 - q2]]
            if most > WIDE:
                axis.errorbar(q2, place, xerr=spread, color=colours[name], marker="o", markersize=5, linestyle="")
            else:
                axis.barh(place, q2, xerr=spread, color=colours[name], height=0.8)
            place += 1
        place += 1
    axis.set_yticks(ticks, labels, fontsize=7)
    axis.invert_yaxis()
    axis.axvline(1, color="black", linewidth=0.8)
    if most > WIDE:
        _logarithmic(axis)
        axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("time of a step over nsam's (below 1: faster than nsam)")


def _logarithmic(axis: Any) -> None:
    """A logarithmic axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _sizes(axis: Any, sizes: list[float]) -> None:
    """Sizes that double, each with its number."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [f"{size:,.0f}" for size in sizes], fontsize=8)
    axis.minorticks_off()


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _speeds(axis: Any, series: str, cases: list[CaseResult], colours: dict[str, str], counted: str) -> None:
    """Tokens a second over the series' axis, by candidate."""
    for name, colour in colours.items():
        points = [(case.x, case.tokens, one) for case in cases for one in case.candidates if one.name == name]
        known = [(x, [tokens / s for s in one.spread]) for x, tokens, one in points if one.spread is not None]
        if known:
            sizes, low, high = [x for x, _ in known], [y[2] for _, y in known], [y[0] for _, y in known]
            axis.plot(sizes, [y[1] for _, y in known], marker="o", color=colour)
            axis.fill_between(sizes, low, high, alpha=0.2, color=colour)
    _sizes(axis, sorted({case.x for case in cases if case.x is not None}))
    axis.yaxis.set_major_formatter("{x:,.0f}")
    _from_zero(axis)
    axis.set_title(series, fontsize=9)
    axis.set_xlabel(counted)
    axis.set_ylabel("tokens a second")


def _from_zero(axis: Any) -> None:
    """Room above the highest point: matplotlib leaves a part of the points' own range, which may be small."""
    axis.set_ylim(0, 1.08 * axis.dataLim.y1)


def _lines(axis: Any, series: str, readings: list[Reading]) -> None:
    axis.plot([r.x for r in readings], [r.value for r in readings], marker="o")
    _sizes(axis, sorted({r.x for r in readings if r.x is not None}))
    _from_zero(axis)
    axis.set_xlabel(series)
    axis.set_ylabel("seconds to compile")
