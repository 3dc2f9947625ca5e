"""Periods on the step clock: memories that `every n steps` move when the level that trains them moves."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from nsam.compiler.scopes import Scope
from nsam.dsl import checked as c
from nsam.dsl.diagnostics import Label, Report


def check_step_periods(memories: Mapping[str, tuple[Scope, c.Memory]], train: c.Train | None, report: Report) -> None:
    """Reject memories whose period in steps is no multiple of the training level's (N0311); by their paths.

    Both count the steps of the training loop. A level gathers gradients over its period, and a slower one inside of it
    over several of these (eq. 71): a boundary between two moves of the level that trains it does not exist.
    """
    if train is None or train.every == 1:
        return
    for path, (_, memory) in memories.items():
        frequency = memory.frequency
        if frequency is None or frequency.unit != "step" or frequency.period == inf:
            continue
        period = int(frequency.period)
        if period % train.every:
            above = -(-period // train.every) * train.every
            report.add(
                "N0311",
                f"`{path}` moves every {period} step{'s' * (period > 1)}, and the level that trains it every "
                f"{train.every}",
                frequency.span,
                f"not a multiple of {train.every}",
                secondary=[Label(train.span, f"moves every {train.every} steps")],
                help=f"every {above} steps",
            )
