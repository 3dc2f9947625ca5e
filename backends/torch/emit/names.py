"""Python names for the values of a plan."""

from __future__ import annotations

import keyword
import re

from nsam.backends.torch.emit.keys import NO_SLOTS, NOWHERE, Sites, Slots
from nsam.compiler.expressions import Builder, Node

RESERVED = frozenset(
    "torch F nn rt math Tensor w s at new part inner self state children clock clock_never sum max min abs".split()
)

FOLDS = frozenset({"rank_one", "rank_one_wide", "momentum", "momentum_wide", "summed", "generic"})
_OPS = {
    "linear": "y", "linear_t": "y", "sub": "error", "dot": "dot", "normalize": "unit", "silu": "act", "gelu": "act",
    "relu": "act", "tanh": "act", "fold_read": "y", "gather": "own", "rows": "rows", "decay": "decay",
    "triangle": "inverse",
    "conv": "y", "rmsnorm": "normed", "layernorm": "normed", "embedding": "x", "attention": "mixed",
    "position": "position", "gelu_tanh": "act",
    "split": "heads", "merge": "flat", "add": "total", "mul": "product", "div": "ratio", "sqrt": "root",
}  # fmt: skip


def identifier(text: str) -> str:
    """A Python identifier from a path: `level.0` is `level_0`."""
    found = re.sub(r"\W+", "_", text).strip("_")
    if not found or found[0].isdigit():
        found = f"x_{found}"
    return f"{found}_" if keyword.iskeyword(found) else found


class Names:
    """Gives each node one Python name for the whole unit, so that functions agree on what they pass around.

    `wide` are the nodes whose values are widened to float32 (see `precision.py`), `sites` those whose inputs are summed
    up and `slots` those that tell of their tokens (see `keys.py`).
    """

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.by_id: dict[int, str] = {}
        self.taken: set[str] = set(RESERVED)
        self.wide: frozenset[int] = frozenset()
        self.sites: Sites = NOWHERE
        self.slots: Slots = NO_SLOTS

    def of(self, node: Node) -> str:
        """The name of `node`."""
        if node.id not in self.by_id:
            self.by_id[node.id] = self.fresh(self.suggest(node))
        return self.by_id[node.id]

    def fresh(self, base: str) -> str:
        """A name that nothing else has."""
        name, number = identifier(base), 2
        while name in self.taken:
            name, number = f"{identifier(base)}_{number}", number + 1
        self.taken.add(name)
        return name

    def suggest(self, node: Node) -> str:
        """A telling name: the user's, or the memory's and what was done."""
        if node.id in self.builder.names:
            return self.builder.names[node.id]
        if node.op in ("weight", "state"):
            return f"{node.attr('memory')}_{node.attr('tensor')}"
        if node.op == "slot":
            return f"{node.attr('memory')}_{node.attr('tensor')}_tokens"
        if node.op in FOLDS:
            return f"{node.attr('memory')}_{node.attr('tensor')}_fold"
        if node.op in ("linear", "linear_t", "fold_read") and len(node.args) == 2:
            weight = node.args[1] if node.op != "fold_read" else node.args[0].args[0]
            tensor = str(weight.attr("tensor"))
            kind = {"linear": "y", "linear_t": "back", "fold_read": "y"}[node.op]
            layer = "" if tensor == "weight" else tensor[1:]
            return f"{weight.attr('memory')}_{kind}{layer}"
        if node.op in ("conv", "attention"):
            return f"{node.attr('memory')}_y"
        if node.op == "across":
            return f"{self.suggest(node.args[0])}_all"
        if node.op in (
            "silu",
            "gelu",
            "gelu_tanh",
            "relu",
            "tanh",
            "silu_slope",
            "gelu_slope",
            "gelu_tanh_slope",
            "step_at",
            "normalize",
            "merge",
            "split",
        ):
            inner = self.suggest(node.args[0])
            return f"{inner}_{_OPS.get(node.op, node.op)}" if len(inner) < 24 else _OPS.get(node.op, node.op)
        return _OPS.get(node.op, node.op)
