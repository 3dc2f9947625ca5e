"""In which order memories start: those whose states shape the start of others come first."""

from __future__ import annotations

from nsam.dsl import checked as c


def starts_from(memory: c.Memory) -> set[str]:
    """Memories that shape a memory's initial state."""
    initial = memory.initial
    found = set() if initial.memory is None else {initial.memory}
    if initial.expression is not None:
        found |= {node.memory for node in c.walk(initial.expression) if isinstance(node, c.Read | c.State)}
    return found


def starting_order(unit: c.Unit) -> list[c.Memory]:
    """The unit's memories, sources of initial states before those that start from them."""
    named = {memory.name: memory for memory in unit.memories}
    order: dict[str, c.Memory] = {}

    def visit(memory: c.Memory) -> None:
        if memory.name not in order:
            for source in sorted(starts_from(memory) & set(named)):
                visit(named[source])
            order[memory.name] = memory

    for memory in unit.memories:
        visit(memory)
    return list(order.values())
