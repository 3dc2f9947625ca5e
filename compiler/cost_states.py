"""Bytes of the state that one sequence carries from call to call, counted from the plan, float32."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from nsam.compiler.end_to_end import end_to_end_memories, predicts_its_input
from nsam.compiler.expressions import Node
from nsam.compiler.fast_memory import FastMemory, Fold
from nsam.compiler.lower import held, memory_heads, state_shape
from nsam.compiler.passes import Passes
from nsam.compiler.rule_plan import RulePlan
from nsam.compiler.schedule import UnitPlan, plan
from nsam.dsl import checked as c

FLOAT_BYTES = 4
INTEGER_BYTES = 8


def memory_bytes(planned: UnitPlan, memory: c.Memory, tokens: int) -> int:
    """Bytes of a memory's state after `tokens`: weights, states of the rule, windows, taps, keys and values."""
    numbers = whole = 0
    if memory.fast or held(memory):
        heads = memory_heads(memory)
        tensors = {t: heads * prod(state_shape(memory, t)) for t in memory.structure.tensors()}
        numbers += sum(tensors.values())
        if memory.end_to_end:
            moving = next(each for each in planned.lowered.end_to_end if each.memory.name == memory.name)
            numbers += sum(tensors.values())  # the summed gradient
            numbers += sum(heads * _rule_states(moving.plan, _host(memory, t)) for t in tensors)
        elif memory.fast:
            fast = planned.fast(memory.name)
            beside = {f.tensor: _beside(memory, fast, f, tensors[f.tensor]) for f in fast.folds}
            numbers += sum(beside.values())
            if fast.slowest is not None:  # an adaptive period: the running state, `surprise`, and the integer `waited`
                numbers, whole = numbers + sum(tensors.values()) + 1, 1
            elif tokens % fast.period:  # within a chunk what is folded so far stands beside what reads see
                folded = [f.tensor for f in fast.folds if f.algorithm != "summed"]
                numbers += sum(tensors[tensor] + beside[tensor] for tensor in folded)
    numbers += sum(_kept(memory, node, tokens) for node in nodes(planned) if node.attr("memory") == memory.name)
    return FLOAT_BYTES * numbers + INTEGER_BYTES * whole


def _beside(memory: c.Memory, fast: FastMemory, fold: Fold, size: int) -> int:
    """Numbers that are kept beside a tensor of `size` numbers: a trace, a sum, the states of its rule."""
    kept = size if fold.algorithm in ("momentum", "summed") else 0
    if fold.algorithm not in ("summed", "generic") or fast.plan is None:
        return kept
    host = _host(memory, fold.tensor, column=bool(fold.node.attr("key")))
    return kept + memory_heads(memory) * _rule_states(fast.plan, host)


def _host(memory: c.Memory, tensor: str, *, column: bool = False) -> tuple[int, int]:
    """Rows and columns of one head's tensor as its rule sees them: a vector is a row unless it is kept as a column."""
    rows, columns = state_shape(memory, tensor)
    vector = len(memory.structure.tensors()[tensor]) - (memory.structure.heads is not None) == 1
    return (columns, rows) if vector and not column else (rows, columns)


def _rule_states(rule: RulePlan, host: tuple[int, int]) -> int:
    """Numbers in the states that a rule keeps for one matrix."""
    shapes = {"self": host}
    for state in rule.states:
        shapes[state.name] = (
            host if state.shape is None else (_size(state.shape[0], shapes), _size(state.shape[1], shapes))
        )
    return sum(prod(shapes[state.name]) for state in rule.states)


def _size(size: c.Expr, shapes: dict[str, tuple[int, int]]) -> int:
    """A size in the rows and columns of the matrices before it."""
    if isinstance(size, c.Constant):
        return int(size.value)
    assert isinstance(size, c.Apply)
    if size.function in ("rows", "cols"):
        (matrix,) = size.arguments
        assert isinstance(matrix, c.Ref)
        return shapes[matrix.name][size.function == "cols"]
    sizes = [_size(argument, shapes) for argument in size.arguments]
    return prod(sizes) if size.function == "mul" else sum(sizes)


def _kept(memory: c.Memory, node: Node, tokens: int) -> int:
    """Numbers that an operation keeps of earlier tokens."""
    if node.op == "conv":
        return (node.args[1].shape[1] - 1) * node.shape[-1]
    if node.op == "carry":
        return memory_heads(memory) * (int(str(node.attr("window"))) - 1) * node.shape[-1]
    if node.op == "attention":
        heads = int(memory.structure.kv_heads or memory.structure.heads or 1)
        return attended(node, tokens) * heads * (node.args[1].shape[-1] + node.args[2].shape[-1])
    return 0


def attended(attention: Node, tokens: int) -> int:
    """How many of `tokens` earlier tokens an attention keeps."""
    window = attention.attr("window")
    return tokens if window is None else min(tokens, int(str(window)) - 1)


def values_bytes(planned: UnitPlan) -> int:
    """Bytes of inputs with one value a sequence that are kept for initial states made of them."""
    lowered = planned.lowered
    kept = {n.attr("name") for n in lowered.inputs if n.layout == "sequence" and lowered.initial}
    return sum(_input_bytes(given) for given in planned.unit.inputs if given.name in kept)


def _input_bytes(given: c.Input) -> int:
    size = FLOAT_BYTES if given.type.vocab is None else INTEGER_BYTES
    return size * prod(int(n) for n in given.type.shape)


def nodes(planned: UnitPlan) -> Iterable[Node]:
    """Every node of a unit's stages and loops."""
    for stage in planned.stages:
        yield from stage.nodes
    for level in planned.levels:
        yield from (*level.before, *level.after)


# --- models that learn by their own loss -------------------------------------------------------------


def boundaries(unit: c.Unit, tokens: int) -> list[int]:
    """Where a sequence of `tokens` is cut because something moves by the model's own loss; its end is one of them."""
    periods = {int(m.frequency.period) for m in end_to_end_memories(unit) if m.frequency is not None}
    return sorted({tokens, *(at for period in periods for at in range(period, tokens, period))})


def closes(unit: c.Unit, at: int) -> bool:
    """Whether something moves by the model's own loss after token `at`."""
    return any(m.frequency is not None and at % int(m.frequency.period) == 0 for m in end_to_end_memories(unit))


def open_bytes(unit: c.Unit, tokens: int, passes: Passes) -> int:
    """Bytes of a whole model's open chunk, the latest one: its inputs, its targets, and the state at its start.

    A closed chunk is kept too where the next token is the target, because the target of its last token is yet to come.
    """
    owed = predicts_its_input(unit)
    if not any(True for _ in end_to_end_memories(unit)) or (closes(unit, tokens) and not owed):
        return 0
    start = max([0, *boundaries(unit, tokens)[:-1]])
    length = tokens - start
    targets = 0 if closes(unit, tokens) else length - owed
    inputs = sum(_input_bytes(given) * (length if given.type.per == "token" else 1) for given in unit.inputs)
    return inputs + INTEGER_BYTES * targets + (carried_bytes(unit, start, passes) if start else 0)


def carried_bytes(unit: c.Unit, tokens: int, passes: Passes) -> int:
    """Bytes of the state of a unit and all that it calls, the open chunk left out."""
    planned = plan(unit, passes)
    found = values_bytes(planned) + sum(memory_bytes(planned, memory, tokens) for memory in planned.unit.memories)
    for step in planned.unit.children:
        copies, inside = (1, step.unit) if isinstance(step, c.Call) else (int(step.count), step.body)
        found += copies * carried_bytes(inside, tokens, passes)
    return found
