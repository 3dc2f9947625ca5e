"""B2: a Titans memory, momentum and forgetting, forward and backward."""

from __future__ import annotations

from benchmarks.baselines.titans import TitansMemory
from benchmarks.case import Candidate, Case, Target, Training
from benchmarks.models import ZOO, nsam_module, random, training, with_weights
from benchmarks.settings import Build, Settings

TITLE = "Titans memory (momentum), forward and backward"


def minimum_flops(dim: int) -> float:
    """Of one token, forward and backward: projections, then read, prediction, inner backward and update of the MLP."""
    hidden = 4 * dim
    return 3.0 * (6 * dim**2 + 6 * dim + 14 * dim * hidden)


def case(dim: int, batch: int, time: int) -> Case:
    """Return one size; chunks of 16."""
    x = {"x": random(batch, time, dim, seed=1)}

    def ours(build: Build) -> Training:
        module = nsam_module(ZOO, "titans_memory", build, dim=dim)
        return training(module, lambda x: module(x)[0], build, x)

    def general(build: Build) -> Training:
        module = with_weights(TitansMemory(dim, build), ZOO, "titans_memory", build, dim=dim)
        return training(module, module, build, x)

    def eager(build: Build) -> Training:
        return general(Build(build.device, build.dtype, compiled=False))

    return Case(
        f"d {dim}, {batch} x {time} tokens",
        (
            Candidate("nsam", ours),
            Candidate("vmap and scan, compiled", general, note="vmap of grad, associative scans in log2(C) doublings"),
            Candidate("vmap and scan", eager),
        ),
        tokens=batch * time,
        flops=batch * time * minimum_flops(dim),
        targets=(
            Target("vmap and scan, compiled", 4),
            Target("vmap and scan", 4),
            Target("vmap and scan, compiled", 3, "memory"),
        ),
        graphs=("nsam", "vmap and scan, compiled"),
        series="titans memory",
        x=dim,
    )


def cases(settings: Settings) -> list[Case]:
    """All sizes."""
    if settings.quick:
        return [case(8, 2, 32)]
    return [case(64, 4, 256), case(128, 2, 256), case(256, 1, 256)]


def checks() -> list[Case]:
    """Small cases for the exact comparison."""
    return [case(8, 2, 48)]
