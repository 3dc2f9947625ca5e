"""Parameters move together: one batch a shape, no wait for the device, the same path as alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nsam.backends.torch import optim_batches
from nsam.backends.torch.optim import optimizer


class Operations(TorchDispatchMode):
    """Counts what reaches the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.name()] += 1
        return function(*args, **(kwargs or {}))


def operations(use: Any, problem: Any, steps: int) -> Counter[str]:
    parameters = problem.parameters()
    made = optimizer(use, parameters)
    problem.run(made, parameters, range(1))
    with Operations() as seen:
        problem.run(made, parameters, range(1, steps))
    return seen.counts


@pytest.mark.parametrize("name", ["adamw", "muon", "m3"])
def test_steps_never_wait_for_a_value(name: str, problem_of: Any, std: Any) -> None:
    counts = operations(std(name, lr=0.1), problem_of([(3, 5), (5,), (2, 3, 5)], torch.float32, 9), 9)
    assert counts["aten::copy_"] + counts["aten::_foreach_copy_"] > 0
    assert "aten::_local_scalar_dense" not in counts
    assert "aten::item" not in counts


def test_matrix_products_do_not_grow_with_the_number_of_matrices(problem_of: Any, std: Any) -> None:
    few, many = (
        operations(std("m3", lr=0.1, period=2), problem_of([(3, 5)] * n, torch.float32, 5), 5) for n in (2, 12)
    )
    for product, in_each in {"aten::bmm": 1, "aten::baddbmm": 2}.items():
        assert few[product] == many[product] == 4 * 5 * in_each


def test_elementwise_work_does_not_grow_with_the_number_of_tensors(problem_of: Any, std: Any) -> None:
    few, many = (operations(std("adamw", lr=0.1), problem_of([(3, 5), (4,)] * n, torch.float32, 3), 3) for n in (1, 6))
    assert few["aten::sqrt"] == many["aten::sqrt"] == 2


@pytest.mark.parametrize("small", [0, 12, 10**6])
def test_large_tensors_alone_take_the_same_path(
    small: int, problem: Any, distance: Any, std: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim_batches, "SMALL", small)
    mine, reference = problem.parameters(), problem.parameters()
    path = problem.run(optimizer(std("adamw", lr=0.02), mine), mine)
    assert distance(path, problem.run(torch.optim.AdamW(reference, lr=0.02), reference)) < 1e-12


@pytest.mark.parametrize("name", ["adamw", "m3"])
def test_a_transposed_parameter_moves_like_its_copy(name: str, std: Any) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(5, 3, dtype=torch.float64), torch.randn(9, 3, 5, dtype=torch.float64)
    ends = []
    for weight in (torch.nn.Parameter(start.mT), torch.nn.Parameter(start.mT.contiguous())):
        made = optimizer(std(name, lr=0.1), [weight])
        for gradient in gradients:
            weight.grad = gradient.clone()
            made.step()
        ends.append(weight.detach())
    assert not ends[0].is_contiguous()
    torch.testing.assert_close(ends[0], ends[1])


def test_half_precision_parameters_keep_their_precision(std: Any) -> None:
    weight = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    made = optimizer(std("m3", lr=0.1), [weight])
    for _ in range(9):
        weight.grad = torch.ones_like(weight)
        made.step()
    assert {v.dtype for v in made.state[weight].values() if isinstance(v, torch.Tensor)} == {torch.bfloat16}
    assert torch.isfinite(weight).all()
    assert weight.detach().max() < 0.9
