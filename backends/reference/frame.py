"""One unit at one token: names are evaluated when they are asked for, and each memory moves once.

State of a unit between tokens (`UnitRecord`, plain nested dicts):

    position    number of tokens seen in this sequence
    memories    memory -> its record (`learning.Record`), or kept keys and values for attention; each with `reset`
    histories   read of a convolution -> its last inputs
    children    call -> UnitRecord, repeat -> list of UnitRecord
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from nsam.backends.reference import learning
from nsam.backends.reference.arrays import Array, Arrays
from nsam.backends.reference.scope import InternalError, Scope
from nsam.backends.reference.structures import (
    Tensors,
    attend,
    convolve,
    from_vector,
    heads_of,
    read,
    read_transposed,
    row,
    to_heads,
)
from nsam.backends.reference.weights import Weights, is_stateful
from nsam.dsl.checked import Call, Expr, Memory, Output, Read, Repeat, Unit

UnitRecord: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class View:
    """From where an expression is evaluated.

    `owner` is the memory that `self` means, `cut` the names whose gradient stops here, and `resting` says that reads
    show states between tokens: an initial state must not wait for the update of a memory that starts with it.
    """

    owner: str | None = None
    cut: frozenset[str] = frozenset()
    resting: bool = False


@dataclass
class Memo:
    """What was already evaluated at this token."""

    values: dict[tuple[str, View], Array] = field(default_factory=dict)
    reads: dict[str, Array] = field(default_factory=dict)
    children: dict[str, dict[str, Array]] = field(default_factory=dict)
    starts: dict[str, Tensors] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)


class Frame:
    """Evaluates one unit at one token, from the state before it to the state after it."""

    def __init__(
        self,
        ops: Arrays,
        unit: Unit,
        weights: Weights,
        before: UnitRecord,
        inputs: Sequence[Array],
        parent: Frame | None = None,
    ) -> None:
        self.ops, self.unit, self.weights, self.parent = ops, unit, weights, parent
        # Memories that start with this token are filled in: the caller's record must stay as it is.
        self.before: UnitRecord = before | {"memories": dict(before.get("memories", {}))}
        self.inputs = {given.name: value for given, value in zip(unit.inputs, inputs, strict=True)}
        self.position: int = before.get("position", 0)
        self.bindings = {binding.name: binding.value for binding in unit.bindings}
        self.kids = {child.name: child for child in unit.children}
        self.memories = {memory.name: memory for memory in unit.memories}
        self.memo = Memo()
        self.records: dict[str, Any] = {}  # of memories, after this token's update
        self.histories: dict[str, list[Array]] = {}
        self.frames: dict[str, list[Frame]] = {}  # of children
        self.done = False
        self._slow: dict[str, Tensors] = {}

    # --- a token -------------------------------------------------------------------------------

    def run(self) -> dict[str, Array]:
        """Return the unit's outputs by name, after moving every memory that this token moves."""
        outputs = {name: self.evaluate(expr) for name, expr in self.unit.outputs}
        for child in self.kids:
            self.child_outputs(child)
        for memory in self.unit.memories:
            if is_stateful(memory):
                self.updated(memory)
        return outputs

    def finish(self) -> UnitRecord:
        """Carry out the resets that are due, outer units first, and return the state after the token.

        Called when every memory of the whole program has been updated, so that initial states that are taken from
        other memories see what those have just learnt.
        """
        self.done = True
        self.memo = Memo(children=self.memo.children)
        lasting = {given.name for given in self.unit.inputs if given.type.per != "token"}
        self.inputs = {name: value for name, value in self.inputs.items() if name in lasting}
        due = [m for m in self.unit.memories if is_stateful(m) and self._closes(m)]
        for memory in due:
            del self.records[memory.name]
        for memory in due:
            self.record(memory)
        children: dict[str, Any] = {}
        for name, frames in self.frames.items():
            records = [frame.finish() for frame in frames]
            children[name] = records[0] if isinstance(self.kids[name], Call) else records
        return {
            "position": self.position + 1,
            "memories": self.records,
            "histories": self.before.get("histories", {}) | self.histories,
            "children": children,
        }

    def evaluate(self, expr: Expr, view: View | None = None) -> Array:
        """Return an expression's value at this token."""
        return _UnitScope(self, view or View()).value(expr)

    def busy(self, name: str, compute: Callable[[], Any]) -> Any:
        """Run `compute`, which must not come back to itself."""
        if name in self.memo.busy:
            raise InternalError(f"{name} of {self.unit.name} needs itself at the same token")
        self.memo.busy.add(name)
        try:
            return compute()
        finally:
            self.memo.busy.discard(name)

    def named(self, name: str, view: View) -> Array:
        """Return the value of an input or binding."""
        if name in self.inputs:
            return self.inputs[name]
        if name not in self.bindings:
            raise InternalError(f"{name} has no value in {self.unit.name}")
        at = (name, View(None, view.cut, view.resting))
        if at not in self.memo.values:
            expr = self.bindings[name]
            self.memo.values[at] = self.busy(f"`{name}`", lambda: self.evaluate(expr, at[1]))
        return self.memo.values[at]

    # --- memories ------------------------------------------------------------------------------

    def find(self, name: str) -> tuple[Frame, Memory]:
        """Return the memory that a name means here: a repeat's body also sees those around it."""
        frame: Frame | None = self
        while frame is not None:
            if name in frame.memories:
                return frame, frame.memories[name]
            frame = frame.parent
        raise InternalError(f"there is no memory {name} in {self.unit.name}")

    def record(self, memory: Memory) -> Any:
        """Return a memory's record between tokens (before this one, or after it when done), new where it starts."""
        known = self.records if self.done else self.before["memories"]
        if memory.name not in known:
            known[memory.name] = self.fresh(memory)
        return known[memory.name]

    def fresh(self, memory: Memory) -> Any:
        """Return the record of a memory that starts now."""
        tag = {"reset": memory.reset.kind}
        if memory.structure.kind == "attention":
            return tag | {"keys": [], "values": [], "count": 0}
        # A state is not what it starts from: a parameter may be moved in place while the sequence goes on.
        tensors = [{name: self.ops.copy(x) for name, x in head.items()} for head in self.start(memory)]
        if not memory.fast:
            return tag | {"boundary": tensors, "running": tensors, "count": 0}
        if memory.end_to_end:
            from nsam.backends.reference.end_to_end import new_record

            return tag | new_record(self.ops, tensors)
        return tag | learning.new_record(learning.Learner.of_memory(memory), tensors)

    def start(self, memory: Memory) -> Tensors:
        """Return a memory's initial state: a parameter, zeros, another memory's state, or a generator's output."""
        if memory.name not in self.memo.starts:
            self.memo.starts[memory.name] = self.busy(f"init of {memory.name}", lambda: self._start(memory))
        return self.memo.starts[memory.name]

    def _start(self, memory: Memory) -> Tensors:
        initial, ops = memory.initial, self.ops
        cut = self.cut(memory)
        if initial.kind == "learned":
            return self.weights.of(ops, memory)
        if initial.kind == "zeros":
            shapes = memory.structure.tensors().items()
            return to_heads(ops, memory.structure, {name: ops.zeros(tuple(shape)) for name, shape in shapes})
        if initial.kind == "memory":
            frame, source = self.find(str(initial.memory))
            tensors = frame.visible(source, resting=True)
            if source.name in cut:
                return [{name: ops.detach(t) for name, t in head.items()} for head in tensors]
            return tensors
        if initial.expression is None:
            raise InternalError(f"the initial state of {memory.name} has no expression")
        return from_vector(ops, memory.structure, self.evaluate(initial.expression, View(None, cut, resting=True)))

    def visible(self, memory: Memory, resting: bool) -> Tensors:
        """Return the state that reads of a memory see at this token (or, resting, between tokens)."""
        if not is_stateful(memory):
            if memory.name not in self._slow:
                self._slow[memory.name] = self.weights.of(self.ops, memory)
            return self._slow[memory.name]
        moving = memory.reads == "running" and memory.fast
        record = self.updated(memory) if moving and not resting else self.record(memory)
        if memory.end_to_end and resting:  # what starts from it must not look like a read of it
            held: Tensors = record["held"]
            return held
        state: Tensors = record["running" if moving else "boundary"]
        return state

    def cut(self, memory: Memory) -> frozenset[str]:
        """Return the names whose gradient stops where their values enter this memory's clauses."""
        return frozenset(t.source for t in self.unit.transfers if t.kind == "direct" and t.target == memory.name)

    def updated(self, memory: Memory) -> Any:
        """Return a memory's record after this token (before resets), computing it once."""
        if memory.name not in self.records:
            self.records[memory.name] = self.busy(f"memory {memory.name}", lambda: self._update(memory))
        return self.records[memory.name]

    def _update(self, memory: Memory) -> Any:
        record, context = self.record(memory), memory.context
        if memory.structure.kind == "attention":
            return self._keep(memory, record)
        if not memory.fast:
            return record | {"count": record["count"] + 1}
        if memory.end_to_end:  # moves when the token before it has its loss, see `end_to_end.py`
            return record | {"count": record["count"] + 1}
        if memory.rule is None or context is None:
            raise InternalError(f"{memory.name} moves without a rule or a context")
        view = View(memory.name, self.cut(memory))
        key = None if context.key is None else self.evaluate(context.key, view)
        value = self.evaluate(context.value, view)
        learner = learning.Learner.of_memory(memory, memory.name in view.cut)
        return learning.advance(self.ops, learner, record, key, value, self.arguments(memory))

    def arguments(self, memory: Memory) -> list[dict[str, Array]]:
        """Return the arguments of a memory's rule at this token, for each head."""
        if memory.rule is None:
            raise InternalError(f"{memory.name} has no rule")
        view = View(memory.name, self.cut(memory))
        given = {name: self.evaluate(expr, view) for name, expr in memory.rule.arguments}
        heads = range(heads_of(memory.structure))
        return [{name: self._of_head(a, memory, head) for name, a in given.items()} for head in heads]

    def _of_head(self, argument: Array, memory: Memory, head: int) -> Array:
        """Return one head's number out of a rule's argument: a scalar, or one value a head."""
        size = self.ops.shape(argument)
        if size == ():
            return argument
        if size == (1,):
            return self.ops.take(argument, 0)
        if size == (heads_of(memory.structure),):
            return self.ops.take(argument, head)
        raise InternalError(f"a rule argument of {memory.name} has shape {size}")

    def _keep(self, memory: Memory, record: Any) -> Any:
        """Store this token's key and value in an attention memory, as many as its window shows."""
        context = memory.context
        if context is None or context.key is None:
            raise InternalError(f"attention {memory.name} without keys and values")
        view = View(memory.name, self.cut(memory))
        keys = [*record["keys"], self.evaluate(context.key, view)]
        values = [*record["values"], self.evaluate(context.value, view)]
        window = memory.structure.window
        last = slice(None) if window is None else slice(-int(window), None)
        return record | {"keys": keys[last], "values": values[last], "count": record["count"] + 1}

    def _closes(self, memory: Memory) -> bool:
        period = memory.reset.period
        return memory.reset.kind == "every" and self.records[memory.name]["count"] % int(period or 1) == 0

    # --- reads ---------------------------------------------------------------------------------

    def read(self, expr: Read, view: View) -> Array:
        """Return what a memory answers at this token."""
        if expr.memory == "self":
            if view.owner is None:
                raise InternalError("self(…) outside of a memory's clauses")
            frame, memory = self, self.memories[view.owner]
            state = None if memory.structure.kind == "attention" else self.record(memory)["boundary"]
        else:
            frame, memory = self.find(expr.memory)
            state = None if memory.structure.kind == "attention" else frame.visible(memory, view.resting)
        x = self.evaluate(expr.argument, view)
        result = self._answer(expr, frame, memory, state, x, view)
        return self.ops.detach(result) if memory.name in view.cut else result

    def _answer(self, expr: Read, frame: Frame, memory: Memory, state: Tensors | None, x: Array, view: View) -> Array:
        ops, structure = self.ops, memory.structure
        if state is None:
            kept = frame.updated(memory)
            return attend(ops, structure, x, kept["keys"], kept["values"])
        if expr.transposed:
            if structure.kind == "table":
                return ops.matmul(state[0]["weight"], x)
            return read_transposed(ops, structure, state, x)
        if structure.kind == "vector":
            return state[0]["weight"]
        if structure.kind == "table":
            return row(ops, state[0], int(x))
        if structure.kind == "conv":
            return self._convolve(expr, state, x, view)
        return read(ops, structure, state, x)

    def _convolve(self, expr: Read, state: Tensors, x: Array, view: View) -> Array:
        """Every place that reads a convolution has a history of its own inputs, longer by one each token."""
        site = f"{view.owner or ''}|{','.join(sorted(view.cut))}|{expr!r}"
        if site not in self.memo.reads:
            width = self.ops.shape(state[0]["weight"])[1]
            history = [*self.before.get("histories", {}).get(site, []), x]
            self.histories[site] = history[-(width - 1) :] if width > 1 else []
            self.memo.reads[site] = convolve(self.ops, state[0], history)
        return self.memo.reads[site]

    # --- children ------------------------------------------------------------------------------

    def child_outputs(self, name: str) -> dict[str, Array]:
        """Return the outputs of a call or repeat at this token, running it once."""
        if name not in self.memo.children:
            self.memo.children[name] = self.busy(f"call {name}", lambda: self._run_child(self.kids[name]))
        return self.memo.children[name]

    def _run_child(self, child: Call | Repeat) -> dict[str, Array]:
        kept = self.before.get("children", {})
        below = self.weights.below(child.name)
        if isinstance(child, Call):
            given = [self.evaluate(argument) for argument in child.arguments]
            frame = Frame(self.ops, child.unit, below, kept.get(child.name, {}), given)
            self.frames[child.name] = [frame]
            return frame.run()
        carried = {name: self.evaluate(expr) for name, expr in child.carried}
        captured = [self.evaluate(expr) for _, expr in child.captured]
        passes = kept.get(child.name, [{}] * int(child.count))
        frames = self.frames[child.name] = []
        for i, record in enumerate(passes):
            given = [*carried.values(), *captured]
            frames.append(Frame(self.ops, child.body, below.below(str(i)), record, given, self))
            results = frames[-1].run()
            carried = {name: results[name] for name in carried}
        return carried


class _UnitScope(Scope):
    """Names and reads in a unit, from one point of view."""

    def __init__(self, frame: Frame, view: View) -> None:
        self.ops, self.frame, self.view = frame.ops, frame, view

    def ref(self, name: str) -> Array:
        value = self.frame.named(name, self.view)
        return self._cut(name, value)

    def read(self, expr: Read) -> Array:
        return self.frame.read(expr, self.view)

    def state(self, memory: str) -> Array:
        frame, found = self.frame.find(memory)
        return self._cut(memory, frame.visible(found, self.view.resting)[0]["weight"])

    def output(self, expr: Output) -> Array:
        return self._cut(expr.child, self.frame.child_outputs(expr.child)[expr.name])

    def clock(self, function: str) -> int:
        if function not in ("rope", "position"):
            raise InternalError(f"{function} outside of a rule")
        return self.frame.position

    def _cut(self, name: str, value: Array) -> Array:
        return self.ops.detach(value) if name in self.view.cut else value
