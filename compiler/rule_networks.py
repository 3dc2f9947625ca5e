"""Memories in rules that are not shaped like their host: their tensors, shapes, and what a read computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from itertools import pairwise

from nsam.compiler.rule_algebra import call, constant, ref
from nsam.dsl.checked import Expr, Structure
from nsam.dsl.diagnostics import fail
from nsam.dsl.records import dataclass
from nsam.dsl.sizes import Poly, Size
from nsam.dsl.spans import Span
from nsam.dsl.types import COLUMNS, ROWS

Shape = tuple[Expr, Expr]
Build = Callable[..., Expr]


@dataclass(frozen=True)
class Layers:
    """A network being read: its weights by tensor; `inputs` and `outputs` collect each weight's at the key."""

    structure: Structure
    weights: Mapping[str, Expr]
    inputs: dict[str, Expr] = field(default_factory=dict)
    outputs: dict[str, Expr] = field(default_factory=dict)

    def read(self, x: Expr, build: Build, *, key: bool = False) -> Expr:
        """Return the network at the rows x."""
        depth = len(self.structure.sizes) - 1
        h = x
        for layer in range(1, depth + 1):
            z = self.linear(h, f"w{layer}", build, key)
            if layer == depth:
                h = z
            elif self.structure.gated:
                h = build("mul", self.activated(self.linear(h, f"g{layer}", build, key), build), z)
            else:
                h = self.activated(z, build)
        return build("add", x, h) if self.structure.residual else h

    def linear(self, x: Expr, tensor: str, build: Build, key: bool) -> Expr:
        """Return x Wᵀ."""
        y = build("matmul", x, build("transpose", self.weights[tensor]))
        if key:
            self.inputs[tensor], self.outputs[tensor] = x, y
        return y

    def activated(self, z: Expr, build: Build) -> Expr:
        """Return σ(z)."""
        return z if self.structure.act in (None, "identity") else build(str(self.structure.act), z)


def shapes(structure: Structure, host: str, like: Shape | None, span: Span) -> dict[str, Shape | None]:
    """Return the tensors of a rule's memory with their shapes, None where a tensor is shaped like the rule's own host.

    `host` is the name of the matrix that the rule moves, `like` its shape. The one tensor of a `like` or linear memory
    is called "". Raises `ProgramError` for structures that rules cannot have.
    """
    if structure.kind == "like":
        return {"": like}
    if structure.kind not in ("linear", "mlp") or structure.bias or structure.heads is not None:
        what = structure.kind + (" with a bias" if structure.bias else "") + (" with heads" if structure.heads else "")
        raise fail("N0480", f"a {what} inside a rule is not supported", span)
    axes = (call("rows", ref(host)), call("cols", ref(host)))
    sizes = [size_of(size, axes, span) for size in structure.sizes]
    layers = [(out, into) for into, out in pairwise(sizes)]
    if structure.kind == "linear":
        return {"": layers[0]}
    found: dict[str, Shape | None] = {f"w{i}": shape for i, shape in enumerate(layers, 1)}
    if structure.gated:
        found |= {f"g{i}": shape for i, shape in enumerate(layers[:-1], 1)}
    return found


def size_of(size: Size, host: Shape, span: Span) -> Expr:
    """Return a size as an expression in the rows and columns of the host, which `host` gives."""
    if not isinstance(size, Poly):
        return constant(int(size))
    axes = dict.fromkeys(ROWS.names, host[0]) | dict.fromkeys(COLUMNS.names, host[1])
    total: Expr | None = None
    for monomial, coefficient in size.terms:
        term: Expr = constant(coefficient)
        for atom, power in monomial:
            if atom[0] not in axes:
                raise fail("N0480", f"the size {atom[0]} of a memory in a rule is not supported", span)
            for _ in range(power):
                term = axes[atom[0]] if term == constant(1) else call("mul", term, axes[atom[0]])
        total = term if total is None else call("add", total, term)
    return total or constant(0)
