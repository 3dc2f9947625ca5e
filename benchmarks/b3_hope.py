"""B3: the Hope language model, training and inference as the context grows, against the same mathematics by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.hope import HopeByHand
from benchmarks.case import Candidate, Case, Skipped, Target, Workload
from benchmarks.machine import available_memory
from benchmarks.models import HOPE, nsam_module, random_tokens, training, with_weights
from benchmarks.settings import Build, Settings

TITLE = "Hope language model, dim 128, 2 layers, chunk 16, slow 64"
WINDOW = 2048
"""Tokens in one call of inference; the state is carried from call to call."""
TRAINING_BYTES = 400_000
"""Memory of a training step per token, at dim 128 and 2 layers: a guess, only to leave out what cannot fit."""


def minimum_flops(dim: int = 128, layers: int = 2, heads: int = 4, vocab: int = 256, levels: int = 3) -> float:
    """Of one token, forward."""
    d, h, chunk, slow = dim // heads, 4 * dim // heads, 16, 64
    memories = 5 * 10 * d * h + (5 + 5) * 4 * d * h
    triangles = slow * (d + 4 * (2 * h + d)) + chunk * (d + 2 * h + d)
    dense = 4 * dim**2 + 4 * dim * heads + levels * 16 * dim**2
    return float(layers * (heads * (memories + triangles) + dense) + 2 * vocab * dim)


class Inference:
    """Scores for a long text, WINDOW tokens a call, the state carried on; no gradients."""

    def __init__(self, module: nn.Module, tokens: Tensor, build: Build) -> None:
        self.module, self.windows, self.build = module, build.put(tokens).split(WINDOW, 1), build

    @torch.no_grad()
    def run(self) -> Tensor:
        """Run over the whole text; returns the last window's scores."""
        state = None
        for window in self.windows:
            with self.build.precision():
                scores, state = self.module(window, state)
        return scores  # type: ignore[no-any-return]

    def step(self) -> None:
        """Run over the whole text."""
        self.run()

    def evaluate(self) -> Mapping[str, Tensor]:
        """The last window's scores."""
        return {"output": self.run().to(self.build.stored)}


def case(batch: int, time: int, *, train: bool = True, wrapper: bool = True, series: str = "", **size: int) -> Case:
    """Return one context length; `size` may set dim and layers. With `wrapper` also by torch's C++ wrapper."""

    def start(module: nn.Module, build: Build) -> Workload:
        tokens = random_tokens(batch, time)
        if not train:
            return Inference(module, tokens, build)
        wanted = TRAINING_BYTES * batch * time
        if wanted > 0.7 * available_memory(build.device):
            raise Skipped(f"a step may need {wanted / 1e9:.0f} GB, more than there is")
        return training(module, lambda t: module(t)[0], build, {"tokens": tokens})

    def ours(build: Build) -> Workload:
        return start(nsam_module(HOPE, "hope", build, **size), build)

    def wrapped(build: Build) -> Workload:
        return start(nsam_module(HOPE, "hope", build, cpp_wrapper=True, **size), build)

    def by_hand(build: Build) -> Workload:
        module = HopeByHand(**size, build=build)
        return start(with_weights(module, HOPE, "hope", build, **size), build)

    flops = (3 if train else 1) * batch * time * minimum_flops(**size)
    return Case(
        f"{'training' if train else 'inference'}, {batch} x {time} tokens",
        (
            Candidate("nsam", ours),
            *(
                [Candidate("nsam, C++ wrapper", wrapped, note="compiled code calls its kernels from C++")]
                if train and wrapper
                else []
            ),
            Candidate("by hand", by_hand, note="stacked products, compiled segments of 64"),
        ),
        tokens=batch * time,
        flops=flops,
        targets=(Target("by hand", 1.0),),
        graphs=("nsam", "by hand") if train else (),
        roofline=0.6 if train and batch == 8 else None,
        series=series,
        x=time,
    )


def cases(settings: Settings) -> list[Case]:
    """All lengths."""
    if settings.quick:
        small: dict[str, Any] = {"dim": 16, "layers": 1}
        return [case(2, 128, **small), case(1, 128, train=False, **small)]
    lengths = [2048, 4096, 8192, 16384, 32768, 65536]
    wrapper = not settings.device.startswith("cuda")  # a graph has no calls from Python to save
    found = [case(8, 512, wrapper=wrapper)]
    found += [case(1, n, wrapper=wrapper, series="training, one sequence") for n in lengths]
    return found + [case(1, n, train=False, series="inference, one sequence") for n in lengths]


def checks() -> list[Case]:
    """Small cases for the exact comparison."""
    small: dict[str, Any] = {"dim": 8, "layers": 2}
    return [case(2, 192, **small)]
