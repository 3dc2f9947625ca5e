"""nsam's side of the benchmarks: programs, and modules with weights that every candidate of a case shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import nsam
from benchmarks.case import Training
from benchmarks.registry import ROOT
from benchmarks.settings import Build

HOPE = ROOT / "examples" / "hope" / "hope.nsam"
ZOO = ROOT / "examples" / "zoo" / "zoo.nsam"
DELTA = ROOT / "benchmarks" / "programs" / "delta.nsam"
TRANSFORMER = ROOT / "benchmarks" / "programs" / "transformer.nsam"


def nsam_module(path: Any, system: str, build: Build, **parameters: Any) -> nn.Module:
    """Return a compiled system with the weights of seed 0."""
    torch.manual_seed(0)
    module = nsam.compile(nsam.load(path), system, compiled=build.compiled, **parameters)
    return module.to(build.device, build.stored)


def with_weights(module: nn.Module, path: Any, system: str, build: Build, **parameters: Any) -> nn.Module:
    """Return a hand-written module with the same weights; every name and shape must agree."""
    plain = Build(torch.device("cpu"), build.dtype, compiled=False)
    module.load_state_dict(nsam_module(path, system, plain, **parameters).state_dict())
    return module.to(build.device, build.stored)


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Normal numbers that depend on nothing but the seed."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_tokens(batch: int, time: int, seed: int = 1) -> Tensor:
    """Bytes [batch, time]."""
    return torch.randint(0, 256, (batch, time), generator=torch.Generator().manual_seed(seed))


def training(module: nn.Module, call: Callable[..., Tensor], build: Build, inputs: Mapping[str, Tensor]) -> Training:
    """Forward and backward of `module` on inputs that were made with `random`."""
    return Training(module, call, {name: build.put(x) for name, x in inputs.items()}, build)
