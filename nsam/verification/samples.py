"""Random parameters and inputs, the same for the same seed."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from nsam.dsl.checked import Unit

PERTURBATION = 0.1
"""Deviation of what is added to initial parameters, so that gains and biases are not all alike."""


class Samples:
    """Draws from one generator."""

    def __init__(self, unit: Unit, seed: int) -> None:
        self.unit = unit
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float64."""
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def below(self, limit: int, *shape: int) -> Tensor:
        """Integers from 0 to `limit` − 1."""
        return torch.randint(0, limit, shape, generator=self.generator)

    def perturb(self, module: nn.Module) -> None:
        """Move every parameter a little from its initial value."""
        with torch.no_grad():
            for _, parameter in sorted(module.named_parameters()):
                parameter.add_(self.normal(*parameter.shape), alpha=PERTURBATION)

    def inputs(self, batch: int, time: int) -> list[Tensor]:
        """One tensor for each input: [batch, time, …], or [batch, …] where it is per sequence."""
        found = []
        for given in self.unit.inputs:
            lead = (batch, time) if given.type.per == "token" else (batch,)
            shape = (*lead, *(int(n) for n in given.type.shape))
            vocab = given.type.vocab
            found.append(self.normal(*shape) if vocab is None else self.below(int(vocab), *shape))
        return found

    def splits(self, time: int, pieces: int) -> list[int]:
        """Cut `time` tokens at `pieces` − 1 random places; returns the lengths."""
        cuts = {0, time, *(1 + int(self.below(max(time - 1, 1))) for _ in range(pieces - 1))}
        edges = sorted(cuts)
        return [b - a for a, b in pairwise(edges)]


def per_token(unit: Unit) -> list[bool]:
    """Whether each input varies with the token."""
    return [given.type.per == "token" for given in unit.inputs]


def part(unit: Unit, inputs: list[Tensor], start: int, stop: int) -> list[Tensor]:
    """The inputs of tokens `start` to `stop` − 1."""
    return [x[:, start:stop] if moves else x for x, moves in zip(inputs, per_token(unit), strict=True)]


def gap(found: Tensor, wanted: Tensor, floor: float = 1e-12) -> float:
    """Largest difference relative to the largest entry of `wanted` (at least `floor`); NaN when either has one."""
    if found.shape != wanted.shape:
        return float("nan")
    if wanted.numel() == 0:
        return 0.0
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(floor))
