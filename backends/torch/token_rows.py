"""Functions on the rows of a step's tokens that rules apply, each token by itself.

Shapes: rows x [..., n, features] of n tokens, numbers [..., n, 1], weights [..., n, 1]; leading axes are batches of
matrices. A sum over tokens that becomes a matrix of the host is [..., out, in].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from nsam.backends.torch import orthogonalize as kernels

AT_ONCE = 1 << 24
"""Entries that `tokens_whole` computes at a time: as many tokens as have matrices of so many entries in all."""


def tokens_product(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Σ w a bᵀ over tokens, one product of matrices: -> [..., features of left, features of right]."""
    return (weight * left).mT @ right


def tokens_average(weight: Tensor, x: Tensor) -> Tensor:
    """Σ w x over tokens: [..., n, features] -> [..., 1, features]."""
    return (weight * x).sum(-2, keepdim=True)


def tokens_whole(
    function: Callable[..., Tensor], weight: Tensor, rows: Sequence[Tensor], once: Sequence[Any]
) -> Tensor:
    """Σ w f over tokens, f computed for some tokens at a time.

    `function(*rows, *once)` takes tokens as a batch: rows [..., n, 1, features] and matrices [..., 1, out, in]; it
    returns f [..., n, a, b]. The first of `once` is the host, whose size says how many tokens fit.
    """
    fixed = [x.unsqueeze(-3) if isinstance(x, Tensor) and x.dim() >= 2 else x for x in once]
    size = max(1, AT_ONCE // once[0].numel())
    total: Tensor | None = None
    for start in range(0, weight.shape[-2], size):
        here = slice(start, start + size)
        values = function(*(x[..., here, :].unsqueeze(-2) for x in rows), *fixed)
        added = (weight[..., here, :].unsqueeze(-1) * values).sum(-3)
        total = added if total is None else total + added
    assert total is not None
    return total


def row_dot(x: Tensor, y: Tensor) -> Tensor:
    """Dot product of each token's vectors: -> [..., n, 1]."""
    return (x * y).sum(-1, keepdim=True)


def row_norm(x: Tensor) -> Tensor:
    """Length of each token's vector: -> [..., n, 1]."""
    return kernels.norm(x.unsqueeze(-2)).squeeze(-2)


def row_root_mean_square(x: Tensor) -> Tensor:
    """Root of the mean square of each token's vector: -> [..., n, 1]."""
    return kernels.root_mean_square(x.unsqueeze(-2)).squeeze(-2)


def row_sum(x: Tensor) -> Tensor:
    """Sum of each token's vector: -> [..., n, 1]."""
    return x.sum(-1, keepdim=True)


def row_mean(x: Tensor) -> Tensor:
    """Mean of each token's vector: -> [..., n, 1]."""
    return x.mean(-1, keepdim=True)


def outer_products(rows: Tensor, width: int) -> Tensor:
    """Σ w x xᵀ over tokens, [..., in, in], of rows [..., n, in + 1 + out] of input, weight and error; `width` is in."""
    key = rows[..., :width]
    return tokens_product(rows[..., width : width + 1], key, key)


TOKEN_KERNELS = (
    tokens_product,
    tokens_average,
    tokens_whole,
    row_dot,
    row_norm,
    row_root_mean_square,
    row_sum,
    row_mean,
)
"""What emitted steps over tokens call."""
