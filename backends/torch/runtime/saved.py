"""What autograd keeps for the backward pass, counted while it keeps it: each storage once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@dataclass
class Loop:
    """A loop of `blocks` blocks: bytes that one block keeps, and those of the state before it."""

    blocks: int
    state: int
    saved: int = 0

    @property
    def leanest(self) -> int:
        """Blocks replayed together that make states kept plus blocks replayed least: n c / g + g (a + c)."""
        return max(1, round(math.sqrt(self.blocks * self.state / max(1, self.state + self.saved))))


@dataclass
class Part:
    """A unit's call: bytes kept outside of its blocks, its loops (also those of units that it calls) and repeats."""

    own: int = 0
    loops: list[Loop] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)


@dataclass
class Repeat:
    """A repeat of equal passes: bytes that are handed to each, and what one keeps."""

    passes: int
    handed: int
    part: Part


class Meter:
    """Counts one call of a module: of its repeats the first pass, of its loops the first block; these are kept."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.root = self.part = Part()
        self.seen = {place(x) for x in parameters}

    def fresh(self, tensors: Iterable[Tensor]) -> int:
        """Bytes of storages that were not counted before. All that was counted is still there."""
        found = {place(x): x.untyped_storage().nbytes() for x in tensors}
        new = sum(size for key, size in found.items() if key not in self.seen)
        self.seen |= found.keys()
        return new

    @contextmanager
    def counting(self) -> Iterator[Part]:
        """Count what is kept inside, except by replayed frames."""

        def pack(x: Tensor) -> Tensor:
            self.part.own += self.fresh([x])
            return x

        with saved_tensors_hooks(pack, lambda x: x):
            yield self.root

    def block(
        self, call: Callable[..., Any], s: Mapping[str, Tensor], values: Sequence[Tensor], blocks: int
    ) -> tuple[Any, Loop]:
        """Run and count the first block of a loop."""
        state = sum({place(x): x.untyped_storage().nbytes() for x in s.values()}.values())
        self.fresh(s.values())
        self.part.own += self.fresh(values)
        loop = Loop(blocks, state)
        self.part.loops.append(loop)

        def pack(x: Tensor) -> Tensor:
            loop.saved += self.fresh([x])
            return x

        with saved_tensors_hooks(pack, lambda x: x):
            return call(s, *values), loop

    @contextmanager
    def first_pass(self, passes: int, carried: Iterable[Tensor]) -> Iterator[None]:
        """Count the first pass of a repeat apart."""
        outside, found = self.part, Repeat(passes, sum(x.untyped_storage().nbytes() for x in carried), Part())
        outside.repeats.append(found)
        self.part = found.part
        try:
            yield
        finally:
            self.part = outside

    @property
    def leanest(self) -> int:
        """Blocks to replay together in the loops that were counted so far."""
        loops = [*self.root.loops, *(loop for repeat in self.root.repeats for loop in repeat.part.loops)]
        return max((loop.leanest for loop in loops), default=1)


def place(x: Tensor) -> int:
    """Which storage a tensor has."""
    return x.untyped_storage().data_ptr()
