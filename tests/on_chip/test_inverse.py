"""The kernels of triangles: in Triton's interpreter on a CPU, and on a GPU inside of a compiled function."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nsam
from nsam.backends.torch.on_chip import operators
from nsam.backends.torch.on_chip.graph_pass import kept_inverses
from nsam.backends.torch.runtime import triangular
from nsam.backends.torch.runtime.compilation import CompilerSettings
from nsam.compiler import explain_passes

SCRIPT = Path(__file__).with_name("interpreted.py")
END_TO_END = Path(__file__).resolve().parents[2] / "examples" / "end_to_end" / "end_to_end.nsam"


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators as they are registered, their kernels replaced by products of torch; returns which were called."""
    seen: list[str] = []

    def inverse(lower: Tensor) -> Tensor:
        seen.append("forward")
        eye = torch.eye(lower.shape[-1], dtype=lower.dtype)
        return torch.linalg.inv(eye + lower.tril(-1)).contiguous()

    def backward(inverse: Tensor, gradient: Tensor) -> Tensor:
        seen.append("backward")
        with torch.autocast("cpu", enabled=False):  # a kernel knows nothing of it
            return -(inverse.mT @ gradient @ inverse.mT).tril(-1)

    operators.unit_lower_inverse.register_kernel("cpu")(inverse)
    operators.unit_lower_inverse_backward.register_kernel("cpu")(backward)
    monkeypatch.setattr(operators, "serves", lambda like: True)
    return seen


def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    told = subprocess.run(
        [sys.executable, str(SCRIPT)], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from nsam.backends.torch.on_chip import inverse as kernels

    entered, launched = list[Tensor](), list[tuple[Tensor, Tensor]]()

    @contextmanager
    def device_of(x: Tensor) -> Iterator[None]:
        entered.append(x)
        yield
        entered.pop()

    class Kernel:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda x, *given, **sizes: launched.append((x, entered[-1]))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("_invert", "_differentiate"):
        monkeypatch.setattr(kernels, name, Kernel())
    x = torch.zeros(2, 8, 8)
    kernels.inverse(x)
    kernels.inverse_backward(x, x)
    assert len(launched) == 2
    assert all(given is current for given, current in launched)


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
def test_an_inverse_is_kept_for_the_backward_pass(on_a_cpu: list[str], quick_kernels: None) -> None:
    def used(x: Tensor, w: Tensor) -> Tensor:
        return (torch.tanh(triangular.unit_lower_inverse(torch.sin(x)) * w) * w).sum()

    lower, weight = torch.randn(3, 8, 8).tril(-1).requires_grad_(), torch.randn(3, 8, 8).requires_grad_()
    with CompilerSettings(recompute=True):
        options = {"joint_custom_post_pass": kept_inverses()}
        torch.compile(used, fullgraph=True, options=options)(lower, weight).backward()
    assert on_a_cpu == ["forward", "backward"]


@pytest.mark.parametrize("time", [1, 5, 70])
def test_gradients_of_a_triangle_have_gradients(time: int, on_a_cpu: list[str]) -> None:
    torch.manual_seed(0)
    lower = (0.2 * torch.randn(2, time, time, dtype=torch.float64)).tril(-1).requires_grad_()
    assert torch.autograd.gradcheck(triangular.unit_lower_inverse, lower, fast_mode=True)
    assert torch.autograd.gradgradcheck(triangular.unit_lower_inverse, lower, fast_mode=True)
    assert "forward" in on_a_cpu


def test_the_operators_have_derivatives_of_their_own(on_a_cpu: list[str]) -> None:
    torch.manual_seed(0)
    lower = (0.5 * torch.randn(2, 4, 4, dtype=torch.float64)).tril(-1).requires_grad_()
    gradient = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)

    def slope(lower: Tensor, gradient: Tensor) -> Tensor:
        return operators.unit_lower_inverse_backward(operators.unit_lower_inverse(lower), gradient)

    for function, given in ((operators.unit_lower_inverse, (lower,)), (slope, (lower, gradient))):
        assert torch.autograd.gradcheck(function, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, given, fast_mode=True)
    # Under autocast the derivative is as precise as the operator.
    wanted = torch.autograd.grad(slope(lower.float(), gradient.float()).square().sum(), (lower, gradient))
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(slope(lower.float(), gradient.float()).square().sum(), (lower, gradient))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_backward_pass_keeps_the_inverse_and_nothing_else(on_a_cpu: list[str]) -> None:
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    lower = torch.randn(2, 8, 8).tril(-1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        found = triangular.unit_lower_inverse(lower)
        (found * 2.0).sum().backward()
    assert len(kept) == 1
    assert kept[0].data_ptr() == found.data_ptr()
    assert on_a_cpu == ["forward", "backward"]


def test_a_model_learns_through_the_gradients_of_a_triangle(
    on_a_cpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients() -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = nsam.compile(program, "nested", dim=8, vocab=16).double()
        scores, _ = module(tokens)
        nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}

    program = nsam.load(END_TO_END)
    tokens = torch.randint(0, 16, (2, 30), generator=torch.Generator().manual_seed(1))
    found = gradients()
    assert {"forward", "backward"} <= set(on_a_cpu)
    monkeypatch.setattr(operators, "serves", lambda like: False)
    wanted = gradients()
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


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


@pytest.mark.gpu
@pytest.mark.parametrize("time", [5, 48, 100])
def test_gradients_of_gradients_on_a_gpu(time: int) -> None:
    torch.manual_seed(0)
    lower = (0.2 * torch.randn(4, 3, time, time)).tril(-1)
    weight = torch.randn_like(lower)

    def second(x: Tensor, w: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad((triangular.unit_lower_inverse(x) * w).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    wanted = second(lower.double(), weight.double())
    error = (second(lower.cuda(), weight.cuda()).cpu().double() - wanted).norm() / wanted.norm()
    assert error < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU at most")
def test_on_a_gpu_that_is_not_the_current_one() -> None:
    torch.manual_seed(0)
    lower = (0.2 * torch.randn(4, 48, 48)).tril(-1)
    given = lower.to("cuda:1").requires_grad_()
    assert torch.cuda.current_device() == 0
    found = triangular.unit_lower_inverse(given)
    torch.testing.assert_close(found.cpu(), triangular.unit_lower_inverse(lower), rtol=1e-4, atol=1e-4)
    found.sum().backward()
    assert given.grad is not None
    assert bool(given.grad.isfinite().all())
