"""A fast memory as it is lowered: its folds, one for each tensor, and what they are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from nsam.compiler.derive import Gradient
from nsam.compiler.expressions import Builder, Node
from nsam.compiler.rule_plan import RulePlan
from nsam.dsl import checked as c

if TYPE_CHECKING:
    from nsam.compiler.lower import Lowering

Algorithm: TypeAlias = Literal["rank-one", "momentum", "summed", "generic"]
EXACT_BLOCK = 32
"""Tokens folded at once where a memory that moves every token has an exact parallel form."""


@dataclass(frozen=True, slots=True)
class Fold:
    """The update of one tensor of a fast memory over a chunk. `node` has layout `fold`."""

    tensor: str
    node: Node
    algorithm: Algorithm
    gradient: Gradient
    reasons: tuple[str, ...] = ()


def reusable(b: Builder, fold: Node) -> Node | None:
    """The layer output at the key that a fold needs and that the memory's own forward pass may have computed."""
    if fold.op != "rank_one" or fold.args[-1].op != "triangle" or fold.attr("exact"):
        return None
    return b.linear(fold.args[-2], fold.args[0])


@dataclass(frozen=True, slots=True)
class FastMemory:
    """A fast memory, lowered.

    `period` is the clock's period in tokens; `block` the number of tokens that are folded at once (the period, or
    `EXACT_BLOCK` where the recurrence of a period of 1 is linear and so has an exact parallel form, then `exact`).
    `key` is the input that the memory is written at; `loss` the objective, one number a token and head. Adaptive
    periods: a boundary at each multiple of `period` where the mean loss exceeds `threshold`, at the latest after
    `slowest` tokens (None: at every multiple).
    """

    memory: c.Memory
    heads: int
    period: int
    block: int
    exact: bool
    folds: tuple[Fold, ...]
    plan: RulePlan | None
    arguments: tuple[tuple[str, Node], ...]
    key: Node | None
    loss: Node
    window: int = 1
    slowest: int | None = None
    threshold: float = 0.0
    shown: dict[tuple[str, bool], Node] = field(default_factory=dict, compare=False)

    def shows(self, reads: str) -> bool:
        """Whether a read goes through the fold (rather than to the state of the last boundary)."""
        return self.exact or reads == "running"

    def view(self, b: Builder, tensor: str, strict: bool) -> Node:
        """The state after each token (`strict`: before each token) as something to read."""
        fold = next(f for f in self.folds if f.tensor == tensor)
        return b.make("shown", (fold.node,), fold.node.shape, "fold", strict=strict)

    def read(self, lowering: Lowering, x: Node, transposed: bool) -> Node:
        """Read the running state (period 1 and `reads boundary`: the state before the token)."""
        from nsam.compiler.layers import apply_layers

        strict = self.memory.reads == "boundary"
        b = lowering.b
        return apply_layers(b, self.memory, x, transposed, lambda t: self.view(b, t, strict))

    def running_row(self, b: Builder, tensor: str) -> Node:
        """A vector memory's running state as a value."""
        shown = self.view(b, tensor, self.memory.reads == "boundary")
        return b.make("fold_row", (shown,), (shown.shape[0],), "heads")
