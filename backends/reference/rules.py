"""One application of a learning rule to one tensor: statements in order, nested memories of gradients included."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from nsam.backends.reference import functions, learning
from nsam.backends.reference.arrays import Array, Arrays
from nsam.backends.reference.scope import InternalError, Scope
from nsam.backends.reference.structures import Tensors, read_head, read_head_transposed
from nsam.dsl.checked import Apply, Constant, Read, RuleLet, RuleMemory, RuleState, RuleUpdate, RuleUse
from nsam.dsl.fills import is_fill
from nsam.dsl.sizes import Size, evaluate
from nsam.dsl.types import COLUMNS, ROWS

RuleRecord: TypeAlias = dict[str, Any]
"""What a rule remembers between updates: `count`, `states` by name, `memories` by name (see `learning.Record`)."""


@dataclass(frozen=True)
class Host:
    """The tensor a rule moves and what it may know: `key` and `err` are None on a context of gradients."""

    self_: Array
    grad: Array
    key: Array | None = None
    err: Array | None = None


def new_rule_record() -> RuleRecord:
    """Return what a rule remembers before its first update."""
    return {"count": 0, "states": {}, "memories": {}}


def apply_rule(
    ops: Arrays, use: RuleUse, arguments: dict[str, Array], host: Host, record: RuleRecord
) -> tuple[Array, RuleRecord]:
    """Apply a rule once; returns the host's new tensor and the rule's new record (the old one is left as it was)."""
    shape = ops.shape(host.self_)
    if len(shape) < 2:
        host = _matrix(ops, host, column="key" in use.rule.needs)
    scope = _RuleScope(ops, dict(arguments), host, record)
    for statement in use.rule.statements:
        if isinstance(statement, RuleState):
            scope.declare(statement)
        elif isinstance(statement, RuleMemory):
            scope.learn(statement)
        elif isinstance(statement, RuleLet):
            scope.names[statement.name] = scope.value(statement.value)
        elif isinstance(statement, RuleUpdate):
            scope.update(statement)
    return ops.reshape(scope.names["self"], shape), scope.record()


def _matrix(ops: Arrays, host: Host, column: bool) -> Host:
    """Return a vector as the matrix that rules see: 1 × n, or with a key (which is 1) the n × 1 that reads it."""
    size = math.prod(ops.shape(host.self_))
    shape = (size, 1) if column else (1, size)
    key = None if host.key is None else ops.reshape(host.key, (1,))
    err = None if host.err is None else ops.reshape(host.err, (size,))
    return Host(ops.reshape(host.self_, shape), ops.reshape(host.grad, shape), key, err)


class _RuleScope(Scope):
    def __init__(self, ops: Arrays, names: dict[str, Array], host: Host, record: RuleRecord) -> None:
        self.ops = ops
        self.host = host
        self.axes = ops.shape(host.self_)
        self.before = record
        self.arguments = dict(names)
        self.names = names
        names |= {"self": host.self_, "grad": host.grad}
        if host.key is not None:
            names["key"] = host.key
        if host.err is not None:
            names["err"] = host.err
        self.states: list[str] = []
        self.memories: dict[str, learning.Record] = {}
        self.visible: dict[str, tuple[RuleMemory, Tensors]] = {}
        self.declared: tuple[RuleMemory, Tensors] | None = None

    def ref(self, name: str) -> Array:
        if name == "self" and self.declared is not None:
            return self.declared[1][0]["weight"]
        if name in self.names:
            return self.names[name]
        raise InternalError(f"{name} has no value in this rule")

    def read(self, expr: Read) -> Array:
        if expr.memory == "self":
            if self.declared is None:
                raise InternalError("self(…) outside of a memory of this rule")
            memory, tensors = self.declared
        else:
            memory, tensors = self.visible[expr.memory]
        if isinstance(expr.argument, Constant) and expr.argument.value == 1:
            return tensors[0]["weight"]
        x = self.value(expr.argument)
        if expr.transposed:
            return read_head_transposed(self.ops, tensors[0], x)
        return read_head(self.ops, memory.structure, tensors[0], x)

    def state(self, memory: str) -> Array:
        if memory in self.visible:
            return self.visible[memory][1][0]["weight"]
        return self.ref(memory)

    def clock(self, function: str) -> int:
        return int(self.before["count"]) + 1

    def declare(self, statement: RuleState) -> None:
        """Bring a state into scope: as the last update left it, or its initial value in the host's shape."""
        self.states.append(statement.name)
        if statement.name in self.before["states"]:
            self.names[statement.name] = self.before["states"][statement.name]
        else:
            self.names[statement.name] = self.fit(self.value(statement.initial))

    def update(self, statement: RuleUpdate) -> None:
        """Carry out `target <- value`."""
        self.names[statement.target] = self.fit(self.value(statement.value))

    def fit(self, value: Array) -> Array:
        """Return a value in the host's shape, numbers filled in."""
        return self.ops.add(value, self.ops.zeros(self.ops.shape(self.host.self_)))

    def learn(self, memory: RuleMemory) -> None:
        """Show the nested memory this update's context and let it move."""
        ops = self.ops
        learner = learning.Learner.of_rule_memory(memory, self.arguments)
        record = self.before["memories"].get(memory.name)
        if record is None:
            shapes = memory.structure.tensors() or {"weight": ops.shape(self.host.self_)}
            record = learning.new_record(learner, [{name: self.first(memory, s) for name, s in shapes.items()}])
        self.declared = (memory, record["boundary"])
        key = None if memory.context.key is None else self.value(memory.context.key)
        value = self.value(memory.context.value)
        arguments = {name: self.value(expr) for name, expr in memory.rule.arguments}
        self.declared = None
        after = learning.advance(ops, learner, record, key, value, [arguments])
        self.memories[memory.name] = after
        shown = after["running"] if memory.reads == "running" else record["boundary"]
        self.visible[memory.name] = (memory, shown)

    def first(self, memory: RuleMemory, shape: tuple[Size, ...]) -> Array:
        """Return what a tensor of a nested memory starts from; sizes may be said in rows and columns of the host."""
        zeros = self.ops.zeros(self.sizes(shape))
        if memory.initial is None:
            return zeros
        outside = self.axes
        self.axes = self.ops.shape(zeros)  # the fills of `init` are as large as the tensor that starts
        value = self.value(memory.initial)
        self.axes = outside
        return self.ops.add(value, zeros)

    def sizes(self, shape: tuple[Size, ...]) -> tuple[int, ...]:
        """Return a shape that may be said in rows and columns of the host."""
        rows, columns = self.axes
        known = dict.fromkeys(ROWS.names, rows) | dict.fromkeys(COLUMNS.names, columns)
        return tuple(evaluate(size, known) for size in shape)

    def apply(self, expr: Apply) -> Array:
        """Apply a function; `zeros`, `ones` and `identity` have the shapes of their types."""
        if is_fill(expr):
            return functions.fill(self.ops, expr.function, self.sizes(expr.type.shape))
        return super().apply(expr)

    def record(self) -> RuleRecord:
        """Return what the rule remembers after this update."""
        return {
            "count": self.before["count"] + 1,
            "states": {name: self.names[name] for name in self.states},
            "memories": self.memories,
        }
