"""Shipped programs: compiled and reference side by side in float64, on the same weights and inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nsam
from nsam.backends.reference.module import ReferenceModule
from nsam.backends.torch.build import build
from nsam.dsl.program import Program

sys.path.insert(0, str(Path(__file__).parent))

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def example() -> Callable[[str], Program]:
    """A program of the folder of examples, loaded once."""
    loaded: dict[str, Program] = {}

    def load(name: str) -> Program:
        if name not in loaded:
            loaded[name] = nsam.load(EXAMPLES / name / f"{name}.nsam")
        return loaded[name]

    return load


class Pair:
    """One unit in both backends, with the same random weights (initial ones and a little noise), in float64."""

    def __init__(self, program: Program, system: str, seed: int = 3, **parameters: object) -> None:
        self.unit = program.instantiate(system, parameters)
        torch.manual_seed(seed)
        self.compiled = build(self.unit, compiled=False).double()
        self.generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in sorted(self.compiled.named_parameters()):
                parameter += 0.2 * self.normal(*parameter.shape)
        self.reference = ReferenceModule(self.unit)
        self.reference.load_state_dict(self.compiled.state_dict())

    @property
    def weights(self) -> dict[str, Tensor]:
        return dict(self.compiled.named_parameters())

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def inputs(self, batch: int, time: int) -> list[Tensor]:
        found = []
        for given in self.unit.inputs:
            lead = (batch, time) if given.type.per == "token" else (batch,)
            if given.type.vocab is not None:
                found.append(torch.randint(0, int(given.type.vocab), lead, generator=self.generator))
            else:
                found.append(self.normal(*lead, *(int(n) for n in given.type.shape)))
        return found

    def apart(self, time: int, batch: int = 2) -> float:
        """Largest difference of values and gradients, relative to the largest entry of each."""
        inputs = self.inputs(batch, time)
        mine, theirs = run(self.compiled, inputs), run(self.reference, inputs)
        scale = max(float(g.abs().max()) for n, g in theirs.items() if n != "output")
        assert theirs["output"].isfinite().all()
        assert scale > 0
        gaps = {}
        for name, wanted in theirs.items():
            floor = 1e-3 * scale if name != "output" else 1e-12
            gaps[name] = float((mine[name] - wanted).abs().max() / wanted.abs().max().clamp_min(floor))
        return max(gaps.values())

    def dead(self, time: int) -> list[str]:
        """Parameters without any gradient."""
        found = run(self.compiled, self.inputs(2, time))
        return [name for name in self.weights if float(found[name].abs().max()) == 0]


def run(module: torch.nn.Module, inputs: list[Tensor], direction: Tensor | None = None) -> dict[str, Tensor]:
    """The output, and gradients of every parameter and input, of a fixed nonlinear loss."""
    module.zero_grad()
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    y, _ = module(*leaves)
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(y.shape, dtype=y.dtype, generator=generator)
    (y * direction + 0.1 * y.square()).sum().backward()
    tensors = dict(module.named_parameters()) | {f"input {i}": x for i, x in enumerate(leaves) if x.requires_grad}
    found = {n: torch.zeros_like(t) if t.grad is None else t.grad.clone() for n, t in tensors.items()}
    return found | {"output": y.detach()}


@pytest.fixture
def pair() -> Callable[..., Pair]:
    return Pair


@pytest.fixture
def gradients() -> Callable[..., dict[str, Any]]:
    return run


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
