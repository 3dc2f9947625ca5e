"""What a generated module is put together from: parameters of a memory, initial values, and modules by any name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

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


class Place(NamedTuple):
    """Where a memory is below its unit, and what is read of it; whichever module is there then, is read."""

    above: tuple[str, ...]
    """Names of the modules that lead to it, its own last."""
    tensors: tuple[tuple[str, str], ...]
    """Path and name of each of its tensors: `level.0.w1`, `w1`."""

    def module(self, unit: nn.Module) -> nn.Module:
        """The module that is there now."""
        found = unit
        for name in self.above:
            found = found._modules[name]  # type: ignore[assignment]
        return found

    def read(self, unit: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Path and value of each tensor. RuntimeError where the values would not be the current ones."""
        module = self.module(unit)
        found = [(path, getattr(module, name)) for path, name in self.tensors]
        if module._forward_pre_hooks:
            require_current(module, found)
        return iter(found)


def places(module: nn.Module, inside: type[nn.Module], above: tuple[str, ...] = ()) -> Iterator[Place]:
    """The memories below a unit, but not those of the units that it calls, modules of type `inside`.

    A memory that has several places counts at each.
    """
    for name, child in module._modules.items():
        here = (*above, name)
        if isinstance(child, Memory):
            yield Place(here, tuple((".".join((*here, tensor)), tensor) for tensor in child.tensors))
        elif child is not None and not isinstance(child, inside):
            yield from places(child, inside, here)


def require_current(memory: nn.Module, found: Iterable[tuple[str, Tensor]]) -> None:
    """Check that hooks for a call, which a memory never has, do not make its tensors; RuntimeError otherwise.

    A memory is read where its weights are needed, and has no `forward`. The norms of torch.nn.utils from before
    parametrizations, and pruning, put a plain tensor in a parameter's place and renew it before each call;
    `fully_shard` gathers parameters then.
    """
    for path, tensor in found:
        if is_sharded(tensor):
            raise RuntimeError(
                f"`{path}` is sharded by itself, and nothing gathers it: a memory is read without being called; give "
                "fully_shard the whole compiled module, or a system that it calls, not a single memory"
            )
        if path.rpartition(".")[2] in memory.__dict__:
            raise RuntimeError(
                f"`{path}` is no parameter any more: spectral_norm, weight_norm and prune of torch.nn.utils renew it "
                "before each call of its module, and a memory is read without being called; use spectral_norm and "
                "weight_norm of torch.nn.utils.parametrizations, or torch.nn.utils.parametrize, and for what is pruned "
                "prune.remove(memory, name)"
            )


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor: this process has a part of it."""
    if type(tensor) in (Tensor, nn.Parameter) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor  # takes its time, and few have one

    return isinstance(tensor, DTensor)


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
