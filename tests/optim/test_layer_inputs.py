"""What backward passes bring of the inputs of layers: every read and every token, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from keyed_programs import (
    FOLDING,
    HEAD,
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


def test_gradients_and_values_stay_the_same() -> None:
    with_, without = compiled(MLP), compiled(MLP, keys=False)
    assert without.nsam_grams == {}
    (x,) = data(1, 3, 4, 4)
    for module in (with_, without):
        squares(module(x)[0], x).backward()
    for (name, one), (_, two) in zip(with_.named_parameters(), without.named_parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), name  # type: ignore[arg-type]
    assert list(with_.state_dict()) == list(without.state_dict())
    with torch.no_grad():
        assert torch.equal(with_(x)[0], without(x)[0])


@pytest.mark.parametrize("without", [(), "all"], ids=["passes", "no passes"])
@pytest.mark.parametrize("text", FOLDING.values(), ids=FOLDING)
def test_reads_inside_loops_count_every_token(text: str, without: Any) -> None:
    """Inputs of layers inside the loop over chunks, tokens of the last chunk included: against hooks on every read."""
    module = compiled(text, without=without)
    (x,) = data(1, 2, 19, 4)
    seen: dict[str, Tensor] = {}
    weights = {p.data_ptr(): name for name, p in module.named_parameters()}
    linear = nn.functional.linear

    def spy(rows: Tensor, weight: Tensor, *more: Any) -> Tensor:
        name, flat = weights[weight.data_ptr()], rows.detach().reshape(-1, 4)
        seen[name] = seen.get(name, torch.zeros(4, 4, dtype=torch.float64)) + flat.mT @ flat / (2 * 19)
        return linear(rows, weight, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", spy)
        y, _ = module(x)
    y.square().mean().backward()
    assert set(seen) == set(weights.values()) == set(module.nsam_grams)
    for name, leaf in module.nsam_grams.items():
        torch.testing.assert_close(leaf.grad, seen[name], rtol=1e-12, atol=1e-12)


def test_a_cut_read_does_not_count() -> None:
    text = (
        HEAD
        + """system net(dim: int = 4) {
  input x: [dim]
  memory k : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn k(x) -> x; minimize l2; by gd(lr = 0.1); every 2 tokens; init zeros }
  transfer k -> m : direct
  output m(x) + k(2 * x)
}
"""
    )
    module = compiled(text)
    (x,) = data(1, 2, 6, 4)
    module(x)[0].sum().backward()
    torch.testing.assert_close(module.nsam_grams["k.weight"].grad, outer_mean(2 * x.reshape(-1, 4)))


def test_a_row_that_stands_for_many_tokens_counts_for_each() -> None:
    module = compiled(SHARED)
    with torch.no_grad():
        module.get_parameter("b.weight").normal_()
    (x,), (c,) = data(1, 3, 5, 4), data(1, 3, 4)
    module(x, c)[0].square().mean().backward()
    grams, b = module.nsam_grams, module.get_parameter("b.weight").detach()
    torch.testing.assert_close(grams["w.weight"].grad, outer_mean(c))
    torch.testing.assert_close(grams["u.weight"].grad, torch.outer(b, b))


def test_every_pass_of_a_repeat_has_its_own() -> None:
    text = (
        HEAD
        + """system block(dim: int) { input x: [dim]; memory w : linear(dim -> dim); output tanh(w(x)) }
system net(dim: int = 4) { input x: [dim]; let h = x; repeat 3 { h = h + block(h, dim) }; output h }
"""
    )
    module = compiled(text)
    (x,) = data(1, 2, 3, 4)
    module(x)[0].square().mean().backward()
    names = [f"repeat.{i}.block.w.weight" for i in range(3)]
    assert list(module.nsam_grams) == names
    h = x
    for name in names:
        torch.testing.assert_close(module.nsam_grams[name].grad, outer_mean(h.reshape(-1, 4)))
        h = h + torch.tanh(h @ module.get_parameter(name).detach().mT)


def test_gradients_through_the_state_bring_the_inputs_of_the_call_before() -> None:
    module = compiled(LOOP)
    first, second = data(2, 2, 8, 4)

    def brought(y: Tensor) -> dict[str, Tensor]:
        module.zero_grad()
        y.sum().backward()
        return {name: leaf.grad.clone() for name, leaf in module.nsam_grams.items()}

    y, state = module(first)
    both = brought(module(second, state)[0])
    held = nsam.take_sequences(module(first)[1], [0, 1])
    held |= {"sequence": {name: x.detach() for name, x in held["sequence"].items()}}
    one, two = brought(module(first)[0]), brought(module(second, held)[0])
    for name in both:
        torch.testing.assert_close(both[name], one[name] + two[name])
    assert y.requires_grad


def test_what_a_call_returns_may_be_changed_in_place() -> None:
    module = compiled(LINEAR)
    (x,) = data(1, 2, 3, 4)
    y, _ = module(x)
    y.mul_(2).sum().backward()
    torch.testing.assert_close(module.get_parameter("w.weight").grad, 2 * x.sum((0, 1)).expand(3, 4))


def test_under_autocast_sums_are_in_float32() -> None:
    module = compiled(MLP).float()
    x = torch.randn(4, 64, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = module(x)
    y.float().square().mean().backward()
    grams = module.nsam_grams
    assert {leaf.grad.dtype for leaf in grams.values()} == {torch.float32}
    torch.testing.assert_close(grams["a.weight"].grad, outer_mean(x.reshape(-1, 4)), rtol=1e-5, atol=1e-6)


def test_it_runs_where_its_inputs_are() -> None:
    module = compiled(LOOP).to("meta")
    module(torch.randn(2, 19, 4, dtype=torch.float64, device="meta"))[0].sum().backward()
    optimizer = nsam.optimizer("std.rules", "safe_dgd", module, lr=0.1)
    optimizer.step()
    assert {leaf.device.type for leaf in module.nsam_grams.values()} == {"meta"}


def test_weights_in_half_precision_have_sums_in_float32() -> None:
    module = compiled(MLP).to(torch.bfloat16)
    module(torch.randn(2, 3, 4).bfloat16())[0].float().sum().backward()
    assert {leaf.grad.dtype for leaf in module.nsam_grams.values()} == {torch.float32}
    optimizer = nsam.optimizer("std.rules", "dgd", module, lr=0.1)
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in module.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_compiled_under_autocast() -> None:
    module = compiled(MLP, compiled=True).float()
    x = torch.randn(4, 64, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = module(x)
    y.float().square().mean().backward()
    torch.testing.assert_close(module.nsam_grams["a.weight"].grad, outer_mean(x.reshape(-1, 4)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("passes", "group", "kept"), [(0, 2, 0), (0, 1, 2), (2, 0, 0), (3, 2, 1)])
def test_computed_again_in_the_backward_pass_it_is_the_same(passes: int, group: int, kept: int) -> None:
    (x,) = data(1, 2, 24, 4)
    found = []
    for plan in (Plan(Schedule()), Plan(Schedule(passes, group, kept))):
        module = compiled(REPEAT)
        with plan.in_force():
            y, _ = module(x)
        squares(y, x).backward()
        grads = {name: p.grad for name, p in module.named_parameters()}
        found.append({**grads, **{f"{name}.keys": leaf.grad for name, leaf in module.nsam_grams.items()}})
    assert found[0].keys() == found[1].keys()
    for name, one in found[0].items():
        assert one is not None, name
        assert torch.equal(one, found[1][name]), name


def test_a_budget_counts_and_keeps_the_same() -> None:
    module, other = compiled(REPEAT, memory="1GB"), compiled(REPEAT)
    xs = data(2, 2, 24, 4)
    for one in (module, other):
        run(one, nsam.optimizer("std.rules", "dgd", one, lr=0.1), xs, squares)
    assert_same(module, dict(other.state_dict()), 0)
