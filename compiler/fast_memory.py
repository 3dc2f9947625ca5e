"""A fast memory as it is lowered: its folds, one for each tensor, and what they are made of."""

from __future__ import annotations

from dataclasses import field
from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING, Literal, TypeAlias

from nsam.compiler.derive import Gradient
from nsam.compiler.expressions import Builder, Node, postorder
from nsam.compiler.rule_plan import RulePlan
from nsam.dsl import checked as c
from nsam.dsl.records import dataclass

if TYPE_CHECKING:
    from nsam.compiler.lower import Lowering

Algorithm: TypeAlias = Literal["rank-one", "momentum", "summed", "generic"]
SHORTEST_PIECE = 64
"""Tokens of a long chunk that are folded at once, at the least."""
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


def piece_length(structure: c.Structure) -> int:
    """Tokens of a long chunk that are folded at once.

    Work on pairs of tokens grows with this number, passes over the memory's matrices shrink with it. Measured on a CPU
    (one matrix, chunk 256): 64 is fastest at widths 64 and 128, 128 at 256, 256 at 512.
    """
    sizes = [int(size) // int(structure.heads or 1) for size in structure.sizes]
    width = max((sqrt(a * b) for a, b in pairwise(sizes)), default=0.0)
    piece = SHORTEST_PIECE
    while piece < width / 2:
        piece *= 2
    return piece


def piece_of(fold: Node) -> int | None:
    """Tokens that a fold, or a part that folds share, does at once; None where that is its whole chunk."""
    parts = (n for n in (fold, *fold.args) if tables(n))
    found = next((n.attr("piece") for n in parts), None)
    return None if found is None else int(str(found))


def tables(node: Node) -> bool:
    """Whether a node is a part that folds share and that depends on no state of theirs: decays, a triangle."""
    return node.op in ("decay", "triangle")


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

    @property
    def judged(self) -> list[Node]:
        """The keys and values that the objective names, those of which its gradient makes no use too."""
        given = (n.args[0] for n in postorder([self.loss]) if n.op == "given")
        return [n for n in given if n.op != "number"]

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
