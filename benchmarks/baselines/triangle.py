"""Decays between the tokens of a chunk, and the inverse of a unit lower triangular matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Decay(NamedTuple):
    """Decay over a chunk of C tokens: gamma, gamma_before [.., C, 1] from its start to token t and t - 1, before
    [.., C, C] from s to t - 1 (strictly lower), last [.., C, 1] from s to the chunk's end.
    """

    gamma: Tensor
    gamma_before: Tensor
    before: Tensor
    last: Tensor

    @classmethod
    def of(cls, log_keep: Tensor) -> Decay:
        """From the logarithms of the retention, [.., C, 1]."""
        total = log_keep.cumsum(-2)
        earlier = total - log_keep
        time = total.shape[-2]
        strict = torch.ones(time, time, dtype=torch.bool, device=total.device).tril(-1)
        between = torch.exp((earlier - total.mT).masked_fill(~strict, -torch.inf))
        return cls(torch.exp(total), torch.exp(earlier), between, torch.exp(total[..., -1:, :] - total))

    def chunk(self, i: int) -> Decay:
        """Chunk i of decays [B, H, chunks, C, .]."""
        return Decay(*(z[:, :, i] for z in self))

    def unsqueeze(self, axis: int) -> Decay:
        """With an axis of size 1 put in."""
        return Decay(*(z.unsqueeze(axis) for z in self))


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lower: Tensor) -> Tensor:
        time = lower.shape[-1]
        inverse = torch.eye(time, dtype=lower.dtype, device=lower.device) - lower
        power, reach = lower, 2
        while reach < time:
            power = power @ power
            inverse = torch.baddbmm(inverse.flatten(0, -3), inverse.flatten(0, -3), power.flatten(0, -3)).view_as(lower)
            reach *= 2
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse.mT @ gradient @ inverse.mT).tril(-1)


def unit_lower_inverse(lower: Tensor) -> Tensor:
    """(I + L)⁻¹ = (I − L)(I + L²)(I + L⁴)… for L [.., C, C] strictly lower, in float32 or wider."""
    with torch.autocast(lower.device.type, enabled=False):
        inverse: Tensor = _Inverse.apply(lower.to(torch.promote_types(lower.dtype, torch.float32)))  # type: ignore[no-untyped-call]
        return inverse
