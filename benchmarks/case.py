"""The parts of a benchmark: candidates that do the same work, cases, targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.settings import Build

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 6e-2}
"""Largest accepted relative error of a value or gradient, in the norm of the whole tensor."""


class Workload(Protocol):
    """One candidate, built and ready."""

    def step(self) -> None:
        """Do the work that is timed."""

    def evaluate(self) -> Mapping[str, Tensor]:
        """Do it once and return everything that must agree between candidates."""


@dataclass(frozen=True)
class Candidate:
    """A way of doing a case's work. `tolerance` is that of the gate, by precision; `note` is printed with results."""

    name: str
    make: Callable[[Build], Workload]
    note: str = ""
    tolerance: Mapping[torch.dtype, float] = field(default_factory=lambda: TOLERANCE)


@dataclass(frozen=True)
class Target:
    """At least `least` times the speed of candidate `against` (`memory`: at most 1/`least` of its memory)."""

    against: str
    least: float
    what: str = "time"


@dataclass(frozen=True)
class Case:
    """Work of one size. The first candidate is nsam; the last is the plain one that the others are checked against.

    `tokens` and `flops` (the least number that the algorithm needs) are those of one step; 0 where they mean nothing.
    `roofline` is the smallest accepted fraction of the matrix-product rate. `series` and `x` place the case on a plot.
    `graphs` names the training candidates that are measured as one CUDA graph as well, where there is a GPU.
    """

    label: str
    candidates: Sequence[Candidate]
    tokens: int = 0
    flops: float = 0.0
    targets: Sequence[Target] = ()
    roofline: float | None = None
    series: str = ""
    x: float | None = None
    graphs: Sequence[str] = ()


@dataclass(frozen=True)
class Reading:
    """A number that is not a comparison of candidates. `most` is its target."""

    label: str
    value: float
    unit: str
    spread: tuple[float, float] | None = None
    most: float | None = None
    series: str = ""
    x: float | None = None


class Skipped(Exception):
    """This candidate cannot be measured here; the message says why."""


class Training:
    """Forward and backward of a module: the sum of its output times a fixed random tensor.

    `call` returns the output tensor; `module` owns the parameters; `inputs` that ask for a gradient are compared too.
    """

    def __init__(
        self, module: nn.Module, call: Callable[..., Tensor], inputs: Mapping[str, Tensor], build: Build
    ) -> None:
        self.module, self.call, self.inputs, self.build = module, call, inputs, build
        self.weight: Tensor | None = None

    def forward(self) -> Tensor:
        """Return the output, float32 or wider."""
        with self.build.precision():
            y = self.call(*self.inputs.values())
        return y.to(self.build.stored)

    def loss(self, y: Tensor) -> Tensor:
        """Return a number with a gradient of order one everywhere."""
        if self.weight is None or self.weight.shape != y.shape:
            generator = torch.Generator().manual_seed(7)
            self.weight = self.build.put(torch.randn(y.shape, generator=generator) / y.shape[-1])
        return (y * self.weight).sum()

    def leaves(self) -> dict[str, Tensor]:
        """Everything that gets a gradient, by name."""
        asked = {name: x for name, x in self.inputs.items() if x.requires_grad}
        return dict(self.module.named_parameters()) | asked

    def step(self) -> None:
        """One forward and backward pass."""
        self.loss(self.forward()).backward()  # type: ignore[no-untyped-call]
        for leaf in self.leaves().values():
            leaf.grad = None

    def evaluate(self) -> dict[str, Tensor]:
        """The output, and the gradient of every parameter and input."""
        y = self.forward()
        self.loss(y).backward()  # type: ignore[no-untyped-call]
        found = {"output": y.detach()}
        for name, leaf in self.leaves().items():
            found[f"gradient of {name}"] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            leaf.grad = None
        return found


def compile_if(build: Build, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled in one graph with static shapes, or as it is."""
    return torch.compile(function, fullgraph=True, dynamic=False) if build.compiled else function
