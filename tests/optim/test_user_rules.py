"""Rules that no library has: nested memories, several periods, every objective, awkward names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nsam.backends.reference.numpy_arrays import NumpyArrays
from nsam.backends.reference.rules import Host, apply_rule, new_rule_record
from nsam.backends.torch.optim import optimizer
from nsam.backends.torch.rule_source import emit_initial, emit_step, load, scalar_keyword
from nsam.compiler.rule_plan import dump, lower_rule, number
from nsam.dsl.diagnostics import ProgramError
from nsam.dsl.program import Program

HEAD = "nsam 1\nuse std.rules (gd, dgd, momentum, muon, delta_momentum)\n"

NESTED = """
rule trail(rate, keep = 0.9) {
  memory velocity : like(self) { learn grad; minimize l2; by gd(lr = rate); every 2 updates summed; reads running }
  self <- keep * self - velocity
}
rule nested(lr) {
  state scale = ones
  memory slow : like(self) { learn grad; minimize l2; by trail(rate = 0.3); every 3 updates summed }
  memory fast : like(self) {
    learn grad; minimize pseudo_huber(0.5); by momentum(lr = 0.2, beta = 0.5); every 2 updates
  }
  scale <- 0.5 * scale + abs(grad)
  self <- self - lr * (slow + fast + clip(grad, -1, 1)) / sqrt(scale)
}
"""


def rule(text: str, name: str, **arguments: float) -> Any:
    return Program.loads(HEAD + text).rule(name, arguments)


def move(use: Any, start: Any, gradients: list[Any]) -> list[Any]:
    parameter = torch.nn.Parameter(torch.tensor(start))
    made = optimizer(use, [parameter])
    path = []
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        made.step()
        path.append(parameter.detach().numpy().copy())
    return path


@pytest.fixture
def stream() -> Any:
    draw = np.random.default_rng(4)
    return draw.normal(size=(3, 4)), [draw.normal(size=(3, 4)) for _ in range(30)]


def test_two_nested_memories_with_periods_of_their_own(stream: Any) -> None:
    start, gradients = stream
    w, path = start, []
    slow, total, velocity, total_v = (np.zeros_like(w) for _ in range(4))
    shown, fast, trace = (np.zeros_like(w) for _ in range(3))
    scale, applied = np.ones_like(w), 0
    for t, g in enumerate(gradients, 1):
        slow_before, shown_before = slow, shown
        total = total + (slow - g)
        if t % 3 == 0:
            applied += 1
            total_v = total_v + (velocity - total)
            if applied % 2 == 0:
                velocity, total_v = velocity - 0.3 * total_v, np.zeros_like(w)
            slow, total = 0.9 * slow - velocity, np.zeros_like(w)
        u = shown - g
        trace = 0.5 * trace + 0.2 * u / np.sqrt(1 + (u**2).sum() / 0.25)
        fast = fast - trace
        if t % 2 == 0:
            shown = fast
        scale = 0.5 * scale + np.abs(g)
        w = w - 0.05 * (slow_before + shown_before + np.clip(g, -1, 1)) / np.sqrt(scale)
        path.append(w)
    found = move(rule(NESTED, "nested", lr=0.05), start, gradients)
    np.testing.assert_allclose(found, path, rtol=1e-12, atol=1e-14)


RULES = """
rule lp_memory(lr) {
  memory m : like(self) { learn grad; minimize lp(3); by gd(lr = 0.1); every 1 update }
  self <- self - lr * m
}
rule huber_memory(lr) {
  memory m : like(self) {
    learn grad -> grad @ transpose(grad); minimize huber(0.3)
    by dgd(lr = 0.1, retain = 0.9); every 3 updates; reads running
  }
  self <- self - lr * m
}
rule oja_memory(lr) {
  memory m : like(self) { learn key -> err; minimize oja; by gd(lr = 0.1); every 2 updates summed }
  self <- self - lr * (grad + m)
}
rule both_reads(lr) {
  memory m : like(self) { learn key -> err; minimize l2; by dgd(lr = 0.2); every 1 update; reads running }
  self <- self - lr * (grad + outer(m(key), key) + outer(err, m.T(err)))
}
rule own_target(lr) {
  memory m : like(self) {
    learn key -> 0.5 * self(key) + err; minimize -dot(self(key), value) + 0.5 * sum(self(key)^2)
    by momentum(lr = 0.2); every 2 updates
  }
  self <- self - lr * (grad + m)
}
rule of_the_host(lr) {
  let w = self
  memory m : like(self) { learn w - self; minimize l2; by gd(lr = 0.1); every 1 update }
  self <- self - lr * (grad + m)
}
rule pull(lr) { self <- self - lr * (grad + 0.1 * (self - identity) @ transpose(self) @ self) }
rule towards_identity(lr) {
  memory m : like(self) {
    learn transpose(grad) @ grad -> identity; minimize pseudo_huber(1); by gd(lr = 0.1); every 1 update; reads running
  }
  self <- self - lr * (grad + m)
}
rule eye(lr) { self <- (1 - lr) * self + lr * (abs(grad) + identity / 2) }
rule vectors(lr) { self <- self - lr * (grad + outer(self @ key, key) + outer(err, err @ self)) }
rule slow_work(lr) {
  memory m : like(self) {
    learn grad; minimize dot; by gd(lr = 0.1, retain = 0.9); every 4 updates summed; reads running
  }
  memory n : like(self) { learn grad; minimize dot; by gd(lr = 0.1); every 3 updates summed }
  self <- self - lr * (orthogonalize(m) + orthogonalize(m) @ transpose(m) @ m + 0.5 * orthogonalize(n, 3))
}
rule order(lr) {
  state a = 0.5
  state b = self
  a <- a + grad
  let c = a
  a <- a * 0.5
  self <- self - lr * c
  b <- self
  self <- self - lr * (a + b)
}
rule inner(lr) {
  memory t : like(self) { learn grad; minimize l2; by delta_momentum(lr = 0.1); every 1 update; reads running }
  self <- self - lr * t
}
rule deep(lr) {
  memory m : like(self) { learn grad; minimize huber(0.5); by inner(lr = 0.5); every 2 updates; reads running }
  self <- self - lr * m
}
rule measured(lr) {
  let e = tanh(grad)
  memory v : like(self) { learn grad; minimize dot; by gd(lr = norm(e)); every 2 updates summed; reads running }
  self <- self - lr * norm(e) * grad - lr * v
}
rule at_many_strides(lr) {
  memory m : like(self) { learn grad; minimize l2; by measured(lr = 0.1); every 3 updates summed }
  self <- self - lr * (grad + m)
}
rule mean_of(beta) {
  state n = zeros
  n <- beta * n + (1 - beta) * grad
  self <- self - unbias(n, beta)
}
rule unbiased(lr) {
  memory m : like(self) { learn grad; minimize dot; by mean_of(beta = 0.7); every 2 updates summed; reads running }
  self <- self - lr * m
}
rule every_function(lr) {
  let a = tanh(grad) + sigmoid(self) * silu(grad) + gelu(grad) + relu(grad) + softplus(grad) + sin(grad) * cos(grad)
  let b = exp(-abs(grad)) + log(1 + grad^2) + sign(grad) + max(grad, 0.1) * min(0.2, grad) + max(grad, self)
  let c = mean(grad) + norm(grad) * grad / sum(grad^2) + grad * dot(grad, self) / root_mean_square(grad)
  self <- self - lr * (a + b + c)
}
rule words(lr, count = 2, lambda = 3, torch = 4) {
  state states = zeros
  let math = count * grad
  states <- states + lambda * math
  let self_new = torch * states
  self <- self - lr * self_new
}
"""
CHECKED = "nested lp_memory huber_memory oja_memory both_reads own_target of_the_host pull towards_identity eye vectors"
CHECKED += " at_many_strides slow_work order deep unbiased every_function words"


@pytest.mark.parametrize("name", CHECKED.split())
def test_equal_to_the_reference(name: str) -> None:
    """The interpreter of the reference backend derives its gradients another way."""
    use = rule(NESTED + RULES, name, lr=0.05)
    plan = lower_rule(use.rule)
    numbers = {key: float(number(value)) for key, value in use.arguments}
    scalars = {scalar_keyword(key): numbers[key] for key in plan.parameters}
    ops, draw = NumpyArrays(), np.random.default_rng(5)
    start = draw.normal(size=(3, 4))
    reference, record = ops.array(start), new_rule_record()
    step, initial = load(emit_step(plan), "step"), load(emit_initial(plan), "initial")
    mine = torch.tensor(start)
    states = initial(mine, **scalars)
    straight = {due: load(emit_step(plan, due=due), "step") for due in {plan.due(t) for t in range(1, 14)}}
    for t in range(1, 14):
        grad, key, err = draw.normal(size=(3, 4)), draw.normal(size=4), draw.normal(size=3)
        host = Host(reference, *(ops.array(x) for x in (grad, key, err)))
        reference, record = apply_rule(ops, use, {k: ops.array(v) for k, v in numbers.items()}, host, record)
        given = (mine, states, *map(torch.tensor, (grad, key, err)))
        special, _ = straight[plan.due(t)](*given, **scalars, count=t)
        mine, states = step(*given, **scalars, count=t)
        np.testing.assert_allclose(mine.numpy(), np.asarray(reference), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(special, mine)


def test_a_state_never_shares_memory_with_the_parameter() -> None:
    """`previous <- self` keeps the value, although the parameter is changed in place afterwards."""
    text = "rule lagging(lr) { state previous = self; let before = previous; previous <- self\n"
    text += "self <- before - lr * grad }"
    start, gradients = np.zeros((2, 2)), [np.full((2, 2), float(t)) for t in (1, 2, 3, 4)]
    found = [w[0, 0] for w in move(rule(text, "lagging", lr=1.0), start, gradients)]
    assert found == [-1.0, -2.0, -4.0, -6.0]


def test_nothing_dead_is_kept() -> None:
    text = "rule lazy(lr) { state unused = zeros; unused <- unused + grad; let also = grad @ transpose(grad)\n"
    plan = lower_rule(rule(text + "self <- self - lr * grad }", "lazy", lr=1.0).rule)
    assert plan.states == ()
    assert dump(plan) == "rule lazy(lr)\n  self' = (self - (lr * grad))\n  self <- self'"


def test_an_initial_value_cannot_see_the_gradient() -> None:
    text = "rule early(lr) { state m = grad; m <- m + grad; self <- self - lr * m }"
    with pytest.raises(ProgramError) as caught:
        rule(text, "early", lr=0.1)
    (found,) = caught.value.diagnostics
    assert found.code == "N0231"
    assert found.primary is not None
    assert found.primary.span.text == "grad"


def test_other_structures_inside_a_rule_are_refused_with_their_place() -> None:
    text = "rule odd(lr) { memory m : linear(cols(self) -> rows(self), bias) { learn key -> err; minimize l2;"
    text += " by gd(lr = 1);"
    with pytest.raises(ProgramError) as caught:
        rule(text + " every 1 update }\n self <- self - lr * (grad + outer(m(key), key)) }", "odd", lr=0.1)
    (found,) = caught.value.diagnostics
    assert found.code == "N0222"
    assert found.primary is not None
    assert "bias" in found.primary.span.text
