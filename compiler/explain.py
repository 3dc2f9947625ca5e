"""Explains a system: the equations that the compiler derived, the algorithms that it chose, and why.

`explain` gives text of at most `WIDTH` columns, `explanation` the same as data. Equation numbers are those of arXiv
2512.24695 and come from features of the program (`explain_equations.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import groupby
from math import prod
from textwrap import wrap

from nsam.compiler import explain_equations as eq
from nsam.compiler.describe import initial_text, source_text, structure_text
from nsam.compiler.end_to_end import learns_end_to_end
from nsam.compiler.explain_end_to_end import explain_end_to_end
from nsam.compiler.explain_levels import explain_level
from nsam.compiler.explain_memory import explain_memory
from nsam.compiler.explain_model import Line, MemoryExplanation, Part, SlowRow, UnitExplanation
from nsam.compiler.explain_passes import pass_parts
from nsam.compiler.explain_schedule import schedule_lines
from nsam.compiler.passes import ALL, Passes
from nsam.compiler.schedule import UnitPlan, plan
from nsam.compiler.wavefront import wavefront_lines
from nsam.dsl import checked as c
from nsam.dsl.rule_keys import Needs, step_needs

WIDTH = 100
OF_LAYERS: dict[Needs, str] = {
    "": "",
    "sums": " along the sum of E[x xᵀ], x the inputs of its layer",
    "tokens": ", a mean over tokens",
}
"""What a rule of the step clock needs of its layer."""


def explain(unit: c.Unit, passes: Passes = ALL, train: c.Train | None = None) -> str:
    """Return the explanation of `unit` and of every system and repeat in it, each once, as text.

    With `train` also that of the level that trains it.
    """
    parts = [_unit_text(found) for found in explanation(unit, passes)]
    return "\n".join("\n".join(part) for part in [*parts, *([] if train is None else [_level_text(train)])])


def explain_json(unit: c.Unit, passes: Passes = ALL, train: c.Train | None = None) -> str:
    """Return the same as JSON: a list of units, then the level."""
    parts = [asdict(found) for found in explanation(unit, passes)]
    parts += [] if train is None else [asdict(explain_level(train))]
    return json.dumps(parts, indent=2, ensure_ascii=False)


def explanation(unit: c.Unit, passes: Passes = ALL) -> tuple[UnitExplanation, ...]:
    """Explain `unit` and every unit inside it, each once. Raises `ProgramError` for what cannot be compiled."""

    def plans(found: c.Unit) -> UnitPlan:
        return plan(found, passes)

    whole = learns_end_to_end(unit)
    parts = []
    for planned in map(plans, _units(unit)):
        part = _explain_unit(planned)
        overlap = wavefront_lines(planned, plans, end_to_end=whole)
        parts.append(replace(part, schedule=(*part.schedule, *overlap)))
    return tuple(parts)


def equations(unit: c.Unit) -> Iterator[str]:
    """Yield the text of the update equations of `unit` and its repeats: no called systems, algorithms, schedule."""
    found = _explain_unit(plan(unit))
    yield from _memories_text(found.memories, frozenset({"computed"}))
    for row in found.slow:
        if row.equation:
            yield from _wrapped(f"{row.names} : {row.structure}", WIDTH, "  ")
            yield from laid_out(Line(row.moves, row.equation), "  ")
    for line in (*found.transfers, *found.calls):
        yield from laid_out(line, "")
    for step in unit.children:
        if isinstance(step, c.Repeat):
            yield ""
            yield from equations(step.body)


def _units(unit: c.Unit) -> list[c.Unit]:
    found: list[c.Unit] = []
    todo = [unit]
    while todo:
        current = todo.pop(0)
        if current not in found:
            found.append(current)
            todo += [step.body if isinstance(step, c.Repeat) else step.unit for step in current.children]
    return found


def _explain_unit(found: UnitPlan) -> UnitExplanation:
    unit = found.unit
    fast = {f.memory.name: explain_memory(found.lowered, f) for f in found.lowered.fast}
    fast |= {e.memory.name: explain_end_to_end(e) for e in found.lowered.end_to_end}
    memories = [fast[m.name] for m in unit.memories if m.name in fast]
    memories += [_attention(m) for m in unit.memories if m.structure.kind == "attention"]
    return UnitExplanation(
        unit.name,
        tuple((name, _value(value)) for name, value in unit.parameters.items()),
        tuple(_values(unit)),
        tuple(_grouped(memories)),
        tuple(_slow(unit)),
        tuple(_transfers(unit)),
        tuple(_calls(unit)),
        schedule_lines(found),
        pass_parts(found),
    )


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_value(v) for v in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(unit: c.Unit) -> Iterator[Line]:
    for binding in unit.bindings:
        yield Line(f"{binding.source} = {source_text(binding.value)}")
    for name, value in unit.outputs:
        if name == "output":
            yield Line(f"output {source_text(value).removeprefix('output ')}")


def _grouped(memories: list[MemoryExplanation]) -> Iterator[MemoryExplanation]:
    """Memories that differ in name only, as one."""
    groups: dict[tuple[str, tuple[Part, ...]], list[str]] = {}
    first: dict[tuple[str, tuple[Part, ...]], MemoryExplanation] = {}
    for memory in memories:
        groups.setdefault((memory.kind, memory.parts), []).extend(memory.names)
        first.setdefault((memory.kind, memory.parts), memory)
    for key, names in groups.items():
        yield replace(first[key], names=tuple(names))


def _attention(memory: c.Memory) -> MemoryExplanation:
    assert memory.context is not None
    window = memory.structure.window
    past = "1" if window is None else f"max(1, t−{int(window) - 1})"
    parts = (
        Part(
            "context",
            (Line(f"k = {source_text(memory.context.key)}"), Line(f"v = {source_text(memory.context.value)}")),
        ),
        Part(
            "objective",
            (Line("Σᵢ exp(⟨q, kᵢ⟩ / √d) ½ ‖M − vᵢ‖², solved in closed form at every read q", eq.ATTENTION),),
        ),
        Part(
            "reads",
            (Line(f"attn(q) = Σᵢ softmaxᵢ(⟨q, kᵢ⟩ / √d) vᵢ, i = {past}, …, t; d the width of a head", eq.ATTENTION),),
        ),
        Part("moves", (Line("every token is kept; frequency ∞, no parameters of its own"),)),
    )
    return MemoryExplanation((memory.name,), structure_text(memory.structure), parts)


def _slow(unit: c.Unit) -> Iterator[SlowRow]:
    """Weights that stay put in the sequence, rows of equal ones joined."""
    rows: dict[SlowRow, list[str]] = {}
    for memory in unit.memories:
        if memory.fast or memory.structure.kind == "attention":
            continue
        count = sum(prod(int(n) for n in shape) for shape in memory.structure.tensors().values())
        row = SlowRow("", structure_text(memory.structure), count, _start(memory), *_mover(memory))
        rows.setdefault(row, []).append(memory.name)
    for row, names in rows.items():
        yield replace(row, names=", ".join(names))


def _start(memory: c.Memory) -> str:
    if memory.initial.kind == "memory":
        return f"= {memory.initial.memory}"
    if memory.initial.kind == "expression":
        return f"= {initial_text(memory.initial)}"
    return initial_text(memory.initial)


def _mover(memory: c.Memory) -> tuple[str, str]:
    """What moves a slow weight if not every step of the training level, with its equation."""
    if memory.initial.kind in ("memory", "expression"):
        return "written anew at each reset", eq.initial_equation(memory.initial)
    if memory.frequency is None:
        return "", ""
    frequency = memory.frequency
    if frequency.period == float("inf"):
        return "never moves (frequency 0)", ""
    every = f"every {frequency.period} steps" if frequency.period != 1 else "every step"
    by = "" if memory.rule is None else f", by {memory.rule.rule.name}"
    if memory.rule is not None:
        by += OF_LAYERS[step_needs(memory.rule.rule)]
    return f"moves {every} by the sum of the task's gradients{by}", eq.schedule_equation(frequency, "")


def _transfers(unit: c.Unit) -> Iterator[Line]:
    says = {
        "direct": "no outer gradient crosses",
        "backprop": "the outer gradient crosses",
        "init": "initial state",
        "generate": "one writes the other's weights",
    }
    number = {"direct": eq.DIRECT, "init": "eq. 28", "generate": eq.GENERATED}
    for transfer in unit.transfers:
        held = transfer.kind == "direct" and transfer.source == transfer.target
        meaning = "its inner gradients hold its own state constant (first order)" if held else says[transfer.kind]
        text = f"{transfer.source} → {transfer.target}: {transfer.kind}, {meaning}"
        yield Line(text, number.get(transfer.kind, ""))


def _calls(unit: c.Unit) -> Iterator[Line]:
    for step in unit.children:
        if isinstance(step, c.Repeat):
            yield Line(f"{step.name}: {step.body.name}, {step.count} passes, each with memories of its own")
        else:
            yield Line(f"{step.name}: {step.unit.name}({', '.join(source_text(a) for a in step.arguments)})")


# --- text --------------------------------------------------------------------------------------------


def _unit_text(found: UnitExplanation) -> Iterator[str]:
    head = f"{found.name}({', '.join(f'{name} = {value}' for name, value in found.parameters)})"
    yield from wrap(head, WIDTH, subsequent_indent="  ")
    yield "─" * min(WIDTH, max(len(head), 20))
    if found.values:
        yield from _section("values", found.values)
    yield from _memories_text(found.memories)
    if found.slow:
        yield "weights that stay put in the sequence; the level that trains the system moves them"
        yield from _table(found.slow)
        yield ""
    for label, lines in (("transfers declared", found.transfers), ("parts", found.calls), ("schedule", found.schedule)):
        if lines:
            yield from _section(label, lines)
    if found.passes:
        yield "passes"
        yield from (row for part in found.passes for row in _part(part))
        yield ""


def _level_text(train: c.Train) -> Iterator[str]:
    found = explain_level(train)
    head = f"{found.name}: the level that trains {train.model.name}"
    yield head
    yield "─" * min(WIDTH, max(len(head), 20))
    yield f"{found.clock}; W is a matrix (a vector is one row), ∇ its gradient"
    yield from (row for part in found.rules for row in _part(part))
    yield ""


def _memories_text(memories: tuple[MemoryExplanation, ...], without: frozenset[str] = frozenset()) -> Iterator[str]:
    seen: dict[Part, str] = {}
    for memory in memories:
        word = "memories" if len(memory.names) > 1 else "memory"
        yield from wrap(f"{word} {', '.join(memory.names)} : {memory.kind}", WIDTH, subsequent_indent="  ")
        for source, parts in _runs(memory, seen, without):
            if source is None:
                yield from _part(parts[0])
            else:
                labels = ", ".join(part.label for part in parts)
                yield from _part(Part(f"as {source}", (Line(labels),)))
        for part in memory.parts:
            seen.setdefault(part, memory.names[0])
        yield ""


def _runs(
    memory: MemoryExplanation, seen: dict[Part, str], without: frozenset[str]
) -> Iterator[tuple[str | None, list[Part]]]:
    """Parts one by one, or runs of two and more that an earlier memory has word for word, with its name."""
    for source, run in groupby((p for p in memory.parts if p.label not in without), lambda part: seen.get(part)):
        parts = list(run)
        if source is None or len(parts) == 1:
            yield from ((None, [part]) for part in parts)
        else:
            yield source, parts


def _section(label: str, lines: tuple[Line, ...]) -> Iterator[str]:
    yield label
    for line in lines:
        yield from laid_out(line, "  ")
    yield ""


def _part(part: Part) -> Iterator[str]:
    for i, line in enumerate(part.lines):
        yield from laid_out(line, f"  {part.label if i == 0 else '':<12}")


def laid_out(line: Line, lead: str) -> Iterator[str]:
    """Lay a line out within the width, its equation number at the right."""
    room = WIDTH - (len(line.equation) + 2 if line.equation else 0)
    indent = " " * len(lead)
    extra = len(line.text) - len(line.text.lstrip())
    rows = _wrapped(lead + line.text, room, indent + " " * (extra + 4))
    for i, row in enumerate(rows or [lead]):
        yield f"{row:<{room}}  {line.equation}" if i == 0 and line.equation else row


def _table(rows: tuple[SlowRow, ...]) -> Iterator[str]:
    names = [wrap(row.names, 26) for row in rows]
    left = max(len(part) for parts in names for part in parts)
    wide = max(len(row.structure) for row in rows)
    count = max(len(f"{row.numbers:,}") for row in rows)
    for row, parts in zip(rows, names, strict=True):
        line = f"  {parts[0]:<{left}}  {row.structure:<{wide}}  {f'{row.numbers:,}':>{count}}  {row.starts}"
        yield from _wrapped(line, WIDTH, " " * (left + 8))
        yield from (f"  {part}" for part in parts[1:])
        if row.moves:
            yield from laid_out(Line(row.moves, row.equation), " " * (left + 6))


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    """Wrap, never inside an equation number."""
    kept = text.replace("eq. ", "eq.\u00a0").replace("section ", "section\u00a0")
    rows = wrap(kept, width, subsequent_indent=indent, break_on_hyphens=False, replace_whitespace=False)
    return [row.replace("\u00a0", " ") for row in rows]
