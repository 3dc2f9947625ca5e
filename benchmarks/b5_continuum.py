"""B5: a continuum memory system with k periods, whole optimizer steps, against an MLP stack and a plain optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import nsam
from benchmarks.baselines.mlp_stack import MlpStack
from benchmarks.baselines.optimizers import PeriodicAdamW
from benchmarks.case import TOLERANCE, Candidate, Case, Target, compile_if
from benchmarks.models import HOPE, nsam_module, random, with_weights
from benchmarks.settings import Build, Settings

TITLE = "continuum memory system, forward, backward and optimizer, one hyperperiod of steps"
RATE = 1e-3
ROUNDED = {**TOLERANCE, torch.float32: 1e-2}
"""AdamW's first moves are little more than signs of gradients, which rounding decides where a gradient is near 0."""


class Steps:
    """As many training steps as the longest period has, each on the same input."""

    def __init__(
        self, module: nn.Module, call: Callable[[Tensor], Tensor], optimizer: Any, clear: bool, x: Tensor, steps: int
    ) -> None:
        self.module, self.call, self.optimizer, self.clear, self.x, self.steps = (
            module,
            call,
            optimizer,
            clear,
            x,
            steps,
        )

    def step(self) -> None:
        """One hyperperiod."""
        for _ in range(self.steps):
            self.call(self.x).square().mean().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if self.clear:
                self.optimizer.zero_grad(set_to_none=True)

    def evaluate(self) -> Mapping[str, Tensor]:
        """How far one hyperperiod moves every parameter."""
        before = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self.step()
        return {f"move of {name}": p.detach() - before[name] for name, p in self.module.named_parameters()}


def case(dim: int, periods: Sequence[int], batch: int, time: int) -> Case:
    """Return one size."""
    size: dict[str, Any] = {"dim": dim, "periods": list(periods)}
    hyperperiod = math.lcm(*periods)
    x = random(batch, time, dim, seed=1)

    def precise(build: Build, call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with build.precision():
                y = call(x)
            return y.to(build.stored)

        return run

    def ours(build: Build) -> Steps:
        module = nsam_module(HOPE, "cms", build, **size)
        optimizer = nsam.optimizer("std.rules", "adamw", module, lr=RATE)
        call = precise(build, lambda x: module(x)[0])
        return Steps(module, call, optimizer, True, build.put(x), hyperperiod)

    def stack(build: Build) -> MlpStack:
        module = with_weights(MlpStack(dim, len(periods)), HOPE, "cms", build, **size)
        assert isinstance(module, MlpStack)
        return module

    def periodic(build: Build) -> Steps:
        module = stack(build)
        optimizer = PeriodicAdamW([list(m.parameters()) for m in module.level], periods, RATE)
        return Steps(module, precise(build, compile_if(build, module)), optimizer, False, build.put(x), hyperperiod)

    def plain(build: Build) -> Steps:
        module = stack(build)
        optimizer = torch.optim.AdamW(module.parameters(), lr=RATE)
        return Steps(module, precise(build, compile_if(build, module)), optimizer, True, build.put(x), hyperperiod)

    other = dict.fromkeys((torch.float64, torch.float32, torch.bfloat16), math.inf)
    return Case(
        f"dim {dim}, periods {', '.join(map(str, periods))}, {batch} x {time} tokens, {hyperperiod} steps",
        (
            Candidate("nsam", ours, tolerance=ROUNDED),
            Candidate("MLP stack", plain, note="AdamW every step: other mathematics, the same work", tolerance=other),
            Candidate("MLP stack with periods", periodic, note="an AdamW for each level, gradients summed"),
        ),
        tokens=batch * time * hyperperiod,
        flops=batch * time * hyperperiod * 3.0 * len(periods) * 16 * dim**2,
        targets=(Target("MLP stack", 1 / 1.05), Target("MLP stack with periods", 1 / 1.05)),
        series="continuum",
        x=dim,
    )


def cases(settings: Settings) -> list[Case]:
    """All sizes."""
    if settings.quick:
        return [case(16, (1, 2, 4), 2, 32)]
    return [case(128, (1, 4, 16), 8, 512), case(256, (1, 4, 16), 8, 512), case(512, (1, 4, 16), 4, 512)]


def checks() -> list[Case]:
    """Small cases for the exact comparison."""
    return [case(8, (1, 2, 4), 2, 8)]
