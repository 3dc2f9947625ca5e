"""Rules for the optimizer tests: from the standard library, or written in the test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nsam.dsl.checked import RuleUse
from nsam.dsl.program import standard_rule

sys.path.insert(0, str(Path(__file__).parent))

Rules = Callable[..., RuleUse]
Array = NDArray[np.float64]

SHAPES: list[tuple[int, ...]] = [(3, 5), (5, 3), (4, 4), (7,), (2, 3, 4), (2, 4, 3), ()]
"""Wide, tall and square matrices, a vector, heads, a number."""


class Problem:
    """Parameters of several shapes and a fixed stream of gradients, the same for every optimizer."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype: torch.dtype, steps: int = 50) -> None:
        generator = torch.Generator().manual_seed(7)

        def draw(shape: tuple[int, ...]) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.start = [draw(shape) for shape in shapes]
        self.gradients = [[draw(shape) for shape in shapes] for _ in range(steps)]

    def parameters(self) -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(start.clone()) for start in self.start]

    def run(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[torch.nn.Parameter],
        steps: range | None = None,
        after: Callable[[], None] = lambda: None,
    ) -> list[list[torch.Tensor]]:
        """Feed the gradients and return the parameters after each step."""
        path = []
        for t in steps or range(len(self.gradients)):
            for parameter, gradient in zip(parameters, self.gradients[t], strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
            after()
            path.append([parameter.detach().clone() for parameter in parameters])
        return path


@pytest.fixture
def problem() -> Problem:
    return Problem(SHAPES, torch.float64)


@pytest.fixture
def problem_of() -> type[Problem]:
    return Problem


@pytest.fixture
def distance() -> Callable[[list[list[torch.Tensor]], list[list[torch.Tensor]]], float]:
    """The largest difference between two paths, over all steps and parameters."""

    def measure(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> float:
        assert len(one) == len(other) > 0
        pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(a, b, strict=True)]
        return max(float((a - b).abs().max()) for a, b in pairs)

    return measure


@pytest.fixture
def newton_schulz() -> Callable[[Array], Array]:
    """Five steps of the quintic iteration on one matrix, restated in NumPy."""

    def restated(matrix: Array) -> Array:
        x = matrix / max(float(np.linalg.norm(matrix)), 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x - 4.7750 * (a @ x) + 2.0315 * (a @ (a @ x))
        return x

    return restated


@pytest.fixture
def std() -> Rules:
    """A rule of the standard library with the given arguments."""
    return lambda name, **arguments: standard_rule(name, arguments)
