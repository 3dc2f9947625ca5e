"""Writes how states move on at the end of a block: folds become the new state, then memories are reset."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nsam.backends.torch.emit.names import identifier
from nsam.backends.torch.emit.printer import Printer, each_token
from nsam.backends.torch.emit.starts import starting_order, starts_from
from nsam.compiler.expressions import Node
from nsam.compiler.fast_memory import FastMemory
from nsam.compiler.schedule import Level, UnitPlan
from nsam.compiler.stacks import Stack

INDENT = "    "


def advances(plan: UnitPlan, prefix: str, stacks: Sequence[Stack], level: Level, printer: Printer) -> list[str]:
    """Statements that move the memories of a level, slow ones before fast, and then reset those that are due.

    `stacks` are those of the level that move as one.
    """
    lines = []
    together = {name: stack for stack in stacks for name in stack.memories}
    for fast in sorted(map(plan.fast, level.memories), key=lambda fast: -fast.period):
        name = fast.memory.name
        stack = together.get(name)
        if stack is not None:
            if name == stack.memories[0]:
                lines.append(advance(stack.name, fast, stack.folds, printer))
        elif fast.slowest is not None:
            lines.append(decide(name, fast, fast.slowest, printer))
        else:
            lines.append(advance(name, fast, each(fast), printer))
    for name in due_resets(plan, level):
        lines.append(f"if at.closes({int(plan.fast(name).memory.reset.period or 0)}):")
        reset = identifier(f"{prefix}_reset_{name}")
        lines.append(f"{INDENT}new = rt.update(new, {reset}(w, rt.update(s, new), at))")
    return lines


def each(fast: FastMemory) -> list[tuple[str, Node]]:
    """A memory's tensors and their folds."""
    return [(fold.tensor, fold.node) for fold in fast.folds]


def listed(folds: Iterable[tuple[str, Node]], printer: Printer) -> str:
    """Folds by tensor, as a dict."""
    return "{" + ", ".join(f'"{tensor}": {printer.of(node)}' for tensor, node in folds) + "}"


def advance(name: str, fast: FastMemory, folds: Iterable[tuple[str, Node]], printer: Printer) -> str:
    """The statement that moves a memory, or several that move as one."""
    period, never = 1 if fast.exact else fast.period, fast.memory.reset.kind == "never"
    return f'new = rt.update(new, rt.advance(at, "{name}", {period}, {never}, {listed(folds, printer)}))'


def decide(name: str, fast: FastMemory, slowest: int, printer: Printer) -> str:
    """The statement that moves a memory where its objective says so, at the latest after `slowest` tokens."""
    clock = ", never=True" if fast.memory.reset.kind == "never" else ""
    by = f"({fast.period}, {slowest}), {number(fast.threshold)}, {each_token(fast.loss, printer.of(fast.loss, 9))}"
    return f'new = rt.update(new, rt.decide(at, s, "{name}", {by}, {listed(each(fast), printer)}{clock}))'


def due_resets(plan: UnitPlan, level: Level) -> list[str]:
    """Memories to reset at the end of the level's blocks, sources of initial states first.

    Where the boundaries of several levels fall together, an inner loop resets its memories before this level moves:
    those that start from what moves here are reset again, from the new state.
    """
    touched = {*level.memories}
    found = []
    for memory in starting_order(plan.unit):
        inner = memory.reset.kind == "every" and any(
            memory.name in deeper.resets for deeper in plan.levels if deeper.index > level.index
        )
        if memory.name in level.resets or (inner and starts_from(memory) & touched):
            touched.add(memory.name)
            found.append(memory.name)
    return found


def number(value: float) -> str:
    """A float as generated source spells it."""
    return repr(value) if math.isfinite(value) else f"{'-' if value < 0 else ''}math.inf"


def quoted(names: Iterable[str]) -> str:
    """A tuple of strings in generated source."""
    return "(" + "".join(f'"{name}", ' for name in names).rstrip() + ")"
