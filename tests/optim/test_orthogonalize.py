"""Newton-Schulz and the functions with floors: values, batches, and gradients that stay finite at zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nsam.backends.torch.orthogonalize import (
    dot,
    inverse_or_zero,
    norm,
    normalize,
    orthogonalize,
    orthogonalize_each,
    root_mean_square,
    sqrt,
)


def draw(*shape: tuple[int, ...]) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1)])
def test_singular_values_go_near_one_in_the_same_directions(shape: tuple[int, ...]) -> None:
    x = draw(*shape)
    left, before, right = torch.linalg.svd(x, full_matrices=False)
    after = torch.diagonal(left.mT @ orthogonalize(x, 6) @ right.mT)
    assert before.max() / before.min() > 1.0 or min(shape) == 1
    assert after.min() > 0.6
    assert after.max() < 1.3


def test_leading_axes_are_a_batch() -> None:
    x = draw(2, 3, 5, 4)
    together = orthogonalize(x)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], orthogonalize(x[i, j]))


def test_a_tall_matrix_is_the_transpose_of_a_wide_one() -> None:
    torch.testing.assert_close(orthogonalize(draw(6, 2)), orthogonalize(draw(6, 2).mT).mT)


def test_several_batches_in_one_call() -> None:
    one, other = draw(2, 3, 4), 2 * draw(3, 3, 4)[:2]
    for found, x in zip(orthogonalize_each((one, other), 3), (one, other), strict=True):
        torch.testing.assert_close(found, orthogonalize(x, 3))


def test_the_norm_has_a_floor_of_1e_minus_7() -> None:
    x = torch.tensor([[1e-9]], dtype=torch.float64)
    torch.testing.assert_close(orthogonalize(x, 0), x / 1e-7)
    torch.testing.assert_close(normalize(x), x / 1e-6)
    assert root_mean_square(torch.zeros(2, 2)).item() == pytest.approx(1e-12)


@pytest.mark.parametrize("function", [orthogonalize, norm, normalize, root_mean_square, inverse_or_zero, sqrt])
def test_gradients_at_zero_are_finite(function: Any) -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    function(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_the_gradient_of_sqrt_at_zero_is_zero() -> None:
    x = torch.tensor([0.0, 4.0], requires_grad=True)
    sqrt(x).sum().backward()
    assert x.grad.tolist() == [0.0, 0.25]
    assert sqrt(4.0) == 2.0


@pytest.mark.parametrize("function", [orthogonalize, norm, normalize, root_mean_square])
def test_gradients(function: Any) -> None:
    assert torch.autograd.gradcheck(function, draw(2, 3, 4).requires_grad_())


def test_dot_sums_over_each_matrix() -> None:
    x, y = draw(2, 3, 4), draw(2, 3, 4) + 1
    assert dot(x, y).shape == (2, 1, 1)
    torch.testing.assert_close(dot(x, y).flatten(), torch.einsum("bij,bij->b", x, y))


def test_precision_is_the_parameters() -> None:
    assert orthogonalize(torch.ones(2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert orthogonalize(draw(2, 2)).dtype == torch.float64
    assert orthogonalize(draw(2, 2), products=torch.bfloat16).dtype == torch.float64


@pytest.mark.parametrize("entry", [300.0, 1e-4])
@pytest.mark.parametrize("function", [orthogonalize, norm, normalize, root_mean_square])
def test_squares_have_room_in_float16(function: Any, entry: float) -> None:
    """They end at 65504 there, and at 6e-8."""
    x = (entry * draw(2, 3, 4)).half()
    found = function(x)
    assert found.dtype == torch.float16
    torch.testing.assert_close(
        found.double(), function(x.double()), rtol=5e-3, atol=2e-2 * float(function is orthogonalize)
    )
