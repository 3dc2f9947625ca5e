"""The inverse of a unit lower triangular matrix in one launch, forward and backward.

One program inverts one matrix of at most 64 rows in its registers. By products of powers and joined blocks the same is
a chain of 10 launches at 16 rows and of 19 at 64, each of them shorter than what it takes to begin it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 16
"""Rows of the blocks that are inverted row by row: the smallest operand of a product in Triton."""


@triton.jit  # type: ignore[untyped-decorator]
def _read(
    matrix: tl.tensor, row: tl.constexpr, column: tl.constexpr, TIME: tl.constexpr, STEPS: tl.constexpr, N: tl.constexpr
) -> tl.tensor:
    """The block of N rows whose first place is at (row, column), zeros where the matrix ends. STEPS: its strides."""
    rows, columns = row + tl.arange(0, N)[:, None], column + tl.arange(0, N)[None, :]
    return tl.load(matrix + rows * STEPS[0] + columns * STEPS[1], mask=(rows < TIME) & (columns < TIME), other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _write(
    matrix: tl.tensor, row: tl.constexpr, column: tl.constexpr, value: tl.tensor, TIME: tl.constexpr, N: tl.constexpr
) -> None:
    rows, columns = row + tl.arange(0, N)[:, None], column + tl.arange(0, N)[None, :]
    tl.store(matrix + rows * TIME + columns, value, mask=(rows < TIME) & (columns < TIME))


@triton.jit  # type: ignore[untyped-decorator]
def _product(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    return tl.dot(a, b, input_precision="ieee")


@triton.jit  # type: ignore[untyped-decorator]
def _of(blocks: tl.tensor, number: tl.constexpr, BLOCKS: tl.constexpr) -> tl.tensor:
    """One of several blocks [BLOCKS, n, n]."""
    chosen = tl.arange(0, BLOCKS)[:, None, None] == number
    return tl.sum(tl.where(chosen, blocks, 0.0), 0)


@triton.jit  # type: ignore[untyped-decorator]
def _invert(
    lower: tl.tensor,
    inverse: tl.tensor,
    TIME: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCKS: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """The blocks of N rows on the diagonal by forward substitution, all at once; those below from them by products.

    Row i of (I + L)⁻¹ is eᵢ − Σ_{j<i} L[i, j] · row j. X_ij = −X_ii Σ_{j≤k<i} L_ik X_kj for blocks i > j.
    """
    start = tl.program_id(0).to(tl.int64) * TIME * TIME
    lower += start
    inverse += start
    first, rows, columns = tl.arange(0, BLOCKS) * N, tl.arange(0, N)[None, :, None], tl.arange(0, N)[None, None, :]
    found = tl.where(rows == columns, 1.0, 0.0) + tl.zeros((BLOCKS, N, N), tl.float32)
    for i in range(1, N):
        place = lower + (first[:, None] + i) * STEPS[0] + (first[:, None] + tl.arange(0, N)[None, :]) * STEPS[1]
        known = (tl.arange(0, N)[None, :] < i) & (first[:, None] + i < TIME)  # what lies above is not read
        row = tl.load(place, mask=known, other=0.0)
        found = tl.where(rows == i, found - tl.sum(row[:, :, None] * found, 1)[:, None, :], found)
    zero = tl.zeros((N, N), tl.float32)
    x00 = _of(found, 0, BLOCKS)
    _write(inverse, 0, 0, x00, TIME, N)
    if BLOCKS > 1:
        x11 = _of(found, 1, BLOCKS)
        x10 = -_product(x11, _product(_read(lower, N, 0, TIME, STEPS, N), x00))
        _write(inverse, 0, N, zero, TIME, N)
        _write(inverse, N, 0, x10, TIME, N)
        _write(inverse, N, N, x11, TIME, N)
    if BLOCKS > 2:
        x22, x33 = _of(found, 2, BLOCKS), _of(found, 3, BLOCKS)
        l21, l31 = _read(lower, 2 * N, N, TIME, STEPS, N), _read(lower, 3 * N, N, TIME, STEPS, N)
        l32 = _read(lower, 3 * N, 2 * N, TIME, STEPS, N)
        x21 = -_product(x22, _product(l21, x11))
        x20 = -_product(x22, _product(_read(lower, 2 * N, 0, TIME, STEPS, N), x00) + _product(l21, x10))
        x32 = -_product(x33, _product(l32, x22))
        x31 = -_product(x33, _product(l31, x11) + _product(l32, x21))
        x30 = _product(_read(lower, 3 * N, 0, TIME, STEPS, N), x00) + _product(l31, x10) + _product(l32, x20)
        _write(inverse, 0, 2 * N, zero, TIME, N)
        _write(inverse, 0, 3 * N, zero, TIME, N)
        _write(inverse, N, 2 * N, zero, TIME, N)
        _write(inverse, N, 3 * N, zero, TIME, N)
        _write(inverse, 2 * N, 0, x20, TIME, N)
        _write(inverse, 2 * N, N, x21, TIME, N)
        _write(inverse, 2 * N, 2 * N, x22, TIME, N)
        _write(inverse, 2 * N, 3 * N, zero, TIME, N)
        _write(inverse, 3 * N, 0, -_product(x33, x30), TIME, N)
        _write(inverse, 3 * N, N, x31, TIME, N)
        _write(inverse, 3 * N, 2 * N, x32, TIME, N)
        _write(inverse, 3 * N, 3 * N, x33, TIME, N)


@triton.jit  # type: ignore[untyped-decorator]
def _differentiate(
    inverse: tl.tensor,
    gradient: tl.tensor,
    result: tl.tensor,
    TIME: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCKS: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """−(Xᵀ G Xᵀ) below the diagonal, X the inverse and G its gradient: in 1 or 2 × 2 blocks, of which X has 3."""
    start = tl.program_id(0).to(tl.int64) * TIME * TIME
    inverse += start
    gradient += start
    result += start
    below = tl.arange(0, N)[None, :] < tl.arange(0, N)[:, None]
    x00 = tl.trans(_read(inverse, 0, 0, TIME, (TIME, 1), N))
    left = _product(x00, _read(gradient, 0, 0, TIME, STEPS, N))
    if BLOCKS > 1:
        g10 = _read(gradient, N, 0, TIME, STEPS, N)
        x10, x11 = (
            tl.trans(_read(inverse, N, 0, TIME, (TIME, 1), N)),
            tl.trans(_read(inverse, N, N, TIME, (TIME, 1), N)),
        )
        left += _product(x10, g10)
        corner = _product(x11, g10)
        last = _product(_product(x11, _read(gradient, N, N, TIME, STEPS, N)), x11) + _product(corner, x10)
        _write(result, N, 0, -_product(corner, x00), TIME, N)
        _write(result, N, N, tl.where(below, -last, 0.0), TIME, N)
        _write(result, 0, N, tl.zeros((N, N), tl.float32), TIME, N)
    _write(result, 0, 0, tl.where(below, -_product(left, x00), 0.0), TIME, N)


def inverse(lower: Tensor) -> Tensor:
    """(I + L)⁻¹ [.., T, T] in float32, T at most 64; only what lies below the diagonal of `lower` is read."""
    lower, steps = _strided(lower)
    found, time = lower.new_empty(lower.shape), lower.shape[-1]
    if lower.numel():
        blocks = 1 if time <= BLOCK else 2 if time <= 2 * BLOCK else 4
        # Triton launches on the current device, whatever it is given.
        with torch.cuda.device_of(lower):  # type: ignore[no-untyped-call]
            _invert[(lower.numel() // time**2,)](
                lower, found, TIME=time, STEPS=steps, BLOCKS=blocks, N=BLOCK, num_warps=4 if blocks == 4 else 1
            )
    return found


def inverse_backward(inverse: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of `lower` [.., T, T], from the inverse and the inverse's gradient."""
    inverse, (gradient, steps) = inverse.contiguous(), _strided(gradient)
    found, time = torch.empty_like(inverse), inverse.shape[-1]
    if inverse.numel():
        blocks, rows = (1, BLOCK) if time <= BLOCK else (1, 2 * BLOCK) if time <= 2 * BLOCK else (2, 2 * BLOCK)
        warps = 4 if blocks == 2 else rows // BLOCK
        with torch.cuda.device_of(inverse):  # type: ignore[no-untyped-call]
            _differentiate[(inverse.numel() // time**2,)](
                inverse, gradient, found, TIME=time, STEPS=steps, BLOCKS=blocks, N=rows, num_warps=warps
            )
    return found


def _strided(matrices: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Matrices [.., T, T] one after the other, each with these strides: as they are, often transposed, or copied."""
    size, time = 1, matrices.shape[-1]
    for axis in reversed(range(matrices.dim() - 2)):
        if matrices.shape[axis] > 1 and matrices.stride(axis) != size * time**2:
            return matrices.contiguous(), (time, 1)
        size *= matrices.shape[axis]
    return matrices, (matrices.stride(-2), matrices.stride(-1))
