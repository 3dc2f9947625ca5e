"""Structures of memories: their arguments, their shapes, and what reading one returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nsam.dsl import syntax
from nsam.dsl.checked import Structure, ValueType
from nsam.dsl.constants import Evaluator, Unknown
from nsam.dsl.diagnostics import Fix, Label
from nsam.dsl.findings import Skip, did_you_mean
from nsam.dsl.functions import ACTIVATIONS
from nsam.dsl.records import dataclass
from nsam.dsl.sizes import Size, at_least, divides, product
from nsam.dsl.spans import Span
from nsam.dsl.types import same_size

LARGEST_SIZE = 2**31
LARGEST_STATE = 2**36


@dataclass(frozen=True, slots=True)
class Kind:
    """What one kind of structure takes: its sizes (None: a chain of any length), options and flags."""

    sizes: tuple[str, ...] | None
    usage: str
    options: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()


KINDS: dict[str, Kind] = {
    "linear": Kind(None, "linear(in -> out)", frozenset({"heads"}), frozenset({"bias"})),
    "mlp": Kind(
        None,
        "mlp(in -> hidden -> out, act = silu)",
        frozenset({"heads", "act"}),
        frozenset({"residual", "gated", "bias"}),
    ),
    "conv": Kind(("dim", "width"), "conv(dim, width)"),
    "table": Kind(("n", "dim"), "table(n, dim)"),
    "vector": Kind(("n",), "vector(n)"),
    "rmsnorm": Kind(("dim",), "rmsnorm(dim, eps = 1e-6)", frozenset({"eps"})),
    "layernorm": Kind(("dim",), "layernorm(dim, eps = 1e-6)", frozenset({"eps"})),
    "attention": Kind(("heads", "kv_heads", "window"), "attention(heads, kv_heads, window)"),
}
FLAGS = frozenset({"residual", "gated", "bias"})


class Structures:
    """Reads structures; `evaluator` knows the compile-time names of the place."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.findings = evaluator.findings

    def build(self, node: syntax.Structure) -> Structure:
        """Return the structure; N0211, N0215, N0217, N0218 and N0219 say what is wrong with it."""
        kind = KINDS.get(node.kind)
        if kind is None:
            raise self.findings.error(
                "N0218",
                f"unknown structure `{node.kind}`",
                node.kind_span,
                "not a structure",
                help=did_you_mean(node.kind, KINDS) or f"structures are {', '.join(KINDS)}, like",
            )
        flags = self._flags(node, kind)
        named = self._named(node, kind)
        sizes = tuple(size for size in node.sizes if not self._is_flag(size))
        if kind.sizes is None:
            return self._layers(node, sizes, named, flags)
        return self._sized(node, kind, sizes, named)

    def size(self, node: syntax.Expression, what: str) -> Any:
        """Return a size: a whole number from 1 to 2^31; N0211 otherwise."""
        value = self.evaluator.integer(node, what)
        if at_least(value, 1) is False:
            raise self.findings.error("N0211", f"{what} is {value}", node.span, "at least 1 is needed")
        if isinstance(value, int) and value > LARGEST_SIZE:
            raise self.findings.error("N0211", f"{what} is {value}", node.span, f"the largest size is {LARGEST_SIZE}")
        return value

    def _is_flag(self, node: syntax.Expression) -> bool:
        return isinstance(node, syntax.Name) and node.id in FLAGS and node.id not in self.evaluator.names

    def _flags(self, node: syntax.Structure, kind: Kind) -> frozenset[str]:
        found: set[str] = set()
        for flag in [*node.flags, *(size for size in node.sizes if self._is_flag(size))]:
            assert isinstance(flag, syntax.Name)
            if flag.id not in kind.flags:
                raise self._no_flag(node, kind, flag.id, flag.span)
            found.add(flag.id)
        return frozenset(found)

    def _no_flag(self, node: syntax.Structure, kind: Kind, flag: str, span: Span) -> Skip:
        allowed = ", ".join(f"`{name}`" for name in sorted(kind.flags))
        return self.findings.error(
            "N0219",
            f"`{node.kind}` has no flag `{flag}`",
            span,
            "not a flag here",
            help=did_you_mean(flag, kind.flags) or (f"its flags are {allowed}" if allowed else None),
        )

    def _named(self, node: syntax.Structure, kind: Kind) -> dict[str, syntax.Argument]:
        known = kind.options | frozenset(kind.sizes or ())
        found: dict[str, syntax.Argument] = {}
        for argument in node.named:
            name = argument.name or ""
            if name in kind.flags:
                raise self._flag_with_value(node, name, argument)
            if name in FLAGS:
                raise self._no_flag(node, kind, name, argument.span)
            if name not in known:
                raise self.findings.error(
                    "N0219",
                    f"`{node.kind}` has no argument `{name}`",
                    argument.span,
                    "not an argument here",
                    help=did_you_mean(name, known) or f"write {kind.usage}",
                )
            if name in found:
                raise self.findings.twice(name, argument.span)
            found[name] = argument
        return found

    def _flag_with_value(self, node: syntax.Structure, flag: str, argument: syntax.Argument) -> Skip:
        value = argument.value
        off = isinstance(value, syntax.Boolean) and not value.value
        return self.findings.error(
            "N0219",
            f"`{flag}` is a flag of `{node.kind}` and takes no value: it is there, or it is left out",
            argument.span,
            "a flag stands alone",
            help="leave it out" if off else f"write `{flag}` alone, without `= {value.span.text}`",
            fix=None if off else Fix(argument.span, flag),
        )

    def _usage(self, node: syntax.Structure, message: str) -> Skip:
        return self.findings.error("N0219", message, node.span, help=f"write `{KINDS[node.kind].usage}`")

    def _sized(
        self,
        node: syntax.Structure,
        kind: Kind,
        sizes: tuple[syntax.Expression, ...],
        named: Mapping[str, syntax.Argument],
    ) -> Structure:
        names = kind.sizes or ()
        if node.arrows or len(sizes) > len(names):
            raise self._usage(node, f"`{node.kind}` takes {', '.join(names)}")
        given = dict(zip(names, sizes, strict=False))
        for name, argument in named.items():
            if name in given:
                raise self.findings.twice(name, argument.span)
            given[name] = argument.value
        eps = self._epsilon(given.pop("eps", None))
        needed = ("heads",) if node.kind == "attention" else names
        for name in needed:
            if name not in given:
                raise self._usage(node, f"`{node.kind}` needs `{name}`")
        values = {name: self.size(value, f"`{name}` of this {node.kind}") for name, value in given.items()}
        if node.kind == "attention":
            return self._attention(node, values)
        structure = Structure(node.kind, tuple(values[name] for name in names), eps=eps)  # type: ignore[arg-type]
        return self._bounded(node, structure)

    def _epsilon(self, node: syntax.Expression | None) -> Any:
        """Return what a norm adds under its root; N0211 unless it is above 0."""
        if node is None:
            return None
        value = self.evaluator.number(node)
        if isinstance(value, int | float) and not 0 < value < math.inf:
            raise self.findings.error("N0211", f"`eps` is {value}", node.span, "a number above 0 is needed")
        return value

    def _attention(self, node: syntax.Structure, values: dict[str, Any]) -> Structure:
        heads, kv_heads = values["heads"], values.get("kv_heads")
        if kv_heads is not None and divides(kv_heads, heads) is False:
            raise self.findings.error(
                "N0215", f"{kv_heads} key heads do not divide {heads} heads", node.span, "each serves as many heads"
            )
        return Structure("attention", (), heads=heads, kv_heads=kv_heads, window=values.get("window"))

    def _layers(
        self,
        node: syntax.Structure,
        sizes: tuple[syntax.Expression, ...],
        named: Mapping[str, syntax.Argument],
        flags: frozenset[str],
    ) -> Structure:
        least = 2 if node.kind == "linear" else 3
        if not node.arrows or len(sizes) < least or (node.kind == "linear" and len(sizes) > 2):
            raise self._usage(node, _wrong_layers(node.kind, node.arrows))
        values = tuple(self.size(size, f"a size of this {node.kind}") for size in sizes)
        heads = None if "heads" not in named else self.size(named["heads"].value, "`heads`")
        if heads is not None:
            self._heads_divide(heads, values, sizes, named["heads"])
        residual = "residual" in flags
        if residual and not same_size(values[0], values[-1]):
            raise self.findings.error(
                "N0217",
                f"a residual memory adds its input to its output: {values[0]} is not {values[-1]}",
                sizes[-1].span,
                f"the output is {values[-1]}",
                secondary=[Label(sizes[0].span, f"the input is {values[0]}")],
                help="make the two equal, or leave out `residual`",
            )
        structure = Structure(
            node.kind,  # type: ignore[arg-type]
            values,
            heads,
            self._activation(node, named) if node.kind == "mlp" else None,
            residual,
            "gated" in flags,
            "bias" in flags,
        )
        return self._bounded(node, structure)

    def _heads_divide(
        self, heads: Size, values: Sequence[Size], sizes: Sequence[syntax.Expression], argument: syntax.Argument
    ) -> None:

        for value, size in zip(values, sizes, strict=True):
            if divides(heads, value) is False:
                raise self.findings.error(
                    "N0215",
                    f"{heads} heads do not divide {value}",
                    argument.span,
                    f"{heads} heads",
                    secondary=[Label(size.span, f"this is {value}")],
                    help="each head takes an equal slice: choose a number of heads that divides every size",
                )

    def _activation(self, node: syntax.Structure, named: Mapping[str, syntax.Argument]) -> str | None:
        if "act" not in named:
            return "silu"
        value = named["act"].value
        if isinstance(value, syntax.Name) and value.id not in self.evaluator.names:
            name: Any = value.id
        else:
            name = self.evaluator.value(value)
        if not isinstance(name, str):
            if name == Unknown("str"):
                return ACTIVATIONS[0]
            raise self.findings.error("N0210", "an activation is a name", value.span, "not a name")
        if name not in ACTIVATIONS:
            raise self.findings.error(
                "N0201",
                f"unknown activation `{name}`",
                value.span,
                "not an activation",
                help=did_you_mean(name, ACTIVATIONS) or f"activations are {', '.join(ACTIVATIONS)}",
            )
        return name

    def _bounded(self, node: syntax.Structure, structure: Structure) -> Structure:
        total = state_size(structure)
        if isinstance(total, int) and total > LARGEST_STATE:
            raise self.findings.error(
                "N0211", f"this memory has {total} numbers", node.span, f"the most is {LARGEST_STATE}"
            )
        return structure


def state_size(structure: Structure) -> Any:
    """Return how many numbers a structure's state has."""
    total: Any = 0
    for shape in structure.tensors().values():
        total = total + product(shape)
    return total


def state_shape(structure: Structure) -> tuple[Size, ...] | None:
    """Return the shape of a state that is one tensor without heads (vector, linear), else None."""
    if structure.kind == "vector":
        return structure.sizes
    if structure.kind == "linear" and structure.heads is None and not structure.bias:
        return (structure.sizes[1], structure.sizes[0])
    return None


def input_size(structure: Structure, transposed: bool = False) -> Any:
    """Return the size of the vector that a structure reads; None for tables (tokens), vectors and attention."""
    if structure.kind == "table":
        return structure.sizes[1] if transposed else None
    if structure.kind in ("vector", "attention"):
        return None
    if structure.kind in ("linear", "mlp"):
        return structure.sizes[-1 if transposed else 0]
    return structure.sizes[0]


def output_size(structure: Structure, transposed: bool = False) -> Any:
    """Return the size of the vector that reading a structure returns; None for vectors and attention."""
    if structure.kind == "table":
        return structure.sizes[0] if transposed else structure.sizes[1]
    if structure.kind in ("vector", "attention"):
        return None
    if structure.kind in ("linear", "mlp"):
        return structure.sizes[0 if transposed else -1]
    return structure.sizes[0]


def has_transpose(structure: Structure) -> bool:
    """Whether `m.T(x)` means something: one matrix, no bias."""
    return structure.kind == "table" or (structure.kind == "linear" and not structure.bias)


def value_of(structure: Structure, per: Any, transposed: bool = False) -> ValueType:
    """Return the type that reading `structure` returns."""
    return ValueType((output_size(structure, transposed),), per)


def _wrong_layers(kind: str, arrows: bool) -> str:
    """What is wrong with the sizes of a linear or an mlp, which have arrows between them or not."""
    if not arrows:
        return f"the layers of `{kind}` are written with arrows"
    if kind == "mlp":
        return "an mlp has a hidden layer between input and output; `linear(in -> out)` has none"
    return "a linear has two sizes, input and output; `mlp(in -> hidden -> out)` has layers between them"
