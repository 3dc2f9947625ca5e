"""The inverse of a unit lower triangular matrix in one launch, forward and backward.

One program inverts one matrix of at most 64 rows in its registers. By products of powers and joined blocks the same is
a chain of 10 launches at 16 rows and of 19 at 64, each of them shorter than what it takes to begin it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SMALLEST = 16
"""Rows that a matrix is padded to at least: the smallest operand of a product in Triton."""


@triton.jit  # type: ignore[untyped-decorator]
def _substitute(lower: tl.tensor, inverse: tl.tensor, TIME: tl.constexpr, SIZE: tl.constexpr) -> None:
    """Row i of (I + L)⁻¹ is eᵢ − Σ_{j<i} L[i, j] · row j: forward substitution, the rows so far in registers."""
    start = tl.program_id(0).to(tl.int64) * TIME * TIME
    rows, columns = tl.arange(0, SIZE), tl.arange(0, SIZE)
    found = tl.where(rows[:, None] == columns[None, :], 1.0, 0.0)
    for i in range(1, TIME):
        row = tl.load(lower + start + i * TIME + rows, mask=rows < i, other=0.0)  # what lies on or above is not read
        known = tl.sum(row[:, None] * found, 0)
        found = tl.where(rows[:, None] == i, found - known[None, :], found)
    inside = (rows < TIME)[:, None] & (columns < TIME)[None, :]
    tl.store(inverse + start + rows[:, None] * TIME + columns[None, :], found, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _differentiate(
    inverse: tl.tensor, gradient: tl.tensor, result: tl.tensor, TIME: tl.constexpr, SIZE: tl.constexpr
) -> None:
    """−(Xᵀ G Xᵀ) below the diagonal, X the inverse and G its gradient; products in full float32."""
    start = tl.program_id(0).to(tl.int64) * TIME * TIME
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    inside = (rows < TIME) & (columns < TIME)
    transposed = tl.load(inverse + start + columns * TIME + rows, mask=inside, other=0.0)
    given = tl.load(gradient + start + rows * TIME + columns, mask=inside, other=0.0)
    left = tl.dot(transposed, given, input_precision="ieee")
    both = tl.dot(left, transposed, input_precision="ieee")
    tl.store(result + start + rows * TIME + columns, tl.where(columns < rows, -both, 0.0), mask=inside)


def _size(time: int) -> int:
    return SMALLEST if time <= SMALLEST else 1 << (time - 1).bit_length()


def _warps(size: int) -> int:
    """A warp for up to 32 rows, whose sums need no shared memory; eight for 64, whose registers hold the matrices."""
    return 1 if size <= 32 else 8


def inverse(lower: Tensor) -> Tensor:
    """(I + L)⁻¹ [.., T, T] in float32, T at most 64; only what lies below the diagonal of `lower` is read."""
    lower = lower.contiguous()
    found, time = torch.empty_like(lower), lower.shape[-1]
    if lower.numel():
        size = _size(time)
        _substitute[(lower.numel() // time**2,)](lower, found, TIME=time, SIZE=size, num_warps=_warps(size))
    return found


def inverse_backward(inverse: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of `lower` [.., T, T], from the inverse and the inverse's gradient."""
    inverse, gradient = inverse.contiguous(), gradient.contiguous()
    found, time = torch.empty_like(inverse), inverse.shape[-1]
    if inverse.numel():
        size = _size(time)
        _differentiate[(inverse.numel() // time**2,)](
            inverse, gradient, found, TIME=time, SIZE=size, num_warps=_warps(size)
        )
    return found
