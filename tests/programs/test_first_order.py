"""A memory that feeds itself by `direct`: its inner gradients hold its own state constant (first-order MAML)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import nsam
from nsam.dsl.diagnostics import ProgramError

SHOTS, TIME = 4, 10


def net(ws: list[Tensor], x: Tensor) -> Tensor:
    return ws[1] @ torch.tanh(ws[0] @ x)


def adapted(start: list[Tensor], x: Tensor, y: Tensor, second_order: bool) -> list[list[Tensor]]:
    """The weights that each token of [time, dim] is read with: a step after each, from the start again in each task."""
    now, found = list(start), []
    for t in range(len(x)):
        if t % SHOTS == 0:
            now = [w * 1 for w in start]
        found.append(now)
        at = now if second_order else [w.detach().requires_grad_() for w in now]
        loss = 0.5 * (net(at, x[t]) - y[t]).square().sum()
        slopes = torch.autograd.grad(loss, at, create_graph=second_order)
        now = [w - 0.1 * g for w, g in zip(now, slopes, strict=True)]
    return found


def gradient(module: torch.nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    predicted, _ = module(x, y)
    (predicted - y).square().sum().backward()
    return [module.get_parameter(name).grad for name in ("m.w1", "m.w2")]


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))


@pytest.fixture
def first_order(example: Any, pair: Any) -> Any:
    return pair(example("meta"), "maml_first_order", dim=3)


@pytest.mark.parametrize("second_order", [False, True], ids=["first order", "full"])
def test_the_gradient_is_that_of_a_loop_by_hand(second_order: bool, example: Any, pair: Any) -> None:
    both = pair(example("meta"), "maml" if second_order else "maml_first_order", dim=3)
    x, y = both.inputs(1, TIME)
    start = [both.weights[name].detach().clone().requires_grad_() for name in ("m.w1", "m.w2")]
    weights = adapted(start, x[0], y[0], second_order)
    loss = sum((net(w, x[0, t]) - y[0, t]).square().sum() for t, w in enumerate(weights))
    wanted = list(torch.autograd.grad(loss, start))
    for module in (both.compiled, both.reference):
        assert apart(gradient(module, x, y), wanted) < 1e-12


def test_the_start_learns_from_the_gradients_at_the_adapted_weights(first_order: Any) -> None:
    """The first-order formula: the sum of the losses' gradients, each at the weights that the token was read with."""
    x, y = first_order.inputs(1, TIME)
    start = [first_order.weights[name].detach().clone().requires_grad_() for name in ("m.w1", "m.w2")]
    wanted = [torch.zeros_like(w) for w in start]
    for t, weights in enumerate(adapted(start, x[0], y[0], second_order=False)):
        at = [w.detach().requires_grad_() for w in weights]
        slopes = torch.autograd.grad((net(at, x[0, t]) - y[0, t]).square().sum(), at)
        wanted = [total + slope for total, slope in zip(wanted, slopes, strict=True)]
    assert apart(gradient(first_order.compiled, x, y), wanted) < 1e-12


def test_values_are_those_of_full_maml_and_gradients_are_not(first_order: Any, example: Any, pair: Any) -> None:
    full = pair(example("meta"), "maml", dim=3)
    full.compiled.load_state_dict(first_order.compiled.state_dict())
    x, y = full.inputs(2, TIME)
    with torch.no_grad():
        assert torch.equal(full.compiled(x, y)[0], first_order.compiled(x, y)[0])
    assert apart(gradient(full.compiled, x, y), gradient(first_order.compiled, x, y)) > 1e-3


MEMORIES = {
    "matrix, online": "linear(dim -> dim) { learn k(x) -> v(x); minimize l2; by gd(lr = 0.1); every 1 token; READS }",
    "matrix, chunks": "linear(dim -> dim) { learn k(x) -> v(x); minimize l2; by dgd(lr = 0.1); every 4 tokens; READS }",
    "network, dgd": "mlp(dim -> 6 -> dim, bias, residual) {"
    " learn k(x) -> v(x); minimize huber(1); by dgd(lr = 0.1, retain = 0.9); every 3 tokens; READS }",
    "network, momentum": "mlp(dim -> 6 -> dim, heads = 2) {"
    " learn k(x) -> v(x); minimize l2; by momentum(lr = 0.1); every 2 tokens; READS }",
    "network, summed muon": "mlp(dim -> 6 -> dim, residual) {"
    " learn k(x) -> v(x) over last 2 tokens; minimize l2; by muon(lr = 0.1); every 3 tokens summed; READS }",
    "own targets": "mlp(dim -> 6 -> dim, residual) {"
    " learn k(x) -> self(v(x)); minimize l2; by dgd(lr = 0.1); every 2 tokens; READS }",
    "vector": "vector(dim) { learn v(x); minimize l2; by gd(lr = 0.1); every 2 tokens; READS }",
    "oja": "linear(dim -> dim) { learn k(x) -> v(x); minimize oja; by gd(lr = 0.1); every 2 tokens; READS }",
    "adaptive": "linear(dim -> dim) {"
    " learn k(x) -> v(x); minimize l2; by gd(lr = 0.1); every 2..4 tokens when surprise > 0.3; READS }",
}  # fmt: skip


def program(memory: str, reads: str, transfer: str) -> Any:
    output = "x * m" if memory == "vector" else "m(x)"
    return nsam.loads(
        "nsam 1\nuse std.rules (gd, dgd, momentum, muon)\nsystem s(dim: int) {\n  input x: [dim]\n"
        "  memory k, v : linear(dim -> dim)\n"
        f"  memory m : {MEMORIES[memory].replace('READS', f'reads {reads}')}\n  {transfer}\n  output {output}\n}}"
    )


@pytest.mark.parametrize("reads", ["boundary", "running"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_every_kind_of_memory(memory: str, reads: str, pair: Any) -> None:
    assert pair(program(memory, reads, "transfer m -> m : direct"), "s", dim=4).apart(9) < 1e-9


@pytest.mark.parametrize("memory", MEMORIES)
def test_it_changes_gradients_only(memory: str, pair: Any, gradients: Any) -> None:
    cut, whole = (pair(program(memory, "boundary", t), "s", dim=4) for t in ("transfer m -> m : direct", ""))
    cut.compiled.load_state_dict(whole.compiled.state_dict())
    inputs = cut.inputs(2, 9)
    found, wanted = gradients(cut.compiled, inputs), gradients(whole.compiled, inputs)
    assert float((found["output"] - wanted["output"]).abs().max()) < 1e-12
    starts = [name for name in wanted if name.startswith("m.")]
    assert max(float((found[name] - wanted[name]).abs().max()) for name in starts) > 1e-6


@pytest.mark.parametrize(
    "memory",
    [
        "linear(dim -> dim)",
        "linear(dim -> dim) { minimize task; every 4 steps }",
        "attention(heads = 2) { learn k(x) -> v(x) }",
    ],
)
def test_a_memory_without_inner_gradients_cannot_feed_itself(memory: str) -> None:
    text = (
        "nsam 1\nsystem s(dim: int) {\n  input x: [dim]\n  memory k, v : linear(dim -> dim)\n"
        f"  memory m : {memory}\n  transfer m -> m : direct\n  output m(x) + k(x) + v(x)\n}}"
    )
    with pytest.raises(ProgramError, match="N0304"):
        nsam.compile(nsam.loads(text), "s", dim=4, compiled=False)
