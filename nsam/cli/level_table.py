"""The level graph of a run as a table in the terminal: what moves how often, what it learnt, how far it came."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from nsam.compiler.graph import levels_of, ordered
from nsam.compiler.problems import Problem
from nsam.dsl.checked import Train

_OPTIMIZER = re.compile(r"^train [^.]*\.")
_SHARED = re.compile(r"(?:^|(?<=\.))repeat(?:_[0-9]+)?\.\*\.")
_SHOWN = 6
"""Names shown a level before the rest is counted."""


def level_table(train: Train, memories: Mapping[str, Mapping[str, Any]], moved: Mapping[int, float]) -> Table:
    """Return the levels, fastest first: frequency, memories, mean inner loss, and how far the weights have moved.

    `memories` gives the inner loss of each fast memory by path, `moved` the relative distance ‖W − W₀‖ / ‖W₀‖ of each
    level's weights (for fast memories: of their learnt initial states).
    """
    graph = ordered(train.model, train)
    levels = levels_of(graph)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading, justify in (("level", "right"), ("frequency", "left"), ("memories", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("inner loss", justify="right")
    table.add_column("moved", justify="right")
    losses = _losses_by_level(memories)
    for level in sorted(set(levels.values())):
        here = [graph.problems[path] for path in graph.problems if levels[path] == level]
        loss, distance = losses.get(level), moved.get(level)
        table.add_row(
            str(level),
            here[0].rate.text,
            _names(here),
            "" if loss is None else f"{loss:.4g}",
            "" if distance is None else f"{100 * distance:.0f} %",
        )
    return table


def _losses_by_level(memories: Mapping[str, Mapping[str, Any]]) -> dict[int, float]:
    found: dict[int, list[float]] = defaultdict(list)
    for values in memories.values():
        if values["loss"] is not None:
            found[int(values["level"])].append(float(values["loss"]))
    return {level: sum(listed) / len(listed) for level, listed in found.items()}


def _names(problems: list[Problem]) -> str:
    """`titans.k, titans.v, …`: each name once, without the passes of repeats."""
    paths = dict.fromkeys(_SHARED.sub("", _OPTIMIZER.sub("", problem.path)) for problem in problems)
    names = list(paths)
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
