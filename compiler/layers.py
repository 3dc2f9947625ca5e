"""What reading a structure computes, layer by layer."""

from __future__ import annotations

from collections.abc import Callable

from nsam.compiler.expressions import Builder, Node
from nsam.compiler.unsupported import unsupported
from nsam.dsl import checked as c

Weights = Callable[[str], Node]


def apply_layers(b: Builder, memory: c.Memory, x: Node, transposed: bool, weight: Weights) -> Node:
    """Read a linear or mlp memory at `x`; the same code for slow weights and for fast ones (heads split)."""
    structure = memory.structure
    if structure.kind == "linear":
        if transposed:
            return b.linear_t(x, weight("weight"))
        y = b.linear(x, weight("weight"))
        return b.add(y, bias_row(b, weight("bias"))) if structure.bias else y
    if structure.kind == "mlp" and not transposed:
        return _mlp(b, structure, x, weight)
    what = f"a transposed read of {structure.kind}" if transposed else f"{structure.kind} as a fast memory"
    raise unsupported(f"{what} has no compiled form", memory.span)


def _mlp(b: Builder, structure: c.Structure, x: Node, weight: Weights) -> Node:
    depth = len(structure.sizes) - 1
    h = x
    for layer in range(1, depth + 1):
        z = b.linear(h, weight(f"w{layer}"))
        if structure.bias:
            z = b.add(z, bias_row(b, weight(f"b{layer}")))
        if layer == depth:
            h = z
        elif structure.gated:
            h = b.mul(activation(b, structure.act, b.linear(h, weight(f"g{layer}"))), z)
        else:
            h = activation(b, structure.act, z)
    return b.add(x, h) if structure.residual else h


def activation(b: Builder, name: str | None, z: Node) -> Node:
    """An activation by its name in the language."""
    return z if name in (None, "identity") else b.apply(str(name), z)


def bias_row(b: Builder, bias: Node) -> Node:
    """A bias as something to add to the rows of a layer's output."""
    if bias.layout == "fold":
        return b.make("fold_row", (bias,), (bias.shape[0],), "heads")
    if bias.layout == "weight" and len(bias.shape) == 1:
        return bias
    return b.make("row", (bias,), (bias.shape[-1] if bias.layout == "weight" else bias.shape[0],), "heads")


def apply_slow(b: Builder, memory: c.Memory, x: Node, transposed: bool, weight: Weights, site: int) -> Node:
    """Read a memory whose weights stay put during the sequence. `x` is flat; so is the result."""
    structure = memory.structure
    kind = structure.kind
    if kind == "table":
        if transposed:
            return b.linear(x, weight("weight"))
        return b.make("embedding", (x, weight("weight")), (int(structure.sizes[1]),), x.layout)
    if kind == "conv":
        return b.make("conv", (x, weight("weight")), x.shape, "flat", memory=memory.name, site=site)
    eps = {} if structure.eps is None else {"eps": structure.eps}
    if kind == "rmsnorm":
        return b.make("rmsnorm", (x, weight("weight")), x.shape, x.layout, **eps)
    if kind == "layernorm":
        return b.make("layernorm", (x, weight("weight"), weight("bias")), x.shape, x.layout, **eps)
    if kind == "vector":
        return b.mul(x, weight("weight"))
    if kind not in ("linear", "mlp"):
        raise unsupported(f"reading {kind} here has no compiled form", memory.span)
    if structure.heads is None:
        return apply_layers(b, memory, x, transposed, weight)
    heads = int(structure.heads)
    return b.merge(apply_layers(b, memory, b.split(x, heads), transposed, weight), heads)
