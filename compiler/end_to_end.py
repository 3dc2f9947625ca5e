"""Memories that move by the model's own loss: `minimize task` on the token clock (end-to-end test-time training).

The loss of a token is the cross-entropy between the model's output there and the token's target. A memory's state
moves once a period, by the sum of the loss's gradients with respect to its state at the last boundary. The model runs
chunk by chunk through all of its layers: the graph of the gradient is cut at every boundary of every such memory, so
that within a chunk everything depends on the states at its start, and those are held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from nsam.compiler.expressions import Node, postorder
from nsam.compiler.rule_plan import RulePlan, lower_rule
from nsam.compiler.unsupported import unsupported
from nsam.dsl import checked as c
from nsam.dsl.records import dataclass


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """A memory that moves by the model's own loss, lowered: its period in tokens and its rule as straight-line code.

    `arguments` are those of the rule that are made of slow weights, a scalar or one a head; numbers are in the plan.
    """

    memory: c.Memory
    period: int
    plan: RulePlan
    arguments: tuple[tuple[str, Node], ...] = ()


def build_end_to_end(memory: c.Memory, lowered: Callable[[c.Expr], Node]) -> EndToEnd:
    """Lower one memory; `lowered` gives a rule's argument.

    Raises `ProgramError` (N0401) for what has no compiled form.
    """
    assert memory.rule is not None
    assert memory.frequency is not None
    fixed = {name: value for name, value in memory.rule.arguments if isinstance(value, c.Constant)}
    arguments = tuple(
        (name, _of_weights(name, value, lowered)) for name, value in memory.rule.arguments if name not in fixed
    )
    return EndToEnd(memory, int(memory.frequency.period), lower_rule(memory.rule.rule, fixed), arguments)


def _of_weights(name: str, value: c.Expr, lowered: Callable[[c.Expr], Node]) -> Node:
    node = lowered(value)
    if any(not n.args and n.op not in ("weight", "number") for n in postorder([node])):
        raise unsupported(
            f"argument `{name}` of a rule that moves a memory by the model's own loss depends on more than parameters",
            value.span,
            "make it of numbers and of memories without clauses",
        )
    return node


def check_starts(unit: c.Unit, initial: Iterable[tuple[str, Node]]) -> None:
    """Refuse memories that start over from one that moves by the model's own loss, but do not themselves.

    `initial` are the expressions that write initial states. Raises `ProgramError` (N0401).
    """
    moving = {memory.name for memory in unit.memories if memory.end_to_end}
    sources = {memory.name: {str(memory.initial.memory)} for memory in unit.memories}
    for name, node in initial:
        sources[name] |= {str(n.attr("memory")) for n in postorder([node]) if n.op == "state"}
    for memory in unit.memories:
        found = sources[memory.name] & moving
        if found and memory.reset.kind == "every" and not memory.end_to_end:
            raise unsupported(
                f"`{memory.name}` starts over from `{sorted(found)[0]}`, which moves by the model's own loss only when "
                "the chunk is done",
                memory.span,
                "let it move by `minimize task` too, or reset it per sequence",
            )


def end_to_end_memories(unit: c.Unit) -> Iterator[c.Memory]:
    """Yield the memories, here and in every unit inside, that move by the model's own loss."""
    yield from (memory for memory in unit.memories if memory.end_to_end)
    for child in unit.children:
        yield from end_to_end_memories(child.unit if isinstance(child, c.Call) else child.body)


def learns_end_to_end(unit: c.Unit) -> bool:
    """Whether running `unit` takes targets: something in it moves by the model's own loss."""
    return any(True for _ in end_to_end_memories(unit))


def predicts_its_input(unit: c.Unit) -> bool:
    """Whether the targets are the input one token later: the one input is `token(n)` and the output `[n]`."""
    vocab = unit.inputs[0].type.vocab if len(unit.inputs) == 1 else None
    return vocab is not None and scores(unit) == vocab


def scores(unit: c.Unit) -> int:
    """How many classes a system's output scores. Raises `ProgramError` (N0401) when it is not one vector a token."""
    output = unit.outputs[0][1]
    shape = tuple(int(n) for n in output.type.shape)
    if len(unit.outputs) != 1 or len(shape) != 1 or output.type.per != "token":
        memory = next(end_to_end_memories(unit))
        raise unsupported(
            f"`{memory.name}` moves by the loss of `{unit.name}`, whose output is not one vector of scores a token",
            output.span,
            "let the system put out [n]: one score for each class that a target may be",
        )
    return shape[0]
