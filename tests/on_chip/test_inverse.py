"""The kernels of triangles: in Triton's interpreter on a CPU, and on a GPU inside of a compiled function."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nsam.backends.torch.on_chip import operators
from nsam.backends.torch.on_chip.graph_pass import kept_inverses
from nsam.backends.torch.runtime import triangular
from nsam.backends.torch.runtime.compilation import CompilerSettings
from nsam.compiler import explain_passes

SCRIPT = Path(__file__).with_name("interpreted.py")


def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    told = subprocess.run(
        [sys.executable, str(SCRIPT)], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr


def test_explain_knows_how_large_a_kernel_s_triangle_can_be() -> None:
    assert explain_passes.KERNEL_ROWS == operators.LARGEST


def test_kernels_are_for_cuda_and_float32_only() -> None:
    assert not operators.serves(torch.empty(2, 2))
    assert not operators.serves(torch.empty(2, 2, device="meta"))


@pytest.mark.parametrize("time", [1, 16, 64, 65, 100, 150])
def test_larger_triangles_are_joined_from_what_a_kernel_inverts(time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def inverse(lower: Tensor) -> Tensor:
        seen.append(lower.shape[-1])
        return torch.linalg.inv(torch.eye(lower.shape[-1], dtype=lower.dtype) + lower.tril(-1))

    def backward(inverse: Tensor, gradient: Tensor) -> Tensor:
        seen.append(-inverse.shape[-1])
        return -(inverse.mT @ gradient @ inverse.mT).tril(-1)

    torch.manual_seed(0)
    lower = (0.1 * torch.randn(2, 3, time, time, dtype=torch.float64)).tril(-1).requires_grad_()
    weight = torch.randn_like(lower)
    wanted = triangular.unit_lower_inverse(lower)
    (slope,) = torch.autograd.grad((wanted * weight).sum(), lower)
    monkeypatch.setattr(operators, "serves", lambda like: True)
    monkeypatch.setattr(operators, "unit_lower_inverse", inverse)
    monkeypatch.setattr(operators, "unit_lower_inverse_backward", backward)
    found = triangular.unit_lower_inverse(lower)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), lower)[0], slope, rtol=1e-10, atol=1e-10)
    assert seen == ([time, -time] if time <= 64 else [64])


@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
def test_an_inverse_is_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch, quick_kernels: None) -> None:
    seen: list[str] = []

    def inverse(lower: Tensor) -> Tensor:
        seen.append("forward")
        return torch.linalg.inv(torch.eye(lower.shape[-1]) + lower.tril(-1)).contiguous()

    def backward(inverse: Tensor, gradient: Tensor) -> Tensor:
        seen.append("backward")
        return -(inverse.mT @ gradient @ inverse.mT).tril(-1)

    def used(x: Tensor, w: Tensor) -> Tensor:
        return (torch.tanh(triangular.unit_lower_inverse(torch.sin(x)) * w) * w).sum()

    operators.unit_lower_inverse.register_kernel("cpu")(inverse)
    operators.unit_lower_inverse_backward.register_kernel("cpu")(backward)
    monkeypatch.setattr(operators, "serves", lambda like: True)
    lower, weight = torch.randn(3, 8, 8).tril(-1).requires_grad_(), torch.randn(3, 8, 8).requires_grad_()
    with CompilerSettings(recompute=True):
        options = {"joint_custom_post_pass": kept_inverses()}
        torch.compile(used, fullgraph=True, options=options)(lower, weight).backward()
    assert seen == ["forward", "backward"]


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("time", [1, 2, 16, 48, 64, 100, 200])
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(time: int, compiled: bool) -> None:
    torch.manual_seed(0)
    lower = (0.2 * torch.randn(4, 3, time, time)).tril(-1)
    weight = torch.randn_like(lower)

    def both(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        run = torch.compile(triangular.unit_lower_inverse, fullgraph=True) if compiled and x.is_cuda else None
        y = (run or triangular.unit_lower_inverse)(x)
        return y.detach(), torch.autograd.grad((y * w).sum(), x)[0]

    exact = both(lower.double(), weight.double())
    for found, wanted in zip(both(lower.cuda(), weight.cuda()), exact, strict=True):
        error = (found.cpu().double() - wanted).norm() / wanted.norm().clamp_min(1e-30)
        assert error < 1e-5
