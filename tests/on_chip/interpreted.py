"""Kernels against float64, in Triton's interpreter: run by `test_inverse.py` in a process that begins with it.

Triton decides when it is imported whether kernels are interpreted.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from nsam.backends.torch.on_chip.inverse import inverse, inverse_backward

SIZES = (1, 2, 5, 16, 17, 32, 33, 64)


def exact(lower: Tensor) -> Tensor:
    wide = lower.double().tril(-1)
    return torch.linalg.inv(torch.eye(lower.shape[-1], dtype=torch.float64) + wide)


def far(found: Tensor, wanted: Tensor) -> float:
    assert found.dtype is torch.float32
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def check(device: str = "cpu") -> None:
    """Both kernels at all sizes; what lies on and above the diagonal must not matter, not even NaN."""
    for time in SIZES:
        torch.manual_seed(time)
        lower = 0.3 * torch.randn(2, 2, time, time)
        above = torch.ones(time, time, dtype=torch.bool).triu()
        given = lower.masked_fill(above, torch.nan).to(device)
        found = inverse(given).cpu()
        wanted = exact(lower)
        assert far(found, wanted) < 1e-6, (time, far(found, wanted))
        assert torch.equal(found, found.tril()), time
        for other in (given.mT.contiguous().mT, given.transpose(0, 1).contiguous().transpose(0, 1)):
            assert torch.equal(inverse(other).cpu(), found), time
        gradient = torch.randn_like(lower)
        slope = inverse_backward(found.to(device), gradient.mT.contiguous().mT.to(device)).cpu()
        expected = -(wanted.mT @ gradient.double() @ wanted.mT).tril(-1)
        assert far(slope, expected) < 2e-6, (time, far(slope, expected))
    assert inverse(torch.empty(0, 16, 16, device=device)).shape == (0, 16, 16)
    assert inverse_backward(*2 * [torch.empty(0, 16, 16, device=device)]).shape == (0, 16, 16)


if __name__ == "__main__":
    check(*sys.argv[1:])
