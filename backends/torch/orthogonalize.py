"""Functions on batches of matrices that rules apply, with gradients that stay finite at zero.

Shapes: x [..., rows, columns], every leading axis a batch of matrices. A vector is a 1 × n matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from nsam.backends.torch.runtime.functions import roomy

Scalar: TypeAlias = "float | Tensor"

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ORTHOGONALIZE_FLOOR = 1e-7
LARGE = 1 << 19
"""Entries from which a matrix fills a CPU and its caches alone: one product after the other is faster than a batch."""
ROOT_MEAN_SQUARE_FLOOR = 1e-12
NORMALIZE_FLOOR = 1e-6
MATRIX = (-2, -1)


def orthogonalize(x: Tensor, iterations: int = 5, *, products: torch.dtype | None = None) -> Tensor:
    """Push the singular values of each matrix towards 1 (Newton-Schulz, the σ of eq. 42).

    x [..., rows, columns] is divided by max(its Frobenius norm, 1e-7), then `iterations` times
    x ← a x + (b A + c A²) x with A = x xᵀ, on the side where A is smaller; in the precision of x, or of `products`.
    A matrix whose norm is no larger than that floor has no gradient: it would be 10⁷ times as large as elsewhere.
    """
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x
    y = _divided(y).reshape(-1, *y.shape[-2:]).to(products or x.dtype)
    apart = y.device.type == "cpu" and y.shape[-2] * y.shape[-1] >= LARGE
    y = torch.stack([_newton_schulz(z, int(iterations)) for z in y]) if apart else _newton_schulz(y, int(iterations))
    return (y.mT if tall else y).reshape(x.shape).to(x.dtype)


def _divided(x: Tensor) -> Tensor:
    """Each matrix divided by max(its Frobenius norm, 1e-7), without gradient where it is the floor that divides."""
    size = _size(x)
    y = x / size.clamp_min(ORTHOGONALIZE_FLOOR)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return y
    return torch.where(size > ORTHOGONALIZE_FLOOR, y, y.detach())


def _newton_schulz(y: Tensor, iterations: int) -> Tensor:
    """The iterations, for a matrix [rows, columns] or a batch of them, with rows ≤ columns."""
    a, b, c = COEFFICIENTS
    add: Callable[..., Tensor] = torch.addmm if y.dim() == 2 else torch.baddbmm
    for _ in range(iterations):
        gram = y @ y.mT
        square = add(gram, gram, gram, beta=b, alpha=c)  # sums inside the products: no passes of their own
        y = add(y, square, y, beta=a)
    return y


def orthogonalize_each(
    xs: Sequence[Tensor], iterations: int = 5, *, products: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """Orthogonalise several batches, in one call where they have one shape."""
    if len({x.shape for x in xs}) > 1:
        return tuple(orthogonalize(x, iterations, products=products) for x in xs)
    return orthogonalize(torch.stack(tuple(xs)), iterations, products=products).unbind(0)


def sqrt(x: Scalar) -> Scalar:
    """Square root of a number or a tensor; its gradient at 0 is 0."""
    if not isinstance(x, Tensor):
        return math.sqrt(x)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x.sqrt()
    zero = x == 0
    return torch.where(zero, 0, torch.where(zero, 1, x).sqrt())


def power(x: Scalar, exponent: Scalar) -> Scalar:
    """x to a power; for a power between 0 and 1 the gradient at 0 is 0."""
    if not isinstance(x, Tensor) or isinstance(exponent, Tensor) or not 0 < exponent < 1:
        return x**exponent
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x**exponent
    zero = x == 0
    return torch.where(zero, 0, torch.where(zero, 1, x) ** exponent)


def inverse_or_zero(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0 (also in the gradient)."""
    zero = x == 0
    return torch.where(zero, 0, torch.where(zero, 1, x).reciprocal())


def norm(x: Tensor) -> Tensor:
    """Frobenius norm of each matrix: [..., rows, columns] -> [..., 1, 1]; its gradient at 0 is 0."""
    return _size(x).to(x.dtype)


def _size(x: Tensor) -> Tensor:
    """`norm`, in float32 where x is float16, whose squares have no room in it."""
    return _tensor(sqrt(roomy(x).square().sum(MATRIX, keepdim=True)))


def normalize(x: Tensor) -> Tensor:
    """Each matrix divided by max(its Frobenius norm, 1e-6)."""
    return (x / _size(x).clamp_min(NORMALIZE_FLOOR)).to(x.dtype)


def root_mean_square(x: Tensor) -> Tensor:
    """Root of the mean square of each matrix's entries, at least 1e-12: [..., rows, columns] -> [..., 1, 1]."""
    size = _tensor(sqrt(roomy(x).square().mean(MATRIX, keepdim=True)))
    return size.clamp_min(ROOT_MEAN_SQUARE_FLOOR).to(x.dtype)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum of the products of the entries of each pair of matrices: -> [..., 1, 1]."""
    return (roomy(x) * roomy(y)).sum(MATRIX, keepdim=True).to(torch.promote_types(x.dtype, y.dtype))


def as_tensor(x: Scalar, like: Tensor) -> Tensor:
    """Return a number as a tensor of the dtype and device of `like`, filled in there; tensors as they are."""
    return x if isinstance(x, Tensor) else torch.full((), x, dtype=like.dtype, device=like.device)


def identity(like: Tensor) -> Tensor:
    """Identity matrix of the last two axes of `like`."""
    return torch.eye(like.shape[-2], like.shape[-1], dtype=like.dtype, device=like.device)


def _tensor(x: Scalar) -> Tensor:
    assert isinstance(x, Tensor)
    return x
