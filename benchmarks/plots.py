"""One picture a benchmark, beside its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.case import Reading
from benchmarks.measure import CaseResult
from benchmarks.report import Outcome


def draw(folder: Path, outcome: Outcome) -> None:
    """Write <name>.svg: times by case; lines over context or size where a series has several points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = _series(outcome.cases)
    readings = _reading_series(outcome.readings)
    timed = [case for case in outcome.cases if any(one.spread for one in case.candidates)]
    panels = (1 if timed else 0) + len(lines) + len(readings)
    if not panels:
        return
    height = max(3.0, 0.25 * sum(len(case.candidates) + 1 for case in timed))
    figure, axes = pyplot.subplots(1, panels, figsize=(6.5 * panels, height), squeeze=False, layout="constrained")
    free = list(axes[0])
    if timed:
        _bars(free.pop(0), timed)
    for series, points in lines.items():
        _speeds(free.pop(0), series, points)
    for series, values in readings.items():
        _lines(free.pop(0), series, values)
    figure.suptitle(f"{outcome.name}: {outcome.title}")
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


def _bars(axis: Any, cases: list[CaseResult]) -> None:
    """Time of each candidate over nsam's, with quartiles."""
    names = list(dict.fromkeys(one.name for case in cases for one in case.candidates))
    place, ticks, labels = 0.0, [], []
    for case in cases:
        begun = place
        for one in case.candidates:
            if one.slower is not None:
                q1, q2, q3 = one.slower
                colour = f"C{names.index(one.name)}"
                axis.barh(place, q2, xerr=[[q2 - q1], [q3 - q2]], color=colour, height=0.8)
            place += 1
        ticks.append((begun + place - 1) / 2)
        labels.append(case.label)
        place += 1
    axis.set_yticks(ticks, labels, fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel("time of a step, in times of nsam's (less is faster)")
    handles = [_patch(f"C{i}", name) for i, name in enumerate(names)]
    axis.legend(handles=handles, fontsize=7)


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _speeds(axis: Any, series: str, cases: list[CaseResult]) -> None:
    """Tokens a second over the series' axis, by candidate."""
    for name in dict.fromkeys(one.name for case in cases for one in case.candidates):
        points = [(case.x, case.tokens, one) for case in cases for one in case.candidates if one.name == name]
        known = [(x, [tokens / s for s in one.spread]) for x, tokens, one in points if one.spread is not None]
        if known:
            axis.plot([x for x, _ in known], [y[1] for _, y in known], marker="o", label=name)
            axis.fill_between([x for x, _ in known], [y[2] for _, y in known], [y[0] for _, y in known], alpha=0.2)
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.set_title(series, fontsize=9)
    axis.set_ylabel("tokens a second")
    axis.legend(fontsize=7)


def _lines(axis: Any, series: str, readings: list[Reading]) -> None:
    axis.plot([r.x for r in readings], [r.value for r in readings], marker="o")
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.set_xlabel(series)
    axis.set_ylabel("seconds to compile")
