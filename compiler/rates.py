"""Update frequencies (definition 2) as exact, comparable values."""

from __future__ import annotations

from dataclasses import field
from functools import total_ordering
from math import inf
from typing import Literal, TypeAlias

from nsam.dsl.checked import Memory
from nsam.dsl.records import dataclass
from nsam.dsl.sizes import Size

Clock: TypeAlias = Literal["always", "token", "sequence", "step", "never"]

_ORDER: dict[str, int] = {"never": 0, "step": 1, "sequence": 2, "token": 3, "always": 4}


@total_ordering
@dataclass(frozen=True, slots=True)
class Rate:
    """One update every `period` ticks of `clock`; `a < b` when a moves less often than b.

    An adaptive period has the rate of its shortest, `slowest` is its longest.

    `always` is frequency infinity (attention), `never` frequency 0. Token clocks rank above step clocks; between them
    lies `sequence`, the clock of a state that is written anew when a sequence starts and by nothing else.
    """

    clock: Clock
    period: Size = 1
    slowest: Size | None = field(default=None, compare=False)

    def __lt__(self, other: Rate) -> bool:
        if self.clock != other.clock:
            return _ORDER[self.clock] < _ORDER[other.clock]
        return bool(self.period > other.period)

    def times(self, updates: int) -> Rate:
        """Return the rate of something that moves once every `updates` moves of this."""
        if self.clock in ("always", "never"):
            return self
        return Rate(self.clock, self.period * updates, None if self.slowest is None else self.slowest * updates)

    def applied(self, *, summed: bool) -> Rate:
        """Return how often the rule of a memory that moves at this rate is applied.

        A memory that is not summed folds its rule over the tokens: once for each, whenever the result is shown. A sum
        of gradients is applied once, where the period closes.
        """
        return Rate("token") if self.clock == "token" and not summed else self

    def faster_than(self, other: Rate) -> bool:
        """Return whether this is certainly faster; sizes that have no value yet are not compared."""
        try:
            return other < self
        except TypeError:
            return False

    @property
    def text(self) -> str:
        """`1/16 per token`, `1/256..1/16 per token` (adaptive), `1 per step`, `∞`, `0`."""
        if self.clock == "always":
            return "∞"
        if self.clock == "never":
            return "0"
        slowest = "" if self.slowest is None else f"{_one_in(self.slowest)}.."
        return f"{slowest}{_one_in(self.period)} per {self.clock}"


def _one_in(period: Size) -> str:
    if period == 1:
        return "1"
    text = str(period)
    return f"1/{text}" if text.isalnum() else f"1/({text})"


ALWAYS = Rate("always")
NEVER = Rate("never")


def rate_of(memory: Memory, training: Rate) -> Rate:
    """Return the frequency of a memory in a system that is trained at `training` (usually 1 per step).

    A memory without `every` is a parameter of the training level, except where its state is written by something
    else: attention keeps every token, and `init EXPR` writes the state at each reset and leaves it alone in between.
    """
    if memory.structure.kind == "attention":
        return ALWAYS
    if memory.frequency is not None:
        if memory.frequency.period == inf:
            return NEVER
        clock: Clock = "token" if memory.frequency.unit == "token" else "step"
        period = memory.frequency.period
        return Rate(clock, int(period) if isinstance(period, float) else period, memory.frequency.slowest)
    if memory.initial.kind not in ("memory", "expression"):
        return training
    if memory.reset.kind == "every" and memory.reset.period is not None:
        return Rate("token", memory.reset.period)
    return Rate("sequence") if memory.reset.kind == "sequence" else NEVER
