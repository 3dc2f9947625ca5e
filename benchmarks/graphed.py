"""Training candidates once more as one CUDA graph: the same step, launched at once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.case import Candidate, Case, Training, Workload
from benchmarks.settings import Build
from nsam.backends.torch.cuda_graph import GraphedStep

SUFFIX = ", one CUDA graph"


class GraphedTraining(Training):
    """The step of another workload, recorded. Inputs that ask for a gradient stand beside the weights."""

    def __init__(self, made: Training) -> None:
        super().__init__(made.module, made.call, made.inputs, made.build)
        self.asked = nn.ParameterDict({n: nn.Parameter(x.detach()) for n, x in made.inputs.items() if x.requires_grad})
        self.given = [x for x in made.inputs.values() if not x.requires_grad]
        self.graphed_module = nn.ModuleList([self.module, self.asked])
        self.graphed = GraphedStep(self.graphed_module, self.scored)

    def scored(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the output."""
        rest = iter(given)
        inputs = [self.asked[name] if name in self.asked else next(rest) for name in self.inputs]
        with self.build.precision():
            y = self.call(*inputs)
        y = y.to(self.build.stored)
        return self.loss(y), y

    def leaves(self) -> dict[str, Tensor]:
        """Everything that gets a gradient, by name."""
        return dict(self.module.named_parameters()) | dict(self.asked.items())

    def clear(self) -> None:
        """Forget the gradients."""
        for leaf in self.leaves().values():
            leaf.grad = None

    def step(self) -> None:
        """One replay."""
        self.graphed(*self.given)
        self.clear()

    def evaluate(self) -> dict[str, Tensor]:
        """The output, and the gradient of every parameter and input."""
        self.clear()
        _, y = self.graphed(*self.given)
        found = {"output": y.clone()}
        for name, leaf in self.leaves().items():
            found[f"gradient of {name}"] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
        self.clear()
        return found


def with_graphs(case: Case) -> Case:
    """The case with a recorded form of the candidates that `case.graphs` names; what is compiled for one serves both.

    nsam's recorded step comes first, as `nsam train` records where it can; baselines are recorded too.
    """
    recorded, plain = list[Candidate](), list[Candidate]()
    for candidate in case.candidates:
        make = functools.cache(candidate.make)
        plain.append(dataclasses.replace(candidate, make=make))
        if candidate.name in case.graphs:
            recorded.append(dataclasses.replace(candidate, name=candidate.name + SUFFIX, make=_recorded(make)))
    targets = [
        *(dataclasses.replace(t, against=t.against + SUFFIX) for t in case.targets if t.against in case.graphs),
        *case.targets,
    ]
    return dataclasses.replace(case, candidates=[*recorded, *plain], targets=targets)


def _recorded(make: Callable[[Build], Workload]) -> Callable[[Build], Workload]:
    def made(build: Build) -> Workload:
        plain = make(build)
        assert isinstance(plain, Training)
        return GraphedTraining(plain)

    return made
