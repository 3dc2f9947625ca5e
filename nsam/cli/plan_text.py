"""A plan as text: the work on the whole sequence in its stages, and the nest of loops over chunks."""

from __future__ import annotations

from collections.abc import Iterator

from nsam.compiler.passes import ALL, Passes
from nsam.compiler.schedule import Level, UnitPlan, plan
from nsam.dsl.checked import Repeat, Unit


def plan_text(unit: Unit, passes: Passes = ALL) -> str:
    """Return the plans of `unit` and of the units inside it, each once."""
    units: list[Unit] = []
    _gather(unit, units)
    return "\n".join(line for found in units for line in _unit(plan(found, passes)))


def _gather(unit: Unit, units: list[Unit]) -> None:
    if unit in units:
        return
    units.append(unit)
    for child in unit.children:
        _gather(child.body if isinstance(child, Repeat) else child.unit, units)


def _unit(found: UnitPlan) -> Iterator[str]:
    yield f"{found.unit.name}({', '.join(f'{key} = {value}' for key, value in found.unit.parameters.items())})"
    if found.merged is not None:
        yield f"  loops merged: {found.merged}"
    for number, stage in enumerate(found.stages):
        yield f"  stage {number}, whole sequence"
        yield from (f"    {node!r}" for node in stage.nodes)
        if stage.event is not None:
            yield f"    then {stage.event!r}"
        if stage.loop:
            yield from _loops(found.levels, 0)
    yield ""


def _loops(levels: tuple[Level, ...], depth: int) -> Iterator[str]:
    """Yield the loop at `depth` with the ones inside it between what comes before and after them."""
    if depth == len(levels):
        return
    level, indent = levels[depth], "    " + "  " * depth
    yield f"{indent}loop over blocks of {' and '.join(map(str, level.cuts))} tokens: {', '.join(level.memories)}"
    yield from (f"{indent}  {node!r}" for node in level.before)
    yield from _loops(levels, depth + 1)
    yield from (f"{indent}  {node!r}" for node in level.after)
    if level.resets:
        yield f"{indent}  reset {', '.join(level.resets)}"
