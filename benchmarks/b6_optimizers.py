"""B6: Muon and M3 on sets of matrices, against torch.optim.Muon and loops over the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import nsam
from benchmarks.baselines.optimizers import M3Loop, MuonLoop
from benchmarks.case import TOLERANCE, Candidate, Case, Skipped, Target
from benchmarks.models import random
from benchmarks.settings import Build, Settings
from nsam.training.settings import multiplies_in_bfloat16

TITLE = "optimizers, one period of 8 steps"
STEPS = 8
RATE = 1e-3
Shapes = Sequence[tuple[int, tuple[int, int]]]

# torch.optim.Muon multiplies in bfloat16, whatever the parameters are.
COARSE = dict.fromkeys(TOLERANCE, 6e-2)
# M3 divides by the root of the second moment, so a move is mostly that of the few entries whose gradient is next to 0,
# where what is rounded is largest. A wrong rule is off by 1 or more.
COARSEST = dict.fromkeys(TOLERANCE, 0.5)
PATIENCE = 1e11
"""Operations of a step beyond which products in bfloat16 are left out where the processor has none: at 1 GFLOP/s they
would take minutes."""


class Moves:
    """Steps of an optimizer on fixed gradients."""

    def __init__(self, parameters: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.parameters, self.optimizer = parameters, optimizer

    def step(self) -> None:
        """One period."""
        for _ in range(STEPS):
            self.optimizer.step()

    def evaluate(self) -> Mapping[str, Tensor]:
        """How far two periods move every parameter: in the second, what is slow has moved."""
        before = [p.detach().clone() for p in self.parameters]
        self.step()
        self.step()
        moved = [p.detach() - old for p, old in zip(self.parameters, before, strict=True)]
        return {f"move of {i}": x for i, x in enumerate(moved)}


def parameters(shapes: Shapes, build: Build) -> list[Tensor]:
    """Matrices with gradients."""
    flat = [shape for count, shape in shapes for _ in range(count)]
    found = []
    for i, shape in enumerate(flat):
        p = build.put(random(*shape, seed=i)).requires_grad_()
        p.grad = build.put(random(*shape, seed=1000 + i))
        found.append(p)
    return found


def orthogonalization_flops(shapes: Shapes) -> float:
    """Of five Newton-Schulz iterations on every matrix."""
    total = 0.0
    for count, (rows, columns) in shapes:
        m, n = min(rows, columns), max(rows, columns)
        total += count * 5 * (4 * m * m * n + 2 * m**3)
    return total


def candidate(name: str, shapes: Shapes, make: Callable[[list[Tensor]], Any]) -> Candidate:
    """A candidate that only differs in its optimizer."""

    def made(build: Build) -> Moves:
        ours = parameters(shapes, build)
        return Moves(ours, make(ours))

    return Candidate(name, made)


def in_bfloat16(
    name: str,
    shapes: Shapes,
    make: Callable[[list[Tensor]], Any],
    note: str,
    tolerance: Mapping[torch.dtype, float] = COARSE,
) -> Candidate:
    """A candidate whose products are in bfloat16."""

    def made(build: Build) -> Moves:
        long = STEPS * orthogonalization_flops(shapes) > PATIENCE
        if long and not multiplies_in_bfloat16(build.device):
            raise Skipped("this processor has no instructions for bfloat16, and a step would take minutes")
        ours = parameters(shapes, build)
        return Moves(ours, make(ours))

    return Candidate(name, made, note, tolerance)


def ours(rule: str, shapes: Shapes) -> tuple[Candidate, ...]:
    """The rule of nsam: compiled as everything else is, as it runs by default, and with products in bfloat16."""

    def made(build: Build) -> Moves:
        moved = parameters(shapes, build)
        return Moves(moved, nsam.optimizer("std.rules", rule, moved, compiled=build.compiled, lr=RATE))

    return (
        Candidate("nsam", made),
        candidate("nsam, not compiled", shapes, lambda p: nsam.optimizer("std.rules", rule, p, lr=RATE)),
        in_bfloat16(
            "nsam, bfloat16",
            shapes,
            lambda p: nsam.optimizer("std.rules", rule, p, lr=RATE, products=torch.bfloat16),
            "products in bfloat16, not compiled",
            COARSEST if rule == "m3" else COARSE,
        ),
    )


def muon(what: str, shapes: Shapes) -> Case:
    """Return Muon on one set of matrices."""
    return Case(
        f"Muon, {what}",
        (
            *ours("muon", shapes),
            in_bfloat16(
                "torch.optim.Muon",
                shapes,
                lambda p: torch.optim.Muon(p, lr=RATE, weight_decay=0),
                "products in bfloat16",
            ),
            candidate("loop", shapes, lambda p: MuonLoop(p, RATE)),
        ),
        flops=STEPS * orthogonalization_flops(shapes),
        targets=(Target("torch.optim.Muon", 1.0),),
        series="Muon",
    )


def m3(what: str, shapes: Shapes) -> Case:
    """Return M3 on one set of matrices."""
    return Case(
        f"M3, {what}",
        (
            *ours("m3", shapes),
            candidate("loop", shapes, lambda p: M3Loop(p, RATE)),
        ),
        flops=(STEPS + 1) * orthogonalization_flops(shapes),
        targets=(Target("loop", 2.0),),
        series="M3",
    )


def cases(settings: Settings) -> list[Case]:
    """All sets of matrices."""
    if settings.quick:
        small: Shapes = [(3, (8, 8)), (2, (8, 16)), (1, (16, 8))]
        return [muon("small", small), m3("small", small)]
    hope: Shapes = [(4, (128, 128)), (40, (128, 32)), (40, (32, 128)), (6, (512, 128)), (6, (128, 512))]
    sets: dict[str, Shapes] = {
        "matrices of Hope, dim 128": hope,
        "200 of 64 x 64": [(200, (64, 64))],
        "50 of 64 x 256": [(50, (64, 256))],
        "6 of 1024 x 1024": [(6, (1024, 1024))],
    }
    return [make(what, shapes) for make in (muon, m3) for what, shapes in sets.items()]


def checks() -> list[Case]:
    """Small cases for the exact comparison."""
    small: Shapes = [(2, (6, 6)), (2, (4, 9)), (1, (9, 4))]
    return [muon("small", small), m3("small", small)]
