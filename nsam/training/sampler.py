"""Rows of bytes: which ones a step trains on, and the fixed ones that the held-out loss is taken over."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws `batch` rows of context + 1 bytes a step, uniformly over all offsets of `text`.

    The rows of a step depend on `seed` and the step's number alone, so the whole state is (`seed`, `step`).
    """

    text: bytes
    context: int
    batch: int
    seed: int
    step: int = 0

    def rows(self) -> torch.Tensor:
        """Return the rows of the current step, int64 `[batch, context + 1]`."""
        offsets = np.random.default_rng([self.seed, self.step]).integers(
            0, len(self.text) - self.context, size=self.batch
        )
        return cut_rows(self.text, [int(offset) for offset in offsets], self.context)

    def advance(self) -> Sampler:
        """Return the sampler of the next step."""
        return replace(self, step=self.step + 1)


def cut_rows(text: bytes, offsets: list[int], context: int) -> torch.Tensor:
    """Return the rows of context + 1 bytes at `offsets`, int64 `[len(offsets), context + 1]`."""
    row = context + 1
    return torch.stack([torch.tensor(list(text[at : at + row]), dtype=torch.int64) for at in offsets])


def held_out_rows(text: bytes, context: int, batch: int, batches: int) -> list[torch.Tensor]:
    """Return up to `batches` batches of rows, evenly spread over `text`: the same ones at every call.

    Every batch is full, so that the model runs at the shape it trains at; a short text gives one batch of
    overlapping rows.
    """
    last = len(text) - context - 1
    count = max(1, min(batches, (last + 1) // (batch * (context + 1)))) * batch
    offsets = [round(i * last / max(1, count - 1)) for i in range(count)]
    return [cut_rows(text, offsets[at : at + batch], context) for at in range(0, count, batch)]
