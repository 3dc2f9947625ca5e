"""Whether the passes of a repeat can overlap: pass l on one segment of the sequence while pass l - 1 is at the next.

Layers are causal, so pass l needs of a segment what pass l - 1 made of the same one, and its own state after the one
before. So the passes form a wavefront, several at work at a time. On a machine that runs one kernel after the other it
gains nothing; where a step is recorded as a CUDA graph it does (`runtime/wavefront.py` of the torch backend).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import lcm
from typing import TypeAlias

from nsam.compiler.explain_model import Line
from nsam.compiler.loops import alignment, plan_loops, uncompiled
from nsam.compiler.lower import varies
from nsam.compiler.schedule import UnitPlan
from nsam.compiler.step_keys import kept_by_token, recorded
from nsam.dsl import checked as c
from nsam.dsl.records import dataclass

Plans: TypeAlias = Callable[[c.Unit], UnitPlan]
"""The plan of a unit that another one calls or repeats."""


@dataclass(frozen=True, slots=True)
class Segments:
    """How the sequence of a repeat's body may be cut.

    `tokens`: the pattern of blocks in it repeats after so many; segments are multiples of that. `timeless`: inputs, by
    number, that have no time axis. `undivided`: why the body is not run in segments, None if it may be.
    """

    tokens: int
    timeless: tuple[int, ...]
    undivided: str | None


def segments_of(body: UnitPlan, plans: Plans, *, end_to_end: bool) -> Segments:
    """How the body of a repeat may be cut. `end_to_end`: the whole model's loss moves memories inside the sequence."""
    timeless = tuple(i for i, item in enumerate(body.unit.inputs) if varies(body.unit, item) != "token")
    why = "the model's own loss moves memories, chunk by chunk through all layers" if end_to_end else None
    inside = list(_inside(body, plans))
    return Segments(
        lcm(*map(block_tokens, inside)), timeless, why or next(filter(None, map(why_undivided, inside)), None)
    )


def why_undivided(plan: UnitPlan) -> str | None:
    """Why one unit, apart from those that it calls, has its whole sequence at once; None if it need not."""
    for memory in plan.unit.memories:
        if memory.structure.kind == "attention":
            return f"`{memory.name}` is attention, whose state grows with the sequence"
        if memory.frequency is not None and memory.frequency.slowest is not None:
            return f"`{memory.name}` moves at times that depend on the data"
        if memory.end_to_end:
            return f"`{memory.name}` moves by the model's own loss"
    return None


def block_tokens(plan: UnitPlan) -> int:
    """Tokens after which the pattern of a unit's blocks repeats, in whole calls of its compiled code."""
    calls = [] if uncompiled(plan) else [loop.compiled for loop in plan_loops(plan) if loop.compiled is not None]
    # Of calls of several lengths the shortest: what is left of a sequence goes in those.
    return lcm(min(calls, default=1), *(alignment(plan, level) for level in plan.levels))


def wavefront_lines(plan: UnitPlan, plans: Plans, *, end_to_end: bool) -> Iterator[Line]:
    """For each repeat of a unit, how its passes run where a step is recorded as one CUDA graph."""
    for step in plan.unit.children:
        if not isinstance(step, c.Repeat):
            continue
        lead = f"as one CUDA graph: the passes of {step.name}"
        found = segments_of(plans(step.body), plans, end_to_end=end_to_end)
        why = found.undivided or _why_whole(step, plans)
        if why is not None:
            yield Line(f"{lead} run one after the other: {why}")
        else:
            tokens = f"{found.tokens} token{'s' * (found.tokens != 1)}"
            yield Line(f"{lead} may overlap, each a segment behind the one before; segments of multiples of {tokens}")


def _why_whole(step: c.Repeat, plans: Plans) -> str | None:
    """What else keeps passes apart: there is one, or a rule of the step clock asks for the inputs of their layers."""
    if int(step.count) < 2:
        return "there is only one"
    for found in _inside(plans(step.body), plans):
        asked = [*recorded(found.unit, False, False), *kept_by_token(found.unit, False, False)]
        if asked:
            return f"the rule of `{min(asked)}` needs the inputs of its layer"
    return None


def _inside(plan: UnitPlan, plans: Plans) -> Iterator[UnitPlan]:
    """A plan and those of all units that it calls or repeats."""
    yield plan
    for step in plan.unit.children:
        yield from _inside(plans(step.body if isinstance(step, c.Repeat) else step.unit), plans)
