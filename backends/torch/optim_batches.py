"""Parameters that take one step together: their tensors laid out as one batch.

Same-shape matrices are stacked, [matrices, rows, columns], every leading axis of a parameter a batch of matrices and a
vector 1 × n. Where every entry moves on its own, small tensors of any shape are laid end to end, large ones go alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

SMALL = 1 << 16
"""Entries up to which a tensor is laid end to end with others (above, copying costs more than it saves)."""

Signature: TypeAlias = tuple[object, ...]


def signature(parameter: Tensor, elementwise: bool) -> Signature:
    """Return what two parameters must share to be in one batch."""
    place = (parameter.dtype, parameter.device)
    if elementwise:
        return (*place, "small") if parameter.numel() <= SMALL else (*place, id(parameter))
    rows, columns = matrix_shape(parameter)
    return (*place, rows, columns)


def matrix_shape(parameter: Tensor) -> tuple[int, int]:
    """Return rows and columns of one of the parameter's matrices; a vector is 1 × n, a number 1 × 1."""
    if parameter.ndim >= 2:
        return parameter.shape[-2], parameter.shape[-1]
    return 1, parameter.numel()


@dataclass(frozen=True)
class Layout:
    """How a fixed sequence of tensors lies in one."""

    shapes: tuple[torch.Size, ...]
    elementwise: bool

    @classmethod
    def of(cls, tensors: Sequence[Tensor], elementwise: bool) -> Layout:
        """Return the layout for tensors of one signature."""
        return cls(tuple(tensor.shape for tensor in tensors), elementwise)

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Lay the tensors out as one; a single tensor is not copied."""
        if self.elementwise:
            return tensors[0] if len(tensors) == 1 else torch.cat([tensor.reshape(-1) for tensor in tensors])
        if len(tensors) > 1 and self._single:
            return torch.stack(tuple(tensors))
        matrices = [tensor.reshape(-1, *matrix_shape(tensor)) for tensor in tensors]
        return matrices[0] if len(matrices) == 1 else torch.cat(matrices)

    def scatter(self, batch: Tensor) -> list[Tensor]:
        """Return the batch's parts, one for each tensor, in its shape (views where torch can).

        Matrices of another shape than the tensors' own come back as [leading axes of the tensor, rows, columns].
        """
        if self.elementwise:
            sizes = [shape.numel() for shape in self.shapes]
        elif self._single and batch.shape[-2:] == self.shapes[0]:
            return list(batch.unbind(0))
        else:
            sizes = [shape[:-2].numel() for shape in self.shapes]
        parts = [batch] if len(self.shapes) == 1 else batch.split_with_sizes(sizes)
        return [part.reshape(self.target(part, shape)) for part, shape in zip(parts, self.shapes, strict=True)]

    @cached_property
    def _single(self) -> bool:
        """Whether each tensor is one matrix, all of one shape: one call of torch lays out many."""
        return not self.elementwise and all(len(shape) == 2 for shape in self.shapes)

    def target(self, part: Tensor, shape: torch.Size) -> Sequence[int]:
        """Return the shape of a tensor's part of a batch."""
        if self.elementwise or part.shape[-2:] == (shape[-2:] if len(shape) >= 2 else (1, shape.numel())):
            return shape
        return (*shape[:-2], *part.shape[-2:])
