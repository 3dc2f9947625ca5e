"""Memories that move by the model's own loss (`minimize task` on the token clock), one token at a time.

At token t the loss of token t − 1, whose target is known now, is differentiated with respect to the states that were
visible at t − 1, and the gradient goes to the memories' sums; the model runs; then the memories whose period closes at
t move. At every such boundary all of these memories get new leaves, so that no gradient looks back beyond it.

A state carries no graph that this depends on: it has the inputs and targets of the latest token's chunk and the state
at the chunk's start, and a call begins by running them once more. So it may be detached, saved and loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from nsam.backends.reference import rules
from nsam.backends.reference.arrays import Array, Arrays
from nsam.backends.reference.frame import Frame, UnitRecord
from nsam.backends.reference.run import ReferenceState, batch_of, deep_recursion, tokens_of
from nsam.backends.reference.scope import InternalError
from nsam.backends.reference.structures import Tensors
from nsam.backends.reference.weights import Weights
from nsam.dsl.checked import Call, Memory, Unit

Leaves: TypeAlias = dict[tuple[str, str, int, str], Array]
"""The visible states by unit, memory, head and tensor."""
Chunk: TypeAlias = dict[str, Any]
"""A chunk as far as it was read: `start`, the record before its first token (with what the loss of the token before it
adds), `tokens`, each token's inputs, and `targets`, of the latest token only where it is known."""


def run_end_to_end(
    ops: Arrays,
    unit: Unit,
    parameters: Mapping[str, Array],
    inputs: Sequence[Any],
    targets: Sequence[Sequence[Any]] | None,
    state: ReferenceState | None,
) -> tuple[Array, ReferenceState]:
    """Return the output [batch, time, n] and the state after the last token.

    `targets`, whole numbers, as for the compiled module: for the latest token of the call before if it has none yet,
    then for each token, the last one at will; without them a model of its own input learns from that. Raises
    ValueError on what does not fit.
    """
    batch = batch_of(unit, inputs)
    before = [{}] * batch if state is None else state["sequences"]
    if len(before) != batch:
        raise ValueError(f"the state is of {len(before)} sequences, the input of {batch}")
    rows, after = [], []
    with deep_recursion():
        for i in range(batch):
            tokens = list(tokens_of(ops, unit, inputs, i))
            answers = _answers(unit, inputs, targets, before[i].get("chunk"), i)
            one = _Sequence(ops, unit, parameters, before[i])
            rows.append(ops.stack([one.token(x, answers.pop(0) if one.owed else None) for x in tokens]))
            # A target of the very last token may be known already; its loss waits for the next token all the same.
            after.append({**one.record, "chunk": {**one.chunk, "targets": [*one.chunk["targets"], *answers]}})
    return ops.stack(rows), {"sequences": after}


def _answers(
    unit: Unit,
    inputs: Sequence[Any],
    targets: Sequence[Sequence[Any]] | None,
    chunk: Chunk | None,
    sequence: int,
) -> list[int]:
    """Targets of all tokens that have none yet."""
    time = next(int(x.shape[1]) for given, x in zip(unit.inputs, inputs, strict=True) if given.type.per == "token")
    missing = chunk is not None and len(chunk["targets"]) < len(chunk["tokens"])
    if targets is None:
        given = unit.inputs[0].type.vocab
        if len(unit.inputs) != 1 or given is None or unit.outputs[0][1].type.shape != (given,):
            raise ValueError(f"{unit.name} learns from targets while it runs: integers [batch, time]")
        targets = inputs[0] if missing else inputs[0][:, 1:]
    found = [int(x) for x in targets[sequence]]
    if len(found) - missing not in (time, time - 1):
        raise ValueError(f"{len(found)} targets for {time} tokens do not fit")
    classes = int(unit.outputs[0][1].type.shape[0])
    if any(not 0 <= x < classes for x in found):
        raise ValueError(f"a target lies outside of 0 … {classes - 1}")
    return found if chunk is None or missing else [chunk["targets"][-1], *found]


class _Sequence:
    """One sequence on its way."""

    def __init__(self, ops: Arrays, unit: Unit, parameters: Mapping[str, Array], before: dict[str, Any]) -> None:
        self.ops = ops
        self.unit, self.weights = unit, Weights(parameters)
        self.record: UnitRecord = before
        self.owed: tuple[Array, Leaves] | None = None
        """The latest token's output and the states that it read."""
        self.chunk: Chunk = {}
        self.closed = True
        if "chunk" in before:
            known: Chunk = before["chunk"]
            self.record = _changed(known["start"], self.renewed)
            for token, target in zip(known["tokens"], [None, *known["targets"]], strict=False):
                self.token(token, target)
            if self.closed:  # of a chunk that has ended only its last token's loss is wanted: what moved is carried
                self.record = _changed({k: v for k, v in before.items() if k != "chunk"}, self.renewed)

    def token(self, token: list[Any], target: int | None) -> Array:
        """Run one token; its target comes with the next one. `target` is that of the token before, where one was."""
        if self.owed is not None and target is not None:
            self.learn(*self.owed, target)
        if self.closed:
            self.chunk = {"start": self.record, "tokens": [], "targets": []}
        elif target is not None:
            self.chunk["targets"].append(target)
        self.chunk["tokens"].append(token)
        frame = Frame(self.ops, self.unit, self.weights, self.record, token)
        output: Array = frame.run()["output"]
        moving = [
            (path, inside, m) for path, inside in _frames(frame, "") for m in inside.unit.memories if m.end_to_end
        ]
        seen = {key: x for path, inside, m in moving for key, x in _leaves(path, m, inside.records[m.name]["boundary"])}
        closes = [_close(self.ops, inside, memory) for _, inside, memory in moving]
        self.closed = any(closes)
        if self.closed:
            for _, inside, memory in moving:
                inside.records[memory.name] = self.renewed("", memory.name, inside.records[memory.name])
        self.record = frame.finish()
        self.owed = output, seen
        return output

    def renewed(self, path: str, name: str, record: dict[str, Any]) -> dict[str, Any]:
        """Return a memory's record with leaves of its own."""
        return record | {"boundary": separate(self.ops, record["held"])}

    def learn(self, output: Array, seen: Leaves, target: int) -> None:
        """Add the gradient of the loss of the token before to the sums."""
        gradients = self.ops.gradient(self.loss(output, target), list(seen.values()))
        found = dict(zip(seen, gradients, strict=True))

        def added(path: str, name: str, record: dict[str, Any]) -> dict[str, Any]:
            if not record["count"]:  # it started over after that token: what came before is forgotten
                return record
            sums = [
                {tensor: self.ops.add(total, found[path, name, head, tensor]) for tensor, total in tensors.items()}
                for head, tensors in enumerate(record["sums"])
            ]
            return record | {"sums": sums}

        self.record = _changed(self.record, added)

    def loss(self, scores: Array, target: int) -> Array:
        """Return −log softmax(scores)[target]."""
        ops = self.ops
        below = ops.sub(scores, ops.largest_last(scores))
        return ops.sub(ops.log(ops.total(ops.exp(below))), ops.take(below, target))


def _close(ops: Arrays, frame: Frame, memory: Memory) -> bool:
    """Move a memory whose period closes at this token; returns whether it does."""
    record = frame.records[memory.name]
    if memory.frequency is None or memory.rule is None:
        raise InternalError(f"{memory.name} moves without a rule or a period")
    if record["count"] % int(memory.frequency.period):
        return False
    arguments = frame.arguments(memory)
    moved: Tensors = []
    remembered = []
    heads = zip(record["boundary"], record["sums"], record["rules"], arguments, strict=True)
    for tensors, sums, records, given in heads:
        results = {
            name: rules.apply_rule(ops, memory.rule, given, rules.Host(tensor, sums[name]), records[name])
            for name, tensor in tensors.items()
        }
        moved.append({name: new for name, (new, _) in results.items()})
        remembered.append({name: new for name, (_, new) in results.items()})
    frame.records[memory.name] = record | new_record(ops, moved) | {"rules": remembered, "count": record["count"]}
    return True


def new_record(ops: Arrays, tensors: Tensors) -> dict[str, Any]:
    """Return the state of a memory that starts from `tensors`: leaves of its own, empty sums, a rule without past."""
    return {
        "held": tensors,
        "boundary": separate(ops, tensors),
        "count": 0,
        "sums": [{name: ops.zeros(ops.shape(x)) for name, x in head.items()} for head in tensors],
        "rules": [{name: rules.new_rule_record() for name in head} for head in tensors],
    }


def separate(ops: Arrays, tensors: Tensors) -> Tensors:
    """Return the same values as nodes of their own, at which a gradient can be taken."""
    return [{name: ops.leaf(x) for name, x in head.items()} for head in tensors]


def _leaves(path: str, memory: Memory, tensors: Tensors) -> Iterator[tuple[tuple[str, str, int, str], Array]]:
    for head, found in enumerate(tensors):
        for name, x in found.items():
            yield (path, memory.name, head, name), x


def _changed(record: UnitRecord, change: Callable[[str, str, dict[str, Any]], dict[str, Any]], path: str = "") -> Any:
    """Return a unit's record in which `change` (of path, memory and its record) was made to each memory that moves."""
    memories = {
        name: change(path, name, memory) if "held" in memory else memory
        for name, memory in record.get("memories", {}).items()
    }
    children = {
        name: [_changed(each, change, f"{path}{name}.{i}.") for i, each in enumerate(child)]
        if isinstance(child, list)
        else _changed(child, change, f"{path}{name}.")
        for name, child in record.get("children", {}).items()
    }
    return {**record, "memories": memories, "children": children}


def _frames(frame: Frame, path: str) -> Iterator[tuple[str, Frame]]:
    """Yield a frame and all frames inside it, with their paths."""
    yield path, frame
    for name, inside in frame.frames.items():
        single = isinstance(frame.kids[name], Call)
        for i, each in enumerate(inside):
            yield from _frames(each, f"{path}{name}." if single else f"{path}{name}.{i}.")
