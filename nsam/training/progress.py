"""What the loop tells whoever watches it, and how fast it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

WARM_UP = 2
"""First steps of a process that do not count for the speed: they contain the compilation."""

WINDOW = 64
"""Steps that the speed is averaged over: longer than the periods of the slow levels, whose steps cost more."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after a step. Losses are nats a byte; `memories` maps a path to its inner loss and level.

    `budget` says what a budget of memory led to, where there is one, `graph` how a step was recorded as a CUDA graph;
    `evaluates` whether a held-out loss is taken after this step.
    """

    step: int
    steps: int
    loss: float
    held_out: float | None
    tokens_per_second: float | None
    elapsed: float
    remaining: float | None
    memories: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    budget: str | None = None
    graph: str | None = None
    evaluates: bool = False


class Watcher(Protocol):
    """Receives what happens in a run; the loop itself prints nothing."""

    def started(self, step: int, steps: int) -> None:
        """The loop is about to compile and run step `step` + 1."""

    def stepped(self, progress: Progress) -> None:
        """A step is done."""

    def evaluated(self, progress: Progress) -> None:
        """A held-out loss was taken."""

    def saved(self, step: int, path: Path) -> None:
        """A checkpoint is on disk."""


class Speed:
    """Tokens a second over the last steps, without compilation, evaluation and checkpoints."""

    def __init__(self, tokens_a_step: int) -> None:
        self._tokens = tokens_a_step
        self._seen = 0
        self._seconds: deque[float] = deque(maxlen=WINDOW)

    def add(self, seconds: float) -> None:
        """Count one step."""
        self._seen += 1
        if self._seen > WARM_UP:
            self._seconds.append(seconds)

    @property
    def seconds_a_step(self) -> float | None:
        """Mean time of a step, or None before there is one that counts."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens trained on a second."""
        seconds = self.seconds_a_step
        return self._tokens / seconds if seconds else None
