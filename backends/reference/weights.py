"""Parameters by path, and which memories own some."""

from __future__ import annotations

from collections.abc import Mapping

from nsam.backends.reference.arrays import Array, Arrays
from nsam.backends.reference.structures import Tensors, to_heads
from nsam.dsl.checked import Memory


def is_parameter(memory: Memory) -> bool:
    """Whether the memory's tensors belong to a slower level: learned initial states and slow weights."""
    if memory.structure.kind == "attention":
        return False
    if memory.fast:
        return memory.initial.kind == "learned"
    return memory.initial.kind in ("learned", "zeros")


def is_stateful(memory: Memory) -> bool:
    """Whether the memory has a state of its own inside a sequence."""
    return memory.fast or not is_parameter(memory)


class Weights:
    """The parameters below one path, as the `state_dict` names them."""

    def __init__(self, tensors: Mapping[str, Array], prefix: str = "") -> None:
        self.tensors = tensors
        self.prefix = prefix

    def below(self, name: str) -> Weights:
        """Return the parameters of a child."""
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def of(self, ops: Arrays, memory: Memory) -> Tensors:
        """Return a memory's tensors, split into heads."""
        names = memory.structure.tensors()
        whole = {name: self.tensors[f"{self.prefix}{memory.name}.{name}"] for name in names}
        return to_heads(ops, memory.structure, whole)
