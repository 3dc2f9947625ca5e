"""A budget of memory for training: measures one step at its leanest, then keeps as much as the budget allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nsam.backends.torch.runtime.end_to_end import EndToEnd
from nsam.backends.torch.runtime.replay import Plan, Schedule
from nsam.backends.torch.runtime.saved import Loop, Meter, Part
from nsam.backends.torch.runtime.system import System
from nsam.dsl.diagnostics import fail

OUTPUTS = 3
"""Tensors of the output's size that a loss needs: its gradient, and what cross-entropy keeps and computes."""
BACKWARD_BLOCKS = 1.5
"""What the backward pass of a block that was run again needs beside what the block keeps, in such blocks (measured)."""
BACKWARD_SHARE = 2.0
"""The backward pass takes about so many times the forward pass."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes at the peak of a step's activations, and work that is done again as a share of the forward pass."""

    schedule: Schedule
    activations: int
    again: float

    @property
    def slowdown(self) -> float:
        """Time of a step with this schedule as a multiple of one that keeps everything."""
        return 1 + self.again / (1 + BACKWARD_SHARE)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a budget led to. Bytes: `limit` the budget, `resident` weights, gradients and optimizer states, `least` the
    smallest peak that any schedule has, `everything` the peak where nothing is computed again."""

    limit: int
    resident: int
    estimate: Estimate
    least: int
    everything: int

    @property
    def peak(self) -> int:
        """Bytes of tensors at the peak of a step."""
        return self.resident + self.estimate.activations

    def __str__(self) -> str:
        """One line for people."""
        schedule = self.estimate.schedule
        used = f"about {amount(self.peak)} of a budget of {amount(self.limit)}"
        if schedule.idle:
            return f"{used}; everything is kept for the backward pass"
        what = []
        if schedule.passes:
            what.append(f"{schedule.passes} pass{'es' if schedule.passes > 1 else ''} of each repeat")
        if schedule.group:
            those = f"all blocks but the last {schedule.kept}" if schedule.kept else "all blocks"
            what.append(f"{those} of each loop, {schedule.group} at a time")
        saved = f"instead of {amount(self.everything)}"
        return (
            f"{used}, {saved}; computed again in the backward pass: {' and '.join(what)}; "
            f"about {self.estimate.slowdown:.2f} times the time of a step"
        )


class Budget:
    """Runs a module's calls so that training stays within `limit` bytes.

    Counted are weights, their gradients, the rows of tokens that an optimizer's rule needs (of one pass before a step),
    `reserved` bytes (the optimizer's states) and what the backward pass needs; Python and torch themselves take about
    half a gigabyte more. The first call computes as much again as possible and is measured; calls with more tokens are
    measured again. Raises N0520 where the budget cannot be met.
    """

    def __init__(self, module: System, limit: int) -> None:
        if isinstance(module, EndToEnd):
            raise fail(
                "N0520",
                "a model whose memories move by its own loss cannot be trained within a budget of memory",
                help="leave --memory out; a shorter context or a smaller batch needs less",
            )
        self.module, self.limit = module, limit
        self.reserved = 0
        self.tokens = 0
        self.outputs = 0
        self.part: Part | None = None
        self.choice: Choice | None = None

    @property
    def resident(self) -> int:
        """Bytes of weights and gradients, of what rules of the step clock keep of each token, and those reserved."""
        counted = [*self.module.parameters(), *self.module.nsam_grams.values()]
        rows = self.tokens * self.module.row_bytes()
        return 2 * sum(p.numel() * p.element_size() for p in counted) + rows + self.reserved

    def run(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module, measured or as was chosen."""
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        tokens = max((x.shape[0] * x.shape[1] for x in given if x.dim() > 1), default=0)
        if self.choice is None or tokens > self.tokens:
            meter = Meter(self.module.parameters())
            with Plan(Schedule(), meter).in_force(), meter.counting():
                result = forward(*args, **kwargs)
            leaves = pytree.tree_leaves(result[0])
            self.outputs = sum(x.numel() * x.element_size() for x in leaves if isinstance(x, Tensor))
            self.part, self.tokens, self.choice = meter.root, tokens, None  # none either where nothing fits
            self.choose()
            return result
        with Plan(self.choice.estimate.schedule).in_force():
            return forward(*args, **kwargs)

    def reserve(self, size: int) -> None:
        """Leave `size` bytes to others, and choose again."""
        self.reserved = size
        if self.part is not None:
            self.choose()

    def choose(self) -> Choice:
        """Keep as much as fits; N0520 where even the leanest schedule does not."""
        assert self.part is not None
        found = [self.estimate(schedule) for schedule in schedules(self.part)]
        resident, least = self.resident, min(e.activations for e in found)
        fitting = [e for e in found if resident + e.activations <= self.limit]
        if not fitting:
            raise fail(
                "N0520",
                f"a step of training needs at least {amount(resident + least, up=True)}, the budget is "
                f"{amount(self.limit)}",
                notes=(
                    f"weights, gradients and optimizer states: {amount(resident)}; "
                    f"activations with as much as possible computed again: {amount(least)}",
                ),
                help="raise --memory, or use a smaller batch, context or model",
            )
        best = min(fitting, key=lambda e: (e.again, e.activations))
        self.choice = Choice(self.limit, resident, best, resident + least, resident + found[0].activations)
        return self.choice

    def estimate(self, schedule: Schedule) -> Estimate:
        """Peak and repeated work of a schedule, from what was measured."""
        assert self.part is not None
        return Estimate(
            schedule,
            kept(self.part, schedule) + transient(self.part, schedule) + OUTPUTS * self.outputs,
            again(self.part, schedule) / max(1, work(self.part)),
        )


def set_budget(module: torch.nn.Module, limit: int) -> Budget:
    """Train `module` within `limit` bytes. Raises `ProgramError` N0520 for a model that cannot."""
    assert isinstance(module, System)
    budget = Budget(module, limit)
    module.__dict__["budget"] = budget
    return budget


def schedules(part: Part) -> Iterator[Schedule]:
    """All schedules that are worth a look, the one that keeps everything first."""
    loops = list(all_loops(part))
    most = max((loop.blocks for loop in loops), default=0)
    groups = sorted({0, *(2**i for i in range(most.bit_length())), *(loop.leanest for loop in loops)})
    passes = max((repeat.passes for repeat in part.repeats), default=0)
    for replayed in range(passes + 1):
        for group in groups if most else (0,):
            keeps = {0} if group == 0 else {most * i // 8 for i in range(8)}
            for keep in sorted(keeps):
                yield Schedule(replayed, group, keep)


def all_loops(part: Part) -> Iterator[Loop]:
    """Loops here and in repeats."""
    yield from part.loops
    for repeat in part.repeats:
        yield from all_loops(repeat.part)


def split_loop(loop: Loop, schedule: Schedule) -> tuple[int, int]:
    """How many blocks are computed again, and how many at a time."""
    again = max(0, loop.blocks - schedule.kept) if schedule.group else 0
    return again, min(schedule.group, again)


def kept(part: Part, schedule: Schedule) -> int:
    """Bytes that are kept from the forward to the backward pass."""
    total = part.own
    for loop in part.loops:
        again, group = split_loop(loop, schedule)
        total += (loop.blocks - again) * (loop.state + loop.saved)
        total += -(-again // group) * loop.state if again else 0
    for repeat in part.repeats:
        first = min(schedule.passes, repeat.passes)
        total += first * repeat.handed + (repeat.passes - first) * kept(repeat.part, inside(schedule))
    return total


def transient(part: Part, schedule: Schedule) -> int:
    """Bytes of the largest frame while it is computed again, and of gradients on the way."""
    found = [part.own]
    for loop in part.loops:
        group = split_loop(loop, schedule)[1]
        blocks = group + BACKWARD_BLOCKS if group else 1
        found.append(part.own + int(blocks * (loop.state + loop.saved)))
    for repeat in part.repeats:
        within = transient(repeat.part, inside(schedule))
        found.append(within + (kept(repeat.part, inside(schedule)) if schedule.passes else 0))
    return max(found)


def inside(schedule: Schedule) -> Schedule:
    """What is in force inside of a repeat's pass."""
    return Schedule(0, schedule.group, schedule.kept)


def work(part: Part) -> float:
    """Work of the forward pass; what it keeps is the measure."""
    loops = sum(loop.blocks * loop.saved for loop in part.loops)
    return part.own + loops + sum(repeat.passes * work(repeat.part) for repeat in part.repeats)


def again(part: Part, schedule: Schedule) -> float:
    """Work that is done again."""
    total = float(sum(split_loop(loop, schedule)[0] * loop.saved for loop in part.loops))
    for repeat in part.repeats:
        first = min(schedule.passes, repeat.passes)
        total += first * work(repeat.part) + repeat.passes * again(repeat.part, inside(schedule))
    return total


def amount(size: float, *, up: bool = False) -> str:
    """`1.25 GB`, `310 MB`; with `up` never less than `size`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            digits = 2 if size < 100 * unit else 0
            scaled = size / unit
            if up:
                step = 10**digits
                scaled = -(-size * step // unit) / step
            return f"{scaled:.{digits}f} {name}"
    return f"{size:.0f} B"
