"""Kernels of this package as operators that torch.compile puts into its graphs as they are, with their derivatives.

An operator's derivative is asked for where gradients are differentiated: a model that moves by its own loss learns
through the gradients that it moves by. In any other backward pass none is recorded, and nothing is kept for it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

LARGEST = 64
"""Rows of the largest triangle that is inverted in the registers of one program."""
HERE = find_spec("triton") is not None


def serves(like: Tensor) -> bool:
    """Whether kernels of this package can work on such a tensor: float32 on a CUDA device, with Triton installed."""
    return HERE and like.device.type == "cuda" and like.dtype is torch.float32


@torch.library.custom_op("nsam::unit_lower_inverse", mutates_args=(), device_types="cuda")
def unit_lower_inverse(lower: Tensor) -> Tensor:
    """(I + L)⁻¹ [.., T, T] for what lies below the diagonal of `lower`; float32, T at most `LARGEST`."""
    from nsam.backends.torch.on_chip.inverse import inverse  # Triton is imported where it is used

    return inverse(lower)


@unit_lower_inverse.register_fake
def _(lower: Tensor) -> Tensor:
    return lower.new_empty(lower.shape)


@torch.library.custom_op("nsam::unit_lower_inverse_backward", mutates_args=(), device_types="cuda")
def unit_lower_inverse_backward(inverse: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of `lower` [.., T, T]; zeros on and above its diagonal."""
    from nsam.backends.torch.on_chip.inverse import inverse_backward

    return inverse_backward(inverse, gradient)


@unit_lower_inverse_backward.register_fake
def _(inverse: Tensor, gradient: Tensor) -> Tensor:
    return inverse.new_empty(inverse.shape)


def _keep_inverse(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _slope(ctx: Any, gradient: Tensor) -> Tensor:
    """−(Xᵀ G Xᵀ) below the diagonal."""
    found: Tensor = unit_lower_inverse_backward(ctx.saved_tensors[0], gradient)
    return found


def _keep_both(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _slopes(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Of −(Xᵀ G Xᵀ) below the diagonal with respect to X and G, for V below the diagonal: −(G Xᵀ Vᵀ + Vᵀ Xᵀ G), −X V X.

    By products of torch, which can be differentiated again.
    """
    inverse, first = ctx.saved_tensors
    wants_inverse, wants_first = ctx.needs_input_grad
    with torch.autocast(inverse.device.type, enabled=False):  # the operator's own products are not narrowed either
        below = gradient.tril(-1)
        turned = (inverse @ below).mT  # Vᵀ Xᵀ
        of_inverse = -(first @ (below @ inverse).mT + turned @ first) if wants_inverse else None
        return of_inverse, -(inverse @ below @ inverse) if wants_first else None


unit_lower_inverse.register_autograd(_slope, setup_context=_keep_inverse)
unit_lower_inverse_backward.register_autograd(_slopes, setup_context=_keep_both)
