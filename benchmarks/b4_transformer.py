"""B4: a Transformer from the language, forward and backward, against the same one by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.baselines.transformer import Transformer
from benchmarks.case import Candidate, Case, Target, Training, compile_if
from benchmarks.models import TRANSFORMER, nsam_module, random_tokens, training, with_weights
from benchmarks.settings import Build, Settings

TITLE = "Transformer, forward and backward"


def minimum_flops(vocab: int, dim: int, layers: int, time: int) -> float:
    """Of one token, forward and backward; attention is causal, so half of its products."""
    return 3.0 * (layers * (24 * dim**2 + 2 * time * dim) + 2 * vocab * dim)


def case(dim: int, layers: int, heads: int, batch: int, time: int) -> Case:
    """Return one size."""
    size: dict[str, Any] = {"vocab": 256, "dim": dim, "layers": layers, "heads": heads}
    tokens = {"tokens": random_tokens(batch, time)}

    def ours(build: Build) -> Training:
        module = nsam_module(TRANSFORMER, "transformer", build, truncated=True, **size)
        return training(module, lambda t: module(t)[0], build, tokens)

    def by_hand(build: Build) -> Training:
        module = with_weights(Transformer(**size), TRANSFORMER, "transformer", build, **size)
        return training(module, compile_if(build, module), build, tokens)

    return Case(
        f"dim {dim}, {layers} layers, {batch} x {time} tokens",
        (Candidate("nsam", ours), Candidate("by hand", by_hand, note="SDPA, whole model in one torch.compile")),
        tokens=batch * time,
        flops=batch * time * minimum_flops(256, dim, layers, time),
        targets=(Target("by hand", 0.98),),
        graphs=("nsam", "by hand"),
        series=f"dim {dim}",
        x=time,
    )


def cases(settings: Settings) -> list[Case]:
    """All sizes."""
    if settings.quick:
        return [case(16, 1, 2, 2, 32)]
    return [case(128, 2, 4, 8, 512), case(256, 4, 4, 4, 512), case(256, 4, 4, 1, 2048)]


def checks() -> list[Case]:
    """Small cases for the exact comparison."""
    return [case(16, 2, 2, 2, 24)]
