"""The parameters of a unit: their names (the `state_dict` keys), shapes and initial distribution."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nsam.backends.reference.weights import is_parameter
from nsam.dsl.checked import Call, Memory, Unit

DEVIATIONS = {"table": 0.02, "conv": 0.5}


@dataclass(frozen=True)
class Parameter:
    """One tensor of a memory: its dotted path, and the memory that it belongs to."""

    path: str
    shape: tuple[int, ...]
    memory: Memory
    tensor: str


def parameters(unit: Unit, prefix: str = "") -> Iterator[Parameter]:
    """Yield the learned initial states and slow weights of a unit and of all units inside it."""
    for memory in unit.memories:
        if is_parameter(memory):
            for tensor, shape in memory.structure.tensors().items():
                yield Parameter(f"{prefix}{memory.name}.{tensor}", tuple(int(s) for s in shape), memory, tensor)
    for child in unit.children:
        if isinstance(child, Call):
            yield from parameters(child.unit, f"{prefix}{child.name}.")
        else:
            for i in range(int(child.count)):
                yield from parameters(child.body, f"{prefix}{child.name}.{i}.")


def initial_value(parameter: Parameter, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw a parameter's first value, float64.

    Normal with variance 1/fan-in for linear and mlp weights, standard deviation 0.02 for tables and 0.5 for taps (or
    what `init learned normal(s)` says), gains 1, vectors and biases 0.
    """
    memory, shape = parameter.memory, parameter.shape
    kind, deviation = memory.structure.kind, memory.initial.deviation
    if memory.initial.kind == "zeros" or parameter.tensor.startswith("b"):
        return torch.zeros(shape, dtype=torch.float64)
    if deviation is None:
        if kind in ("rmsnorm", "layernorm"):
            return torch.ones(shape, dtype=torch.float64)
        if kind == "vector":
            return torch.zeros(shape, dtype=torch.float64)
        deviation = DEVIATIONS.get(kind, 1 / math.sqrt(shape[-1]))
    return torch.randn(shape, dtype=torch.float64, generator=generator) * deviation
