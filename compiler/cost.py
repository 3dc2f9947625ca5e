"""What a compiled unit costs: floating-point operations of its matrix products, parameters, states, activations.

Counted from the plan, node by node, as the generated code runs it: n multiply-adds are 2 n operations; elementwise work
is left out, as in the usual counts. A step of training takes about three times the forward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise
from math import prod

from nsam.compiler.activations import activations
from nsam.compiler.cost_gradient import gradient_flops
from nsam.compiler.cost_states import attended, boundaries, memory_bytes, nodes, open_bytes, values_bytes
from nsam.compiler.end_to_end import learns_end_to_end
from nsam.compiler.expressions import Node, undetached
from nsam.compiler.fast_memory import piece_of
from nsam.compiler.lower import memory_heads
from nsam.compiler.passes import ALL, Passes
from nsam.compiler.schedule import UnitPlan, plan
from nsam.dsl import checked as c
from nsam.dsl.records import dataclass

VALUES = "(values)"
"""What is no memory's own: values that several use."""
CHUNK = "(open chunk)"
"""What a model that learns by its own loss keeps of the latest chunk."""
TRAINING = "training: the backward pass through the inner gradient, and what is kept for it"
"""What has no count where a model learns by its own loss."""
TRIANGLE_BLOCK = 16
"""Diagonal blocks of a triangle that the runtime inverts by products of powers."""


@dataclass(frozen=True, slots=True)
class MemoryCost:
    """One memory of one copy of its unit. `flops` are those of the forward pass over all tokens of one sequence,
    `activation_bytes` what training keeps of them for the backward pass."""

    path: str
    copies: int
    parameters: int
    state_bytes: int
    flops: float
    activation_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """A unit and all that it calls, for sequences of `tokens` tokens, batch 1, float32.

    `uncounted` names work that has no count: rules that are applied as they stand, for example.
    """

    tokens: int
    memories: tuple[MemoryCost, ...]
    uncounted: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Operations of the forward pass over one sequence."""
        return sum(m.flops * m.copies for m in self.memories)

    @property
    def parameters(self) -> int:
        """Numbers that the level below learns."""
        return sum(m.parameters * m.copies for m in self.memories)

    @property
    def activation_bytes(self) -> float:
        """Bytes that a compiled step of training keeps from the forward to the backward pass, for one sequence."""
        return sum(m.activation_bytes * m.copies for m in self.memories)

    @property
    def state_bytes(self) -> int:
        """Bytes that one sequence carries from call to call."""
        return sum(m.state_bytes * m.copies for m in self.memories)


def cost(unit: c.Unit, tokens: int, passes: Passes = ALL) -> Cost:
    """Count a unit and all that it calls over `tokens` tokens. Raises `ProgramError` if it has no compiled form."""
    memories: list[MemoryCost] = []
    uncounted: list[str] = []
    _gather((unit, passes), "", 1, boundaries(unit, tokens), memories, uncounted)
    latest = open_bytes(unit, tokens, passes)
    if latest:
        memories.append(MemoryCost(CHUNK, 1, 0, latest, 0.0))
    if learns_end_to_end(unit):
        gradients, left = gradient_flops(unit, tokens, passes)
        memories = [replace(m, flops=m.flops + gradients.get(m.path, 0.0) / m.copies) for m in memories]
        uncounted += [*left, TRAINING]
    return Cost(tokens, tuple(memories), tuple(dict.fromkeys(uncounted)))


def _gather(
    asked: tuple[c.Unit, Passes],
    path: str,
    copies: int,
    cuts: list[int],
    memories: list[MemoryCost],
    uncounted: list[str],
) -> None:
    (unit, passes), tokens = asked, cuts[-1]
    planned = plan(unit, passes)
    flops, kept = _Count(planned, cuts), dict(activations(planned, tokens))
    for memory in planned.unit.memories:
        own = flops.by_memory.pop(memory.name, 0.0)
        state = memory_bytes(planned, memory, tokens)
        bytes_ = kept.pop(memory.name, 0.0)
        memories.append(MemoryCost(path + memory.name, copies, _parameters(memory), state, own, bytes_))
    values = values_bytes(planned)
    for name in dict.fromkeys([*flops.by_memory, *kept, *([""] if values else [])]):
        work, left = flops.by_memory.get(name, 0.0), kept.get(name, 0.0)
        state = 0 if name else values
        if work or left or state:
            memories.append(MemoryCost(path + (name or VALUES), copies, 0, state, work, left))
    uncounted += [path + name for name in flops.uncounted]
    for step in planned.unit.children:
        if isinstance(step, c.Call):
            _gather((step.unit, passes), f"{path}{step.name}.", copies, cuts, memories, uncounted)
        else:
            _gather((step.body, passes), f"{path}{step.name}.*.", copies * int(step.count), cuts, memories, uncounted)


def _parameters(memory: c.Memory) -> int:
    learned = memory.initial.kind == "learned" or (memory.initial.kind == "zeros" and not memory.fast)
    return sum(prod(map(int, shape)) for shape in memory.structure.tensors().values()) if learned else 0


class _Count:
    """Operations of one unit, by memory; shared triangles under a name of their own.

    It runs piece by piece, each of which ends at one of `cuts`, the last one at the end.
    """

    def __init__(self, planned: UnitPlan, cuts: list[int]) -> None:
        self.plan, self.cuts, self.tokens = planned, cuts, cuts[-1]
        self.by_memory: dict[str, float] = defaultdict(float)
        self.uncounted: list[str] = []
        self.heads: Mapping[str, int] = {m.name: memory_heads(m) for m in planned.unit.memories}
        for node in nodes(planned):
            self.count(node)

    def chunks(self, node: Node) -> list[int]:
        """Lengths of the pieces over which a node runs."""
        blocks, piece = self.blocks(node), piece_of(node)
        return blocks if piece is None else [min(piece, n - at) for n in blocks for at in range(0, n, piece)]

    def blocks(self, node: Node) -> list[int]:
        """The same of the blocks between boundaries."""
        marks = {0, *self.cuts, *accumulate(self.plan.blocks(node, self.tokens))}
        return [b - a for a, b in pairwise(sorted(marks))]

    def count(self, node: Node) -> None:
        """Add one node."""
        if node.op in ("linear", "linear_t"):
            weight = undetached(node.args[1])
            memory = str(weight.attr("memory"))
            heads = self.heads[memory] if weight.layout == "state" else 1
            self.by_memory[memory] += 2.0 * self.rows(node) * heads * prod(weight.shape)
        elif node.op == "attention":
            query, _, value = node.args
            heads = int(self.plan.unit.memory(str(node.attr("memory"))).structure.heads or 1)
            pairs = sum((end - at) * (attended(node, at) + end - at) for at, end in pairwise([0, *self.cuts]))
            each = 2.0 * pairs * (query.shape[-1] + value.shape[-1])
            self.by_memory[str(node.attr("memory"))] += heads * each
        elif node.op == "triangle":
            self.by_memory["triangle"] += self.triangle(node)
        elif node.op in ("rank_one", "momentum", "summed", "generic"):
            self.by_memory[str(node.attr("memory"))] += self.fold(node)
        elif node.op in ("fold_read", "fold_read_t"):
            self.read(node)

    def rows(self, node: Node) -> int:
        """How many rows a read has: all tokens, or one a piece where nothing varies with them."""
        return self.tokens if node.layout in ("flat", "heads") else len(self.cuts)

    def triangle(self, node: Node) -> float:
        """Gram matrix and inverse. A triangle belongs to as many heads as its key."""
        key = node.args[0]
        heads = self.key_heads(node)
        return sum(heads * (2.0 * n * n * key.shape[-1] + inverse_flops(n)) for n in self.chunks(node))

    def key_heads(self, triangle: Node) -> int:
        users = [n for n in nodes(self.plan) if triangle in n.args and n.attr("memory") is not None]
        return max(self.heads[str(n.attr("memory"))] for n in users)

    def fold(self, node: Node) -> float:
        """One fold over all chunks."""
        memory, (out, into) = str(node.attr("memory")), node.shape
        pairs = int(str(node.attr("pairs")))
        heads = self.heads[memory]
        if node.op in ("summed", "generic"):
            self.uncounted.append(f"{memory}: its rule as it stands")
            return heads * 2.0 * self.tokens * pairs * out * into
        total = 0.0
        erases = len(node.args) > (3 if node.op == "rank_one" else 4) + 2 * pairs
        if node.op == "rank_one" and erases and self.known(node):
            # What the chunk's first state gives at the keys is known; later pieces start from states of their own.
            known = sum(min(n, piece_of(node) or n) for n in self.blocks(node))
            total -= 2.0 * known * out * into
        for n in self.chunks(node):
            if node.op == "rank_one":
                written = max(pairs, 1) if erases else pairs
                total += 2.0 * n * out * into * written
                if erases:
                    total += 2.0 * n * n * out + 2.0 * n * out * into
            else:
                total += 2.0 * n**3 + 2.0 * n * n + 4.0 * n * out * into * pairs
                if erases:
                    total += 4.0 * n * out * into + 2.0 * n * n * (into + out) * (pairs + 1) + inverse_flops(n)
                    erase, fade = (not _is_zero(gate) for gate in node.args[-3:-1])
                    total += 2.0 * n * out * into * (2 * erase + fade)
        return heads * total

    def known(self, node: Node) -> bool:
        """Whether the layer's output at its key is computed anyway."""
        key = node.args[-2]
        made = self.plan.lowered.builder.linear(key, node.args[0])
        return not node.attr("exact") and made.id in {n.id for n in nodes(self.plan)}

    def read(self, node: Node) -> None:
        """A read of the state after every token."""
        fold = node.args[0].args[0]
        memory, (out, into) = str(fold.attr("memory")), fold.shape
        heads, pairs = self.heads[memory], max(int(str(fold.attr("pairs"))), 1)
        if fold.op in ("summed", "generic"):
            self.by_memory[memory] += heads * 2.0 * self.tokens * out * into
            return
        for n in self.chunks(fold):
            states = 2 if fold.op == "momentum" else 1
            self.by_memory[memory] += heads * (2.0 * n * out * into * states + 2.0 * n * n * (into + out) * pairs)


def _is_zero(gate: Node) -> bool:
    return gate.op == "number" and gate.value == 0


def inverse_flops(rows: int) -> float:
    """Operations of the blocked inverse of a unit lower triangular matrix, as the runtime does it."""
    block = min(rows, TRIANGLE_BLOCK)
    products, reach = 0, 2
    while reach < block:
        products, reach = products + 2, 2 * reach
    size = block
    while size < rows:
        size *= 2
    total = (size // block) * products * 2.0 * block**3
    width = block
    while width < size:
        total += (size // (2 * width)) * 2 * 2.0 * width**3
        width *= 2
    return total
