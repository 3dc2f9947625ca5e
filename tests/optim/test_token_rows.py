"""What backward passes bring of each token: input and error of every read, and nothing else changes."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from keyed_programs import (
    FOLDING,
    LINEAR,
    LOOP,
    MLP,
    REPEAT,
    SHARED,
    assert_same,
    compiled,
    data,
    outer_mean,
    run,
    squares,
)
from torch import Tensor, nn

import nsam
from nsam.backends.torch.runtime.replay import Plan, Schedule


def sums(module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Σ w key keyᵀ and Σ w err keyᵀ of all weights that have rows."""
    found = {}
    for name, rows in module.nsam_rows.items():
        width = module.get_parameter(name).shape[-1]
        key, weight, err = rows.grad.tensor_split((width, width + 1), -1)
        found[name] = (weight * key).mT @ key, (weight * err).mT @ key
    return found


@pytest.mark.parametrize("without", [(), "all"], ids=["passes", "no passes"])
@pytest.mark.parametrize("text", [*FOLDING.values(), MLP], ids=[*FOLDING, "heads"])
def test_errors_make_the_gradient_and_inputs_their_outer_product(text: str, without: Any) -> None:
    """Σ w err keyᵀ is the gradient of each weight, Σ w key keyᵀ what a module that sums up inputs brings."""
    module, other = compiled(text, keys="tokens", without=without), compiled(text, without=without)
    (x,) = data(1, 2, 19, 4)
    for one in (module, other):
        squares(one(x)[0], x).backward()
    found = sums(module)
    assert set(found) == set(dict(module.named_parameters()))
    for name, (square, gradient) in found.items():
        torch.testing.assert_close(gradient, module.get_parameter(name).grad, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(square, other.nsam_grams[name].grad, rtol=1e-11, atol=1e-12)


def test_gradients_and_values_stay_the_same() -> None:
    with_, without = compiled(MLP, keys="tokens"), compiled(MLP, keys=False)
    assert without.nsam_rows == {}
    assert with_.nsam_grams == {}
    (x,) = data(1, 3, 4, 4)
    for module in (with_, without):
        squares(module(x)[0], x).backward()
    for (name, one), (_, two) in zip(with_.named_parameters(), without.named_parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), name  # type: ignore[arg-type]
    assert list(with_.state_dict()) == list(without.state_dict())
    with torch.no_grad():
        assert torch.equal(with_(x)[0], without(x)[0])


def test_rows_are_input_share_and_error_of_each_token() -> None:
    module = compiled(LINEAR, keys="tokens")
    (x,) = data(1, 2, 3, 4)
    y, _ = module(x)
    y.retain_grad()
    squares(y, x).backward()
    key, weight, err = module.nsam_rows["w.weight"].grad.split((4, 1, 3), -1)
    assert torch.equal(key, x.flatten(0, 1))
    assert torch.equal(weight, torch.full_like(weight, 1 / 6))
    torch.testing.assert_close(err, 2 * (y - x[..., :3].sin()).detach().flatten(0, 1))


def test_a_row_that_stands_for_many_tokens_counts_for_each() -> None:
    module = compiled(SHARED, keys="tokens")
    with torch.no_grad():
        module.get_parameter("b.weight").normal_()
    (x,), (c,) = data(1, 3, 5, 4), data(1, 3, 4)
    module(x, c)[0].square().mean().backward()
    found, b = sums(module), module.get_parameter("b.weight").detach()
    torch.testing.assert_close(found["w.weight"][0], outer_mean(c))
    torch.testing.assert_close(found["u.weight"][0], torch.outer(b, b))
    for name, (_, gradient) in found.items():
        torch.testing.assert_close(gradient, module.get_parameter(name).grad)
        assert module.nsam_rows[name].grad.shape == (15, 9)


def test_gradients_through_the_state_bring_the_tokens_of_the_call_before() -> None:
    module = compiled(LOOP, keys="tokens")
    first, second = data(2, 2, 8, 4)
    _, state = module(first)
    module(second, state)[0].sum().backward()
    for name, (_, gradient) in sums(module).items():
        assert module.nsam_rows[name].grad.shape[0] % 32 == 0
        torch.testing.assert_close(gradient, module.get_parameter(name).grad)


def test_calls_without_a_backward_pass_leave_nothing() -> None:
    module = compiled(LOOP, keys="tokens")
    (x,) = data(1, 2, 8, 4)
    with torch.no_grad():
        module(x)
    module(x)  # an evaluation with gradients enabled
    gc.collect()
    assert all(rows.grad is None for rows in module.nsam_rows.values())


def test_a_frozen_weight_has_no_rows() -> None:
    module = compiled(MLP, keys="tokens")
    module.get_parameter("a.weight").requires_grad_(False)
    (x,) = data(1, 3, 4, 4)
    squares(module(x)[0], x).backward()
    assert module.nsam_rows["a.weight"].grad is None
    assert module.nsam_rows["b.w1"].grad is not None


def test_what_a_call_returns_may_be_changed_in_place() -> None:
    module = compiled(LINEAR, keys="tokens")
    (x,) = data(1, 2, 3, 4)
    y, _ = module(x)
    y.mul_(2).sum().backward()
    torch.testing.assert_close(sums(module)["w.weight"][1], 2 * x.sum((0, 1)).expand(3, 4))


@pytest.mark.parametrize(("passes", "group", "kept"), [(0, 2, 0), (0, 1, 2), (2, 0, 0), (3, 2, 1)])
def test_computed_again_in_the_backward_pass_it_is_the_same(passes: int, group: int, kept: int) -> None:
    (x,) = data(1, 2, 24, 4)
    found = []
    for plan in (Plan(Schedule()), Plan(Schedule(passes, group, kept))):
        module = compiled(REPEAT, keys="tokens")
        with plan.in_force():
            y, _ = module(x)
        squares(y, x).backward()
        grads = {name: p.grad for name, p in module.named_parameters()}
        found.append({**grads, **{f"{name}.tokens": rows.grad for name, rows in module.nsam_rows.items()}})
    assert found[0].keys() == found[1].keys()
    for name, one in found[0].items():
        assert one is not None, name
        two = found[1][name]
        # Reads come back in the order of the backward pass, which may differ.
        same = torch.equal(one, two) or torch.equal(one.sort(0).values, two.sort(0).values)
        assert same, name


def test_a_budget_keeps_the_same_and_counts_the_rows() -> None:
    module, other = compiled(REPEAT, keys="tokens", memory="1GB"), compiled(REPEAT, keys="tokens")
    xs = data(2, 2, 24, 4)
    for one in (module, other):
        run(one, nsam.optimizer("std.optimizers", "generalized_huber", one, lr=0.1), xs, squares)
    assert_same(module, dict(other.state_dict()), 1e-14)
    plain = compiled(REPEAT, keys=False, memory="1GB")
    plain(xs[0])
    # k, v and o in each of 3 passes, 9 numbers of 8 bytes for each of 48 tokens.
    assert module.budget.resident - plain.budget.resident == 3 * 3 * 9 * 8 * 48


def test_under_autocast_and_in_half_precision() -> None:
    module = compiled(MLP, keys="tokens").float()
    x = torch.randn(4, 64, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = module(x)
    y.float().square().mean().backward()
    assert {rows.grad.dtype for rows in module.nsam_rows.values()} == {torch.float32}
    torch.testing.assert_close(sums(module)["a.weight"][0], outer_mean(x.reshape(-1, 4)), rtol=1e-5, atol=1e-6)
    module = compiled(MLP, keys="tokens").to(torch.bfloat16)
    module(x.bfloat16())[0].float().square().mean().backward()
    nsam.optimizer("std.optimizers", "generalized_huber", module, lr=0.1).step()
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_it_runs_where_its_inputs_are() -> None:
    module = compiled(LOOP, keys="tokens").to("meta")
    module(torch.randn(2, 19, 4, dtype=torch.float64, device="meta"))[0].sum().backward()
    nsam.optimizer("std.optimizers", "generalized_huber", module, lr=0.1).step()
    assert {rows.grad for rows in module.nsam_rows.values()} == {None}


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
@pytest.mark.usefixtures("short_calls", "quick_kernels")
def test_compiled_it_is_the_same() -> None:
    found = []
    for fast in (False, True):
        module = compiled(REPEAT, keys="tokens", compiled=fast)
        (x,) = data(1, 2, 32, 4)
        squares(module(x)[0], x).backward()
        found.append(sums(module))
    for name, (square, gradient) in found[0].items():
        torch.testing.assert_close(found[1][name][0], square, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found[1][name][1], gradient, rtol=1e-10, atol=1e-12)
