"""What a read of each structure computes, head by head, and what goes into and comes out of each weight on the way.

The state of a memory is `Tensors`: for each head a dict of that head's tensors (one entry where there is no head axis).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from nsam.backends.reference.arrays import Array, Arrays
from nsam.backends.reference.functions import UNARY, softmax, split
from nsam.dsl.checked import Structure

Head: TypeAlias = dict[str, Array]
Tensors: TypeAlias = list[Head]

EPSILON = 1e-6  # of the norms


@dataclass
class Trace:
    """Of one head's read: the input (`keys`) and the output before the activation (`outputs`) of each tensor."""

    keys: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)

    def note(self, name: str, key: Array, output: Array) -> Array:
        """Remember one tensor's input and output, and return the output."""
        self.keys[name], self.outputs[name] = key, output
        return output


def heads_of(structure: Structure) -> int:
    """Return the number of slices that the state is kept in: 1 where no heads are declared."""
    if structure.kind == "attention" or structure.heads is None:
        return 1
    return int(structure.heads)


def to_heads(ops: Arrays, structure: Structure, tensors: dict[str, Array]) -> Tensors:
    """Split the head axis of whole tensors."""
    if structure.heads is None:
        return [dict(tensors)]
    return [{name: ops.take(t, head) for name, t in tensors.items()} for head in range(heads_of(structure))]


def from_vector(ops: Arrays, structure: Structure, values: Array) -> Tensors:
    """Lay a generated vector out over the tensors, row-major, in their order."""
    flat = ops.reshape(values, (math.prod(ops.shape(values)),))
    tensors, start = {}, 0
    for name, shape in structure.tensors().items():
        size = math.prod(shape)
        tensors[name] = ops.reshape(ops.take(flat, slice(start, start + size)), tuple(shape))
        start += size
    return to_heads(ops, structure, tensors)


def read(ops: Arrays, structure: Structure, state: Tensors, x: Array) -> Array:
    """Return m(x): heads act on their slices of `x` and their results are joined."""
    if structure.heads is None:
        return read_head(ops, structure, state[0], x)
    parts = split(ops, x, len(state))
    return ops.concatenate([read_head(ops, structure, head, part) for head, part in zip(state, parts, strict=True)])


def read_transposed(ops: Arrays, structure: Structure, state: Tensors, x: Array) -> Array:
    """Return m.T(x)."""
    if structure.heads is None:
        return read_head_transposed(ops, state[0], x)
    parts = split(ops, x, len(state))
    return ops.concatenate([read_head_transposed(ops, head, part) for head, part in zip(state, parts, strict=True)])


def read_head_transposed(ops: Arrays, head: Head, x: Array) -> Array:
    """Return Wᵀx (W x for a table, whose read takes a row of W); a matrix x is a batch of rows."""
    return ops.matmul(x, head["weight"])


def read_head(ops: Arrays, structure: Structure, head: Head, x: Array, trace: Trace | None = None) -> Array:
    """Return one head's m(x) for structures that are read by a value; `trace` collects each tensor's key and output."""
    trace = trace or Trace()
    if structure.kind == "mlp":
        return _mlp(ops, structure, head, x, trace)
    weight = head["weight"]
    if structure.kind in ("linear", "like"):
        return _layer(ops, head, "weight", "bias", x, trace)
    epsilon = ops.array(EPSILON if structure.eps is None else structure.eps)
    if structure.kind == "rmsnorm":
        mean_square = ops.div(ops.total_last(ops.mul(x, x)), ops.array(float(ops.shape(x)[-1])))
        scaled = ops.div(x, ops.sqrt(ops.add(mean_square, epsilon)))
        return trace.note("weight", scaled, ops.mul(scaled, weight))
    if structure.kind == "layernorm":
        size = ops.array(float(ops.shape(x)[-1]))
        centred = ops.sub(x, ops.div(ops.total_last(x), size))
        variance = ops.div(ops.total_last(ops.mul(centred, centred)), size)
        scaled = ops.div(centred, ops.sqrt(ops.add(variance, epsilon)))
        return trace.note("weight", scaled, ops.add(ops.mul(scaled, weight), head["bias"]))
    raise AssertionError(f"internal error: a {structure.kind} has no read by value; please report this")


def _layer(ops: Arrays, head: Head, weight: str, bias: str, x: Array, trace: Trace) -> Array:
    """Return W x + b. A matrix x is a batch of rows; a vector W is 1 × n."""
    matrix = head[weight]
    if len(ops.shape(matrix)) == 1:
        output = ops.matmul(x, matrix)
    elif len(ops.shape(x)) == 2:
        output = ops.matmul(x, ops.transpose(matrix))
    else:
        output = ops.matmul(matrix, x)
    if bias in head:
        output = ops.add(output, head[bias])
        trace.note(bias, ops.array(1.0), output)
    return trace.note(weight, x, output)


def _mlp(ops: Arrays, structure: Structure, head: Head, x: Array, trace: Trace) -> Array:
    """Return the layers' result, plus x where the memory is residual; a gate g turns σ(w h) into σ(g h) · (w h)."""
    last = len(structure.sizes) - 1
    h = x
    for i in range(1, last + 1):
        output = _layer(ops, head, f"w{i}", f"b{i}", h, trace)
        if i == last:
            h = output
        elif structure.gated:
            gate = trace.note(f"g{i}", h, ops.matmul(h, ops.transpose(head[f"g{i}"])))
            h = ops.mul(_activate(ops, structure, gate), output)
        else:
            h = _activate(ops, structure, output)
    return ops.add(x, h) if structure.residual else h


def _activate(ops: Arrays, structure: Structure, x: Array) -> Array:
    return x if structure.act in (None, "identity") else UNARY[structure.act](ops, x)


def row(ops: Arrays, head: Head, index: int) -> Array:
    """Return one row of a table."""
    return ops.take(head["weight"], index)


def convolve(ops: Arrays, head: Head, history: Sequence[Array]) -> Array:
    """Return Σ_j weight[:, width−1−j] · x_{t−j}; `history` ends with the current token, zeros before the first."""
    weight = head["weight"]
    width = ops.shape(weight)[1]
    taps = ops.transpose(weight)
    result = ops.zeros((ops.shape(weight)[0],))
    for back, x in enumerate(reversed(history[-width:])):
        result = ops.add(result, ops.mul(ops.take(taps, width - 1 - back), x))
    return result


def attend(ops: Arrays, structure: Structure, query: Array, keys: Sequence[Array], values: Sequence[Array]) -> Array:
    """Causal softmax attention over the tokens kept, scale 1/√d_head; query heads share keys in groups (eq. 62)."""
    heads = 1 if structure.heads is None else int(structure.heads)
    groups = heads if structure.kv_heads is None else int(structure.kv_heads)
    key_heads = [split(ops, k, groups) for k in keys]
    value_heads = [split(ops, v, groups) for v in values]
    results = []
    for head, q in enumerate(split(ops, query, heads)):
        group = head * groups // heads
        scale = ops.array(1 / math.sqrt(ops.shape(q)[0]))
        scores = ops.mul(ops.matmul(ops.stack([k[group] for k in key_heads]), q), scale)
        results.append(ops.matmul(softmax(ops, scores), ops.stack([v[group] for v in value_heads])))
    return ops.concatenate(results)
