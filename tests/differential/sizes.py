"""How large random programs are, and what the generator knows of each fast memory in one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Size:
    """How large programs are: what a number is drawn from for memories, for further values, for slow weights."""

    memories: tuple[int, ...]
    values: tuple[int, ...]
    slow: tuple[int, ...]
    periods: tuple[int, ...]
    nests: bool


LARGE = Size((1, 1, 2, 2, 3), (1, 2, 3), (0, 1, 2), (1, 1, 2, 3, 4, 4, 5, 8), nests=True)
SMALL = Size((1,), (0, 1), (0,), (2,), nests=False)
"""One short period, so that a short sequence runs whole blocks; no rules that make long graphs."""
VOCABULARY = 5
"""How many tokens there are."""


@dataclass
class Fast:
    """A fast memory that is being written: what it reads and returns."""

    name: str
    structure: str
    kind: str
    into: int
    out: int
    heads: int | None
    period: int
    reads: str
    hidden: tuple[int, ...] = ()
    written: str = ""
    """How the structure is written, where that is `like(…)`."""
    task: bool = False
    """Whether it moves by the model's own loss."""

    @property
    def numbers(self) -> int:
        """How many numbers its state has."""
        sizes = (self.into, *self.hidden, self.out)
        if self.kind == "vector":
            return self.into
        matrices = [a * b // (self.heads or 1) for a, b in pairwise(sizes)]
        biases = sum(sizes[1:]) if "bias" in self.structure else 0
        return sum(matrices) + biases + (sum(matrices[:-1]) if "gated" in self.structure else 0)
