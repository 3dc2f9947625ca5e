"""What a generated module is put together from: parameters of a memory, initial values, and modules by any name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """The parameters of one memory: slow weights, or the learnt initial state of a fast one."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        # A parametrization of torch.nn.utils takes a parameter's place: its name then gives what is computed.
        self.tensors = tuple(tensors)
        for name, tensor in tensors.items():
            setattr(self, name, nn.Parameter(tensor))


def normal(*shape: int, std: float) -> Tensor:
    """Normal initial values with standard deviation `std`."""
    return torch.empty(shape).normal_(0.0, std)


def ones(*shape: int) -> Tensor:
    """Initial gains."""
    return torch.ones(shape)


def zeros(*shape: int) -> Tensor:
    """Initial biases and vectors."""
    return torch.zeros(shape)


class Holder(nn.Module):
    """A module that holds others under any name that a program gives them: `in`, `training`, `__a`."""

    def hold(self, name: str, module: nn.Module) -> None:
        """Have a module under a name that cannot be written, or means something else, as an attribute."""
        self._modules[name] = module

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a flag (`training` and what `System` has) beside a module of the same name, which torch refuses."""
        if isinstance(value, bool) and name in self.__dict__.get("_modules", ()):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class Group(Holder):
    """What a call that is written out in its caller holds, by name."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.hold(name, module)
