"""How a memory moves: inner gradients at the last boundary's state, a rule that folds over the period, boundaries.

The same code serves memories of tokens (in a unit) and memories of gradients (in a rule).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from nsam.backends.reference import rules
from nsam.backends.reference.arrays import Array, Arrays
from nsam.backends.reference.functions import split
from nsam.backends.reference.scope import InternalError, Scope, unsupported
from nsam.backends.reference.structures import Head, Tensors, Trace, read_head, read_head_transposed
from nsam.dsl.checked import Constant, Expr, Memory, Objective, Read, Ref, RuleMemory, RuleUse, Structure
from nsam.dsl.spans import Span

Record: TypeAlias = dict[str, Any]
"""A memory's state: `boundary` and `running` (see `structures.Tensors`), `count` of tokens since the reset, `sums` of
gradients since the boundary (summed memories), `window` of stored (key, value) pairs, `rules` by head and tensor,
`waited` and `surprise`: tokens since the last update, and the objective added up over them (adaptive periods)."""


@dataclass(frozen=True)
class Learner:
    """What a memory of tokens and a memory of gradients have in common."""

    structure: Structure
    objective: Objective
    valueless: bool
    rule: RuleUse
    period: float
    summed: bool
    window: int | None
    span: Span
    slowest: float | None = None
    threshold: float = 0.0
    first_order: bool = False
    parameters: Mapping[str, Array] = field(default_factory=dict)
    """What a rule's parameters are, which the objective of a memory of gradients may name."""

    @staticmethod
    def of_memory(memory: Memory, first_order: bool = False) -> Learner:
        """Return the learner in a memory of tokens; `first_order` holds the state constant in its gradients."""
        context, objective, rule, frequency = memory.context, memory.objective, memory.rule, memory.frequency
        if context is None or objective is None or rule is None or frequency is None:
            raise InternalError(f"{memory.name} moves without context, objective, rule or frequency")
        window = None if context.window is None else int(context.window)
        period = float(frequency.period)
        slowest = None if frequency.slowest is None else float(frequency.slowest)
        threshold = 0.0 if frequency.threshold is None else float(frequency.threshold)
        return Learner(
            memory.structure, objective, context.key is None, rule, period, frequency.summed, window, memory.span,
            slowest, threshold, first_order,
        )  # fmt: skip

    @staticmethod
    def of_rule_memory(memory: RuleMemory, parameters: Mapping[str, Array]) -> Learner:
        """Return the learner in a memory of gradients, of a rule with these arguments."""
        context = memory.context
        window = None if context.window is None else int(context.window)
        return Learner(
            memory.structure,
            memory.objective,
            context.key is None,
            memory.rule,
            float(memory.period),
            memory.summed,
            window,
            memory.span,
            parameters=parameters,
        )

    @property
    def expression(self) -> Expr:
        """The scalar to minimise."""
        if self.objective.expression is None:
            raise unsupported(f"`minimize {self.objective.name}` on this clock", self.objective.span)
        return self.objective.expression


@dataclass
class Slope:
    """The inner gradient of one tensor, and for each token in it that tensor's input and its output's gradient."""

    grad: Array
    keys: list[Array]
    errors: list[Array]


def new_record(learner: Learner, tensors: Tensors) -> Record:
    """Return the state of a memory that starts from `tensors`."""
    return {
        "boundary": tensors,
        "running": tensors,
        "count": 0,
        "sums": None,
        "window": [],
        "rules": [{name: rules.new_rule_record() for name in head} for head in tensors],
        "waited": 0,
        "surprise": 0.0,
    }


def advance(
    ops: Arrays,
    learner: Learner,
    record: Record,
    key: Array | None,
    value: Array,
    arguments: list[dict[str, Array]],
) -> Record:
    """Return the state after one more token (or update) with this context and, for each head, these rule arguments.

    Every gradient and every layer's input is taken at `record["boundary"]` (eq. 90); what moves is the running
    state, which becomes the boundary where the period closes. A summed memory moves only there, by the plain sum
    of the period's gradients (eq. 71). An adaptive memory may leave its boundary state as it is and fold on.
    """
    window = [*record["window"], (key, value)][-(learner.window or 1) :]
    at: Tensors = record["boundary"]
    if learner.first_order:
        at = [{name: ops.detach(tensor) for name, tensor in head.items()} for head in at]
    slopes = inner_gradient(ops, learner, at, window)
    after = record | {"count": record["count"] + 1, "window": window if learner.window else []}
    closing = after["count"] % learner.period == 0
    if learner.slowest is not None:
        after |= _wait(ops, learner, record, key, value)
        closing = closing and _due(learner, after)
    if learner.summed:
        after["sums"] = sums = _accumulate(ops, record["sums"], slopes)
        if closing:
            total = [{name: Slope(grad, [], []) for name, grad in head.items()} for head in sums]
            _move(ops, learner, after, total, arguments)
            after["sums"] = None
    else:
        _move(ops, learner, after, slopes, arguments)
    if closing:
        after |= {"boundary": after["running"], "waited": 0, "surprise": 0.0}
    return after


def _wait(ops: Arrays, learner: Learner, record: Record, key: Array | None, value: Array) -> Record:
    """Return the counters of an adaptive memory after one more token: how long it waited, its surprise added up."""
    with_heads = zip(record["boundary"], _per_head(ops, learner, key, value), strict=True)
    losses = [
        float(ops.detach(_ObjectiveScope(ops, learner, head, *context).value(learner.expression)))
        for head, context in with_heads
    ]
    surprise = sum(losses) / len(losses)
    return {"waited": record["waited"] + 1, "surprise": record["surprise"] + surprise}


def _due(learner: Learner, after: Record) -> bool:
    """Whether an adaptive memory moves at this multiple of its shortest period."""
    assert learner.slowest is not None
    late: bool = after["waited"] >= learner.slowest
    return late or bool(after["surprise"] / after["waited"] > learner.threshold)


def _accumulate(ops: Arrays, sums: list[Head] | None, slopes: list[dict[str, Slope]]) -> list[Head]:
    if sums is None:
        return [{name: slope.grad for name, slope in head.items()} for head in slopes]
    return [
        {name: ops.add(total[name], slope.grad) for name, slope in head.items()}
        for total, head in zip(sums, slopes, strict=True)
    ]


def _move(
    ops: Arrays,
    learner: Learner,
    after: Record,
    slopes: list[dict[str, Slope]],
    arguments: list[dict[str, Array]],
) -> None:
    """Apply the rule once to the running state of every tensor of every head; writes into the new record `after`."""
    running, records = [], []
    for head, head_slopes, head_rules, head_arguments in zip(
        after["running"], slopes, after["rules"], arguments, strict=True
    ):
        moved: Head = {}
        remembered: dict[str, rules.RuleRecord] = {}
        for name, tensor in head.items():
            host = _host(ops, learner, name, tensor, head_slopes[name])
            moved[name], remembered[name] = rules.apply_rule(ops, learner.rule, head_arguments, host, head_rules[name])
        running.append(moved)
        records.append(remembered)
    after["running"], after["rules"] = running, records


def _host(ops: Arrays, learner: Learner, name: str, tensor: Array, slope: Slope) -> rules.Host:
    if learner.summed or not learner.rule.rule.needs & {"key", "err"}:
        return rules.Host(tensor, slope.grad)
    if learner.window is None:
        return rules.Host(tensor, slope.grad, slope.keys[0], slope.errors[0])
    if not ops.shape(slope.keys[0]):
        raise unsupported("a rule with `key` on a bias whose context is a window", learner.span)
    return rules.Host(tensor, slope.grad, ops.stack(slope.keys), ops.stack(slope.errors))


# --- the inner gradient --------------------------------------------------------------------------


def inner_gradient(
    ops: Arrays, learner: Learner, tensors: Tensors, context: list[tuple[Array | None, Array]]
) -> list[dict[str, Slope]]:
    """Differentiate Σ over `context` of the objective at `tensors`, head by head; keys and values are constants.

    The heads' losses are added up before differentiating: none depends on another head's tensors.
    """
    names = [(head, name) for head, found in enumerate(tensors) for name in found]
    traces: list[list[Trace]] = []

    def loss(variables: list[Array]) -> tuple[Array, list[Array], list[Array]]:
        state: Tensors = [{} for _ in tensors]
        for (head, name), variable in zip(names, variables, strict=True):
            state[head][name] = variable
        total = ops.array(0.0)
        for key, value in context:
            traces.append([])
            for head, (head_key, head_value) in enumerate(_per_head(ops, learner, key, value)):
                scope = _ObjectiveScope(ops, learner, state[head], head_key, head_value)
                total = ops.add(total, scope.value(learner.expression))
                traces[-1].append(scope.trace)
        read = [trace for token in traces for trace in token]
        return total, [y for trace in read for y in trace.outputs.values()], [x for t in read for x in t.keys.values()]

    gradients, errors, inputs = ops.derivatives(loss, [tensors[head][name] for head, name in names])
    error, layer_input = iter(errors), iter(inputs)
    error_of = [[{name: next(error) for name in trace.outputs} for trace in token] for token in traces]
    key_of = [[{name: next(layer_input) for name in trace.keys} for trace in token] for token in traces]
    slopes: list[dict[str, Slope]] = [{} for _ in tensors]
    for (head, name), grad in zip(names, gradients, strict=True):
        if learner.valueless:
            slopes[head][name] = Slope(grad, [ops.array(1.0)], [grad])
            continue
        keys = [token[head][name] for token in key_of if name in token[head]]
        slopes[head][name] = Slope(grad, keys, [token[head][name] for token in error_of if name in token[head]])
        if learner.rule.rule.needs & {"key", "err"} and not keys:
            raise unsupported("a rule with `key` on an objective without self(key)", learner.objective.span)
    return slopes


def _per_head(ops: Arrays, learner: Learner, key: Array | None, value: Array) -> list[tuple[Array | None, Array]]:
    """Return each head's slices of the context."""
    heads = learner.structure.heads
    if heads is None:
        return [(key, value)]
    count = int(heads)
    keys = [None] * count if key is None else split(ops, key, count)
    return list(zip(keys, split(ops, value, count), strict=True))


class _ObjectiveScope(Scope):
    """One head's objective at one token."""

    def __init__(self, ops: Arrays, learner: Learner, head: Head, key: Array | None, value: Array) -> None:
        self.ops = ops
        self.learner = learner
        self.head = head
        self.names = dict(learner.parameters) | ({} if key is None else {"key": key}) | {"value": value}
        self.trace = Trace()
        self.answer: Array | None = None

    def ref(self, name: str) -> Array:
        if name not in self.names:
            raise InternalError(f"an objective mentions {name}")
        return self.names[name]

    def read(self, expr: Read) -> Array:
        if expr.memory != "self":
            raise InternalError(f"an objective reads {expr.memory}")
        if self.learner.valueless and isinstance(expr.argument, Constant) and expr.argument.value == 1:
            return self.head["weight"]
        x = self.value(expr.argument)
        if expr.transposed:
            return read_head_transposed(self.ops, self.head, x)
        # What rules call key and err is about self(key), should the objective read the memory in several places.
        if not (isinstance(expr.argument, Ref) and expr.argument.name == "key"):
            return read_head(self.ops, self.learner.structure, self.head, x, None)
        # Read once, so that its error is what every place that mentions it brings.
        if self.answer is None:
            self.answer = read_head(self.ops, self.learner.structure, self.head, x, self.trace)
        return self.answer
