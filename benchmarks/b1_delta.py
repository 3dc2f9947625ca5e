"""B1: one linear memory with delta gradient descent, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.baselines import delta
from benchmarks.case import Candidate, Case, Target, Training
from benchmarks.models import DELTA, nsam_module, random, training, with_weights
from benchmarks.settings import Build, Settings

TITLE = "one dgd memory, forward and backward"


def minimum_flops(dim: int, chunk: int) -> float:
    """Of one token, forward and backward: prediction, read and update; half a Gram matrix and a triangular solve.

    Pairs of tokens need to meet only within a piece of a chunk; half the width of the matrix is about the best length.
    """
    return 3.0 * (6 * dim**2 + 2 * min(chunk, max(64, dim // 2)) * dim)


def inputs(batch: int, time: int, dim: int) -> dict[str, Tensor]:
    """Unit keys and queries, values, rates in (0, 0.5), retention near 1."""
    unit = torch.nn.functional.normalize
    q, k, v = (random(batch, time, dim, seed=i) for i in (1, 2, 3))
    rate = 0.5 * torch.sigmoid(random(batch, time, 1, seed=4))
    keep = 6 + random(batch, time, 1, seed=5)
    return {"q": unit(q, dim=-1), "k": unit(k, dim=-1), "v": v, "rate": rate, "keep": keep}


def case(dim: int, chunk: int, batch: int, time: int) -> Case:
    """Return one size."""

    def start(module: nn.Module, call: Callable[..., Tensor], build: Build) -> Training:
        made = training(module, call, build, inputs(batch, time, dim))
        for x in made.inputs.values():
            x.requires_grad_()
        return made

    def ours(build: Build) -> Training:
        module = nsam_module(DELTA, "delta", build, dim=dim, chunk=chunk)
        return start(module, lambda *x: module(*x)[0], build)

    def by_hand(make: Callable[[int, int, Build], nn.Module]) -> Callable[[Build], Training]:
        def made(build: Build) -> Training:
            module = with_weights(make(dim, chunk, build), DELTA, "delta", build, dim=dim, chunk=chunk)
            return start(module, module, build)

        return made

    return Case(
        f"d {dim}, chunk {chunk}, {batch} x {time} tokens",
        (
            Candidate("nsam", ours),
            Candidate("scan", by_hand(delta.scan_loop), note="torch's scan over the tokens of a chunk, compiled"),
            Candidate("compiled loop", by_hand(delta.compiled_loop), note=f"{delta.SEGMENT} tokens unrolled, compiled"),
            Candidate("token loop", by_hand(delta.token_loop)),
        ),
        tokens=batch * time,
        flops=batch * time * minimum_flops(dim, chunk),
        targets=(Target("token loop", 20), Target("compiled loop", 3), Target("scan", 3)),
        roofline=0.6 if chunk >= 64 else None,
        graphs=("nsam", "compiled loop"),
        series=f"d {dim}",
        x=chunk,
    )


def cases(settings: Settings) -> list[Case]:
    """All sizes."""
    if settings.quick:
        return [case(16, 16, 2, 32)]
    # The loops keep several states a token, [batch, d, d] each: the batch shrinks as d grows.
    batches = {64: 8, 128: 8, 256: 4, 512: 2}
    return [case(dim, chunk, batch, 512) for dim, batch in batches.items() for chunk in (16, 64, 256)]


def checks() -> list[Case]:
    """Small cases for the exact comparison."""
    return [case(8, 16, 2, 48), case(6, 8, 1, 16)]
