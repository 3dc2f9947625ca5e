"""Kernels of this package as operators that torch.compile puts into its graphs as they are."""

from __future__ import annotations

from importlib.util import find_spec

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
