"""The emitted step of a rule: leading axes, conditions against straight lines, outer gradients, names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nsam.backends.torch.rule_source import IMPORTS, elementwise, emit_initial, emit_step, load, scalar_keyword
from nsam.compiler.rule_plan import lower_rule, number
from nsam.dsl.program import Program

RULES = ["gd", "dgd", "safe_dgd", "momentum", "delta_momentum", "adamw", "muon", "m3_algorithm1", "m3"]
HOST = (2, 3, 4, 5)
"""Batch, heads, out, in."""


def draw(*shape: tuple[int, ...], seed: Any = 0, **more: Any) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, **more)


def scalars_of(plan: Any, use: Any) -> Any:
    values = {name: number(value) for name, value in use.arguments if name in plan.parameters}
    return {scalar_keyword(name): value for name, value in values.items()}


def inputs(t: Any) -> Any:
    return draw(*HOST, seed=10 * t), draw(2, 3, 5, seed=10 * t + 1), draw(2, 3, 4, seed=10 * t + 2)


def fold(plan: Any, scalars: Any, host: Any, count: Any, steps: Any = None, at: Any = slice(None)) -> Any:
    """Fold a rule over `count` inputs; `steps(t)` gives the step function of update t."""
    always = load(emit_step(plan), "step")
    states = load(emit_initial(plan), "initial")(host, **scalars)
    for t in range(1, count + 1):
        step = always if steps is None else steps(t)
        grad, key, err = (x[at] for x in inputs(t))
        host, states = step(host, states, grad, key, err, **scalars, count=t)
    return host, states


@pytest.mark.parametrize("name", RULES)
def test_batch_and_heads_are_independent(name: str, std: Any) -> None:
    use = std(name, lr=0.1)
    plan = lower_rule(use.rule)
    scalars = scalars_of(plan, use)
    together, _ = fold(plan, scalars, draw(*HOST), 9)
    for i, j in ((0, 2), (1, 1)):
        alone, _ = fold(plan, scalars, draw(*HOST)[i, j], 9, at=(i, j))
        torch.testing.assert_close(together[i, j], alone)


@pytest.mark.parametrize("name", RULES)
def test_straight_line_steps_equal_the_branching_one(name: str, std: Any) -> None:
    use = std(name, lr=0.1)
    plan = lower_rule(use.rule)
    scalars = scalars_of(plan, use)
    straight = {due: load(emit_step(plan, due=due), "step") for due in {plan.due(t) for t in range(1, 20)}}
    one, states = fold(plan, scalars, draw(*HOST), 19)
    other, others = fold(plan, scalars, draw(*HOST), 19, steps=lambda t: straight[plan.due(t)])
    for a, b in zip((one, *states), (other, *others), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", RULES)
def test_rates_may_differ_by_head(name: str, std: Any) -> None:
    use = std(name, lr=0.1)
    plan = lower_rule(use.rule)
    scalars = scalars_of(plan, use)
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(1, 3, 1, 1)
    by_head, _ = fold(plan, scalars | {"lr": rates}, draw(*HOST), 3)
    for j, rate in enumerate((0.1, 0.2, 0.3)):
        alone, _ = fold(plan, scalars | {"lr": rate}, draw(*HOST), 3)
        torch.testing.assert_close(by_head[:, j], alone[:, j])


@pytest.mark.parametrize("name", ["dgd", "safe_dgd", "delta_momentum", "adamw", "muon", "m3"])
def test_outer_gradients_flow_through_updates(name: str, std: Any) -> None:
    use = std(name, lr=0.1) if name != "m3" else std(name, lr=0.1, period=2)
    plan = lower_rule(use.rule)
    scalars = scalars_of(plan, use)
    step, initial = load(emit_step(plan), "step"), load(emit_initial(plan), "initial")

    def last(host: Any, grad: Any, key: Any, lr: Any) -> Any:
        states = initial(host, **scalars)
        for t in range(1, 4):
            host, states = step(host, states, grad * t, key, None, **scalars | {"lr": lr}, count=t)
        return host

    given = draw(2, 3, 2), draw(2, 3, 2, seed=1), draw(2, 2, seed=2), torch.full((1, 1), 0.1, dtype=torch.float64)
    assert torch.autograd.gradcheck(last, tuple(x.requires_grad_() for x in given))


def test_dgd_is_its_equation(std: Any) -> None:
    """Eq. 88: M (retain I - erase k kᵀ) - lr ∇."""
    plan = lower_rule(std("dgd", lr=0.1).rule)
    host, (grad, key, _) = draw(*HOST), inputs(1)
    scalars = {"lr": 0.1, "retain": 0.9, "erase": 0.2}
    found, states = load(emit_step(plan), "step")(host, (), grad, key, None, **scalars, count=1)
    decay = 0.9 * torch.eye(5, dtype=torch.float64) - 0.2 * key.unsqueeze(-1) * key.unsqueeze(-2)
    torch.testing.assert_close(found, host @ decay - 0.1 * grad)
    assert states == ()


def test_source_runs_with_its_imports_alone(std: Any) -> None:
    scope: dict[str, object] = {}
    plan = lower_rule(std("m3", lr=0.1).rule)
    exec(IMPORTS + emit_step(plan) + emit_initial(plan), scope)
    assert callable(scope["step"])
    assert "0 * " not in emit_step(plan)


def test_slow_work_is_done_when_the_slow_state_moves(std: Any) -> None:
    """The orthogonalised slow momentum is a state: one call at most updates, two in one batch at boundaries."""
    plan = lower_rule(std("m3", lr=0.1).rule)
    assert plan.strides == (8,)
    assert emit_step(plan, due=frozenset()).count("orthogonalize(") == 1
    assert emit_step(plan, due=frozenset({8})).count("orthogonalize_each((") == 1


def test_elementwise_rules(std: Any) -> None:
    assert elementwise(lower_rule(std("adamw", lr=0.1).rule))
    assert elementwise(lower_rule(std("momentum", lr=0.1).rule))
    assert not elementwise(lower_rule(std("muon", lr=0.1).rule))
    assert not elementwise(lower_rule(std("delta_momentum", lr=0.1).rule))


def test_an_initial_state_that_looks_at_the_shape_is_not_elementwise() -> None:
    text = "nsam 1\nrule r(lr) { state a = rows(self); a <- a / 2; self <- self - lr * a * grad }\n"
    assert not elementwise(lower_rule(Program.loads(text).rule("r", {"lr": 0.1}).rule))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_compiled_step_has_the_same_gradients(std: Any) -> None:
    plan = lower_rule(std("safe_dgd", lr=0.1).rule)
    step = load(emit_step(plan), "step")
    found = []
    for function in (step, torch.compile(step, fullgraph=True, dynamic=False)):
        host, grad, key = (draw(*s, seed=i).requires_grad_() for i, s in enumerate(((2, 4, 5), (2, 4, 5), (2, 5))))
        after, _ = function(host, (), grad, key, None, lr=0.1, retain=0.9, count=1)
        found.append(torch.autograd.grad(after.square().sum(), (host, grad, key)))
    torch.testing.assert_close(found[0], found[1])
