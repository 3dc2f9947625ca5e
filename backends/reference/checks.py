"""What the reference does not interpret, and a state that is none, said before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nsam.backends.reference.scope import unsupported
from nsam.backends.reference.weights import is_parameter
from nsam.dsl.checked import Call, Memory, RuleMemory, RuleUse, Unit

STRUCTURES_THAT_LEARN = ("linear", "mlp", "vector", "rmsnorm", "layernorm")


def check_supported(unit: Unit) -> None:
    """Raise `ProgramError` (N0490) when the reference does not interpret the unit."""
    for inside in units(unit):
        for memory in inside.memories:
            _check(memory)


def require_state(unit: Unit, state: Any) -> None:
    """Raise ValueError when a call is given something else than a state of the unit."""
    if state is None:
        return
    if not isinstance(state, Mapping) or "sequences" not in state:
        other = isinstance(state, Mapping) and "steps" in state
        raise ValueError(
            f"the state given to `{unit.name}` is {'one of a compiled module' if other else type(state).__name__}: "
            "a state is what this module returned beside its output, or what nsam.load_state returned"
        )
    known = {memory.name for memory in unit.memories} | {child.name for child in unit.children}
    foreign = [
        name
        for record in state["sequences"]
        for part in ("memories", "children")
        for name in record.get(part, {})
        if name not in known
    ]
    if foreign:
        raise ValueError(f"the state is not one of `{unit.name}`: it has `{foreign[0]}`")


def learns_end_to_end(unit: Unit) -> bool:
    """Whether something in a unit moves by the model's own loss."""
    return any(memory.end_to_end for inside in units(unit) for memory in inside.memories)


def units(unit: Unit) -> Iterator[Unit]:
    """Yield a unit and every unit inside it."""
    yield unit
    for child in unit.children:
        yield from units(child.unit if isinstance(child, Call) else child.body)


def _check(memory: Memory) -> None:
    structure, objective = memory.structure, memory.objective
    stepped = memory.frequency is not None and memory.frequency.unit == "step"
    if stepped and not is_parameter(memory):
        raise unsupported("a memory of the step clock whose initial state is not its own", memory.span)
    if not memory.fast or structure.kind == "attention":
        return
    if structure.kind not in STRUCTURES_THAT_LEARN:
        raise unsupported(f"a {structure.kind} that learns on the token clock", memory.span)
    if memory.end_to_end and (memory.reads == "running" or memory.reset.kind == "never"):
        raise unsupported("`minimize task` on the token clock with `reads running` or `reset never`", memory.span)
    if objective is not None and objective.expression is None and not memory.end_to_end:
        raise unsupported(f"`minimize {objective.name}` on the token clock", objective.span)
    if memory.rule is not None:
        _check_rule(memory.rule)


def _check_rule(use: RuleUse) -> None:
    for statement in use.rule.statements:
        if isinstance(statement, RuleMemory):
            structure = statement.structure
            if structure.kind not in ("like", "linear", "mlp") or structure.bias or structure.heads is not None:
                raise unsupported(f"a {structure.kind} with bias or heads inside a rule", statement.span)
            _check_rule(statement.rule)
