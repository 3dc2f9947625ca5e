"""NumPy and torch agree on every operation: values, and gradients of the run-time tape against autograd."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nsam.backends.reference import functions as F
from nsam.backends.reference.arrays import Arrays
from nsam.backends.reference.numpy_arrays import NumpyArrays
from nsam.backends.reference.structures import convolve
from nsam.backends.reference.torch_arrays import TorchArrays

VECTOR, OTHER = [0.7, -1.3, 2.1, 0.4], [1.5, 0.6, -0.8, -2.0]
MATRIX, SQUARE = [[0.7, -1.3, 2.1], [0.4, 0.9, -0.2]], [[0.3, -1.1], [0.8, 0.5]]
POSITIVE = [0.7, 1.3, 2.1, 0.4]

CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "add": (lambda o, a, b: o.add(a, b), (VECTOR, 2.0)),
    "sub": (lambda o, a, b: o.sub(a, b), (3.0, VECTOR)),
    "mul": (lambda o, a, b: o.mul(a, b), (MATRIX, 1.7)),
    "mul rows": (lambda o, a, b: o.mul(a, b), (MATRIX, [1.0, 2.0, -3.0])),
    "div": (lambda o, a, b: o.div(a, b), (VECTOR, OTHER)),
    "div by number": (lambda o, a, b: o.div(a, b), (VECTOR, 1.7)),
    "square": (lambda o, a: o.power(a, 2.0), (VECTOR,)),
    "power 0": (lambda o, a: o.mul(o.power(a, 0.0), a), (VECTOR,)),
    "power 1.5": (lambda o, a: o.power(a, 1.5), (POSITIVE,)),
    "matrix matrix": (lambda o, a, b: o.matmul(a, b), (SQUARE, MATRIX)),
    "matrix vector": (lambda o, a, b: o.matmul(a, b), (MATRIX, [0.5, -1.0, 2.0])),
    "vector matrix": (lambda o, a, b: o.matmul(a, b), ([0.5, -1.0], MATRIX)),
    "vector vector": (lambda o, a, b: o.matmul(a, b), (VECTOR, OTHER)),
    "exp": (lambda o, a: o.exp(a), (VECTOR,)),
    "log": (lambda o, a: o.log(a), (POSITIVE,)),
    "sin": (lambda o, a: o.sin(a), (VECTOR,)),
    "cos": (lambda o, a: o.cos(a), (VECTOR,)),
    "tanh": (lambda o, a: o.tanh(a), (VECTOR,)),
    "sigmoid": (lambda o, a: o.sigmoid(a), ([-800.0, -1.0, 0.3, 800.0],)),
    "softplus": (lambda o, a: o.softplus(a), ([-800.0, -1.0, 0.3, 800.0],)),
    "erf": (lambda o, a: o.erf(a), (VECTOR,)),
    "absolute": (lambda o, a: o.absolute(a), ([0.0, -2.0, 3.0],)),
    "sign": (lambda o, a: o.add(o.sign(a), a), ([0.0, -2.0, 3.0],)),
    "sqrt": (lambda o, a: o.sqrt(a), ([0.0, 1.5, 3.0],)),
    "maximum": (lambda o, a, b: o.maximum(a, b), (VECTOR, [0.7, 0.0, 3.0, 0.4])),
    "maximum of number": (lambda o, a, b: o.maximum(a, b), (MATRIX, 0.5)),
    "minimum": (lambda o, a, b: o.minimum(a, b), (VECTOR, [0.7, 0.0, 3.0, 0.4])),
    "total": (lambda o, a: o.total(a), (MATRIX,)),
    "total_last": (lambda o, a: o.total_last(a), (MATRIX,)),
    "transpose": (lambda o, a: o.transpose(a), (MATRIX,)),
    "reshape": (lambda o, a: o.reshape(a, (3, 2)), (MATRIX,)),
    "copy": (lambda o, a: o.copy(a), (MATRIX,)),
    "take row": (lambda o, a: o.take(a, 1), (MATRIX,)),
    "take slice": (lambda o, a: o.take(a, slice(1, 3)), (VECTOR,)),
    "stack": (lambda o, a, b: o.stack([a, b, a]), (VECTOR, OTHER)),
    "concatenate": (lambda o, a, b: o.concatenate([a, b]), (VECTOR, [1.0, 2.0])),
    "relu": (F.relu, ([-1.0, 0.0, 2.0],)),
    "silu": (F.silu, (VECTOR,)),
    "gelu": (F.gelu, (VECTOR,)),
    "mean": (F.mean, (MATRIX,)),
    "norm": (F.norm, (MATRIX,)),
    "norm of zero": (F.norm, ([0.0, 0.0],)),
    "root_mean_square": (F.root_mean_square, (MATRIX,)),
    "softmax": (F.softmax, (MATRIX,)),
    "normalize": (F.normalize, (MATRIX,)),
    "normalize below the floor": (F.normalize, ([1e-7, -2e-7],)),
    "rope": (lambda o, a: F.rope(o, a, 5), (VECTOR,)),
    "outer": (F.outer, (VECTOR, [1.0, -2.0])),
    "outer of rows": (F.outer, (MATRIX, SQUARE)),
    "outer with number": (F.outer, (VECTOR, 2.0)),
    "matmul with number": (F.matmul, (VECTOR, 2.0)),
    "orthogonalize wide": (lambda o, a: F.orthogonalize(o, a, 3), (MATRIX,)),
    "orthogonalize tall": (lambda o, a: F.orthogonalize(o, o.transpose(a), 3), (MATRIX,)),
    "orthogonalize vector": (lambda o, a: F.orthogonalize(o, a, 3), (VECTOR,)),
    "clip": (F.clip, (VECTOR, -1.0, 1.0)),
    "convolve": (lambda o, w, a, b: convolve(o, {"weight": w}, [a, b]), (MATRIX, [1.0, 2.0], [0.5, -1.0])),
}


@pytest.mark.parametrize("name", CASES)
def test_tape_agrees_with_autograd(name: str) -> None:
    function, values = CASES[name]
    tape, auto = _run(NumpyArrays(), function, values), _run(TorchArrays(), function, values)
    for mine, theirs in zip(tape, auto, strict=True):
        np.testing.assert_allclose(np.asarray(mine), theirs.detach().numpy(), rtol=1e-12, atol=1e-12)


def _run(ops: Arrays, function: Callable[..., Any], values: tuple[Any, ...]) -> list[Any]:
    return _inner(ops, function, [ops.array(v) for v in values])


def _inner(ops: Arrays, function: Callable[..., Any], at: list[Any]) -> list[Any]:
    """Return the result, the gradient of a weighted sum of it, and the gradient at the result."""

    def loss(variables: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        result = function(ops, *variables)
        size = int(np.prod(ops.shape(result)))
        weights = ops.reshape(ops.array(np.cos(np.arange(size))), ops.shape(result))
        return ops.total(ops.mul(result, weights)), [result], [result]

    gradients, intermediates, kept = ops.derivatives(loss, at)
    return [*kept, *gradients, *intermediates]


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_gradients_agree_with_autograd(name: str) -> None:
    """The gradient of |inner gradient|² / 2 and of the rest that `derivatives` returns, through the inner gradient."""
    function, given = CASES[name]
    found: list[list[Any]] = []
    for ops in (NumpyArrays(outer=True), TorchArrays()):
        with np.errstate(all="ignore"):
            leaves = [ops.leaf(ops.array(v)) for v in given]
            parts = _inner(ops, function, leaves)
            total = ops.array(0.0)
            for part in parts:
                total = ops.add(total, ops.mul(ops.array(0.5), ops.total(ops.mul(part, part))))
            found.append([ops.detach(g) for g in ops.gradient(total, leaves)])
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(np.asarray(mine), theirs.numpy(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ops", [NumpyArrays(), TorchArrays()], ids=["numpy", "torch"])
def test_a_root_hides_no_nan(ops: Arrays) -> None:
    with np.errstate(all="ignore"):
        found = np.asarray(ops.detach(ops.sqrt(ops.array([math.nan, -1.0, 0.0, 4.0]))))
    np.testing.assert_array_equal(found, [math.nan, math.nan, 0.0, 2.0])


def test_every_operation_has_a_case() -> None:
    covered = {"array", "zeros", "shape", "detach", "derivatives", "largest_last", "leaf", "gradient", "known"}
    source = "".join(inspect.getsource(f) for f, _ in CASES.values() if f.__name__ == "<lambda>")
    names = {name for name, _ in inspect.getmembers(Arrays, inspect.isfunction) if not name.startswith("_")}
    assert not {name for name in names - covered if f"o.{name}(" not in source}


def test_derivatives_hold_what_is_closed_over_constant_but_not_outside() -> None:
    """d/dw of the inner loss sees only the copy of w; the outer gradient goes through key and value."""
    ops = TorchArrays()
    w = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    value = 2 * w

    def loss(variables: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        error = variables[0] - value
        return 0.5 * error * error, [], []

    (inner,), _, _ = ops.derivatives(loss, [w])
    assert inner.item() == pytest.approx(3.0 - 6.0)
    (outer,) = torch.autograd.grad(inner, w)
    assert outer.item() == pytest.approx(1.0 - 2.0)


def test_derivatives_without_outer_gradients_are_plain() -> None:
    w = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        (inner,), _, (kept,) = TorchArrays().derivatives(lambda v: (v[0] ** 2, [], [v[0] * 2]), [w])
    assert inner.item() == 6.0
    assert not inner.requires_grad
    assert not kept.requires_grad


def test_a_derivative_of_a_loss_that_does_not_depend_is_zero() -> None:
    for ops in (NumpyArrays(), TorchArrays()):
        (gradient,), _, _ = ops.derivatives(lambda v, ops=ops: (ops.array(1.0), [], []), [ops.array([1.0, 2.0])])
        assert np.array_equal(np.asarray(gradient), [0.0, 0.0])


def test_sqrt_has_no_infinite_gradient_at_zero() -> None:
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    TorchArrays().sqrt(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("ops", [NumpyArrays(), TorchArrays()])
def test_a_number_is_known_where_no_gradient_is_asked_for(ops: Arrays) -> None:
    assert ops.known(ops.array(0.5)) == 0.5
    assert ops.known(ops.array(VECTOR)) is None
    assert ops.known(ops.leaf(ops.array(0.5))) is None


def test_functions_against_torch() -> None:
    ops, x = TorchArrays(), torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    nn = torch.nn.functional
    assert torch.allclose(F.gelu(ops, x), nn.gelu(x), atol=1e-15)
    assert torch.allclose(F.silu(ops, x), nn.silu(x), atol=1e-15)
    assert torch.allclose(F.softmax(ops, x), x.softmax(-1), atol=1e-15)
    assert torch.allclose(F.normalize(ops, x), nn.normalize(x, dim=-1), atol=1e-15)


def test_rope_is_a_rotation_by_complex_numbers() -> None:
    x = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    turned = torch.view_as_complex(torch.stack([x[:3], x[3:]], -1))
    turned = turned * torch.exp(1j * 7 * 10000.0 ** (-torch.arange(3, dtype=torch.float64) / 3))
    expected = torch.cat([turned.real, turned.imag])
    assert torch.allclose(F.rope(TorchArrays(), x, 7), expected, atol=1e-14)
    assert torch.equal(F.rope(TorchArrays(), x, 0), x)


def test_orthogonalize_moves_singular_values_towards_one() -> None:
    matrix = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = F.orthogonalize(TorchArrays(), matrix, 5)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    # The quintic acts on singular values alone: the same polynomial, on scalars.
    s = torch.linalg.svdvals(matrix) / matrix.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert torch.allclose(found, u @ torch.diag(s) @ v, atol=1e-10)
    assert torch.all((s > 0.6) & (s < 1.3))
