"""Operations of the inner gradient of models that learn by their own loss: `minimize task` on the token clock.

Each chunk that closes is differentiated with respect to the states at its start. Only what lies between such a state
and the loss has a gradient: an operand that depends on no moving state costs nothing.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import field
from itertools import pairwise
from math import prod

from nsam.compiler.cost_states import attended, boundaries, closes
from nsam.compiler.end_to_end import EndToEnd, predicts_its_input
from nsam.compiler.expressions import Node, postorder, undetached
from nsam.compiler.lower import memory_heads
from nsam.compiler.passes import Passes
from nsam.compiler.schedule import UnitPlan, plan
from nsam.dsl import checked as c
from nsam.dsl.records import dataclass

FOLDS = frozenset({"rank_one", "momentum", "summed", "generic"})
PRODUCTS = frozenset({"matmul", "orthogonalize"})


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens between two boundaries and how often their graph is differentiated."""

    start: int
    length: int
    times: int


def chunks(unit: c.Unit, tokens: int) -> list[Chunk]:
    """The chunks of one call. The loss of a chunk's last token, where its target is known, is differentiated apart."""
    found = []
    for start, end in pairwise([0, *boundaries(unit, tokens)]):
        owed = end == tokens and predicts_its_input(unit)
        found.append(Chunk(start, end - start, (1 if owed else 2) if closes(unit, end) else 0))
    return found


def gradient_flops(unit: c.Unit, tokens: int, passes: Passes) -> tuple[dict[str, float], list[str]]:
    """Operations by memory over all copies, paths as in a `Cost`, and what is not counted."""
    counted = _Gradient(chunks(unit, tokens), passes)
    _, flops = counted.unit(unit, frozenset(), "")
    return flops, list(counted.uncounted)


@dataclass()
class _Gradient:
    chunks: list[Chunk]
    passes: Passes
    uncounted: dict[str, None] = field(default_factory=dict)
    plans: dict[int, UnitPlan] = field(default_factory=dict)

    def unit(self, unit: c.Unit, given: frozenset[str], path: str) -> tuple[frozenset[str], dict[str, float]]:
        """One copy of a unit, `given` those of its inputs that depend on a moving state: outputs that do, operations.

        What another memory folds in a chunk of several of its own may carry the dependence on to the next ones.
        """
        if id(unit) not in self.plans:
            self.plans[id(unit)] = plan(unit, self.passes)
        planned = self.plans[id(unit)]
        moving = {each.memory.name for each in planned.lowered.end_to_end}
        while True:
            found = _Dependence(self, planned, given, frozenset(moving), path)
            carried = {name for name in self.shorter(planned) if any(found.of[f.id] for f in _folds(planned, name))}
            if carried <= moving:
                break
            moving |= carried
        flops = found.flops
        for node in self.live(planned):
            if found.of[node.id]:
                self.count(planned, node, found.of, path, flops)
        for each in planned.lowered.end_to_end:
            if _multiplies(each):
                self.uncounted[f"{path}{each.memory.name}: matrix products of its rule"] = None
        return frozenset(name for name, node in planned.lowered.outputs if found.of[node.id]), flops

    def shorter(self, planned: UnitPlan) -> list[str]:
        """Memories that move within a chunk."""
        longest = max(chunk.length for chunk in self.chunks)
        return [fast.memory.name for fast in planned.lowered.fast if fast.block < longest]

    def live(self, planned: UnitPlan) -> list[Node]:
        """What the output is made of within a chunk, up to where a direct transfer stops the gradient."""
        shorter, seen = set(self.shorter(planned)), dict[int, Node]()
        waiting = [node for _, node in planned.lowered.outputs]
        while waiting:
            node = waiting.pop()
            if node.id in seen or node.op == "detach":
                continue
            seen[node.id] = node
            waiting += node.args
            if node.op == "state" and node.attr("memory") in shorter:
                waiting += _folds(planned, str(node.attr("memory")))
        return list(seen.values())

    def count(
        self, planned: UnitPlan, node: Node, depends: dict[int, bool], path: str, flops: dict[str, float]
    ) -> None:
        """Add the backward pass of one node."""
        if node.op in ("linear", "linear_t"):
            x, weight = node.args
            memory = str(undetached(weight).attr("memory"))
            heads = memory_heads(planned.unit.memory(memory)) if weight.layout == "state" else 1
            varies = node.layout in ("flat", "heads")
            rows = sum(chunk.times * (chunk.length if varies else 1) for chunk in self.chunks)
            each = 2.0 * rows * heads * prod(weight.shape)
            flops[path + memory] += each * (depends[x.id] + depends[weight.id])
        elif node.op == "attention":
            self.attention(planned, node, depends, path, flops)
        elif node.op in FOLDS:
            what = "the gradient of the model's own loss through its updates"
            self.uncounted[f"{path}{node.attr('memory')}: {what}"] = None

    def attention(
        self, planned: UnitPlan, node: Node, depends: dict[int, bool], path: str, flops: dict[str, float]
    ) -> None:
        """Products with the gradients of the output and of the scores."""
        memory = str(node.attr("memory"))
        query, key, value = (depends[a.id] for a in node.args)
        pairs = sum(ch.times * ch.length * (attended(node, ch.start) + ch.length) for ch in self.chunks)
        score = node.args[0].shape[-1] * (query + key)
        output = node.args[2].shape[-1] * ((query or key) + value)
        heads = int(planned.unit.memory(memory).structure.heads or 1)
        flops[path + memory] += 2.0 * heads * pairs * (score + output)


class _Dependence:
    """Which nodes of a unit depend on the states that move: `of`, by id. `flops` are those of what it calls."""

    def __init__(
        self, counted: _Gradient, planned: UnitPlan, given: frozenset[str], moving: frozenset[str], path: str
    ) -> None:
        self.counted, self.planned, self.path = counted, planned, path
        self.flops: dict[str, float] = defaultdict(float)
        self.of: dict[int, bool] = {}
        self.outputs: dict[int, frozenset[str]] = {}
        lowered = planned.lowered
        folds = [f.node for fast in lowered.fast for f in fast.folds]
        for node in postorder([*(n for _, n in lowered.outputs), *folds, *lowered.events]):
            if node.op == "input":
                self.of[node.id] = node.attr("name") in given
            elif node.op == "state":
                self.of[node.id] = node.attr("memory") in moving
            elif node.op == "child":
                self.outputs[node.id] = self.child(node)
                self.of[node.id] = False
            elif node.op == "output":
                self.of[node.id] = node.attr("name") in self.outputs[node.args[0].id]
            else:
                self.of[node.id] = node.op != "detach" and any(self.of[a.id] for a in node.args)

    def child(self, node: Node) -> frozenset[str]:
        """Run a call or the passes of a repeat: the outputs that depend on a moving state."""
        step = next(s for s in self.planned.unit.children if s.name == node.attr("name"))
        inside, path = (step.unit, "") if isinstance(step, c.Call) else (step.body, "*.")
        given = frozenset(i.name for i, a in zip(inside.inputs, node.args, strict=True) if self.of[a.id])
        captured = given if isinstance(step, c.Call) else given - {name for name, _ in step.carried}
        for _ in range(1 if isinstance(step, c.Call) else int(step.count)):
            outputs, flops = self.counted.unit(inside, given, f"{self.path}{step.name}.{path}")
            given = captured | outputs
            for where, count in flops.items():
                self.flops[where] += count
        return outputs


def _folds(planned: UnitPlan, memory: str) -> list[Node]:
    return [f.node for f in planned.fast(memory).folds]


def _multiplies(each: EndToEnd) -> bool:
    """Whether a rule has matrix products, in its steps or in its arguments."""
    waiting: list[c.Expr] = [assign.value for assign in each.plan.body]
    while waiting:
        expression = waiting.pop()
        if isinstance(expression, c.Apply):
            if expression.function in PRODUCTS:
                return True
            waiting += expression.arguments
    return any(node.op in ("linear", "linear_t") for node in postorder([n for _, n in each.arguments]))
