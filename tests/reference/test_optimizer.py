"""Rules as optimizers, against torch.optim and against loops written from the equations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nsam.backends.reference import ReferenceOptimizer
from nsam.dsl.checked import RuleUse

Rule = Callable[..., RuleUse]
Values = NDArray[np.float64]
SHAPES = {"matrix": (3, 5), "tall": (6, 2), "vector": (4,)}
STEPS = 20


def _gradients(steps: int = STEPS, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[dict[str, Values]]:
    draw = np.random.default_rng(0)
    return [{name: draw.standard_normal(shape) for name, shape in shapes.items()} for _ in range(steps)]


def _start(shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Values]:
    draw = np.random.default_rng(1)
    return {name: draw.standard_normal(shape) for name, shape in shapes.items()}


def _reference(use: RuleUse, gradients: list[dict[str, Values]]) -> dict[str, Values]:
    optimizer = ReferenceOptimizer(use)
    parameters = _start({name: g.shape for name, g in gradients[0].items()})
    for step in gradients:
        parameters = optimizer.step(parameters, step)
    return parameters


@pytest.mark.parametrize(
    ("call", "make"),
    [
        ("gd(lr = 0.1)", lambda p: torch.optim.SGD(p, lr=0.1)),
        ("momentum(lr = 0.1, beta = 0.8)", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8)),
        ("adamw(lr = 0.01)", lambda p: torch.optim.AdamW(p, lr=0.01)),
        (
            "adamw(lr = 0.02, beta1 = 0.8, beta2 = 0.95, eps = 1e-4, decay = 0.3)",
            lambda p: torch.optim.AdamW(p, lr=0.02, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.3),
        ),
    ],
)
def test_torch_optim(rule: Rule, call: str, make: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> None:
    gradients = _gradients(50)
    found = _reference(rule(call), gradients)
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in _start().items()}
    optimizer = make(list(tensors.values()))
    for step in gradients:
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(step[name])
        optimizer.step()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(found[name], tensor.detach().numpy(), rtol=1e-11, atol=1e-12)


def _newton_schulz(matrix: Values, iterations: int = 5) -> Values:
    x = np.atleast_2d(matrix)
    x = x / max(np.linalg.norm(x), 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(iterations):
        s = x @ x.T
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    return (x.T if tall else x).reshape(matrix.shape)


def test_muon(rule: Rule) -> None:
    gradients = _gradients()
    found = _reference(rule("muon(lr = 0.1, beta = 0.9, decay = 0.02)"), gradients)
    for name, value in _start().items():
        trace = np.zeros_like(value)
        for step in gradients:
            trace = 0.9 * trace + step[name]
            rows, columns = np.atleast_2d(value).shape
            update = _newton_schulz(step[name] + 0.9 * trace)
            value = (1 - 0.1 * 0.02) * value - 0.1 * np.sqrt(max(1, rows / columns)) * update
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-12)


def test_m3_algorithm1(rule: Rule) -> None:
    """M2 moves every third step by the sum of its gradients, and is used from the next step on."""
    gradients = _gradients()
    found = _reference(rule("m3_algorithm1(lr = 0.01, period = 3)"), gradients)
    for name, value in _start().items():
        fast, slow, square, sums = (np.zeros_like(value) for _ in range(4))
        for t, step in enumerate(gradients, 1):
            g = step[name]
            fast, square, sums = fast + 0.95 * g, square + 0.999 * g**2, sums + g
            value = value - 0.01 * (_newton_schulz(fast) + 0.5 * _newton_schulz(slow)) / (np.sqrt(square) + 1e-8)
            if t % 3 == 0:
                slow, sums = slow + 0.9 * sums, np.zeros_like(sums)
        np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-11)


def test_m3(rule: Rule) -> None:
    gradients = _gradients()
    found = _reference(rule("m3(lr = 0.01, period = 4, decay = 0.1)"), gradients)
    for name, value in _start().items():
        fast, slow, square, sums = (np.zeros_like(value) for _ in range(4))
        for t, step in enumerate(gradients, 1):
            g = step[name]
            fast, square, sums = 0.95 * fast + 0.05 * g, 0.999 * square + 0.001 * g**2, sums + g
            update = _newton_schulz(fast) + 0.5 * _newton_schulz(slow)
            update = update / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
            value = (1 - 0.01 * 0.1) * value - 0.01 * 0.2 * update / np.sqrt(np.mean(update**2))
            if t % 4 == 0:
                slow, sums = 0.9 * slow + 0.1 * sums, np.zeros_like(sums)
        np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-11)


def test_delta_momentum_reads_a_matrix_as_its_rows(rule: Rule) -> None:
    """trace ← β trace − lr (trace gᵀg − g), eq. 48-49 with P the identity."""
    gradients = _gradients()
    found = _reference(rule("delta_momentum(lr = 0.05, beta = 0.9)"), gradients)
    for name, value in _start().items():
        trace, shape = np.zeros_like(np.atleast_2d(value)), value.shape
        for step in gradients:
            g = np.atleast_2d(step[name])
            trace = 0.9 * trace - 0.05 * (trace @ g.T @ g - g)
            value = value - trace.reshape(shape)
        np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-11)


def test_heads_are_a_batch_of_matrices(rule: Rule) -> None:
    stacked = _gradients(6, {"w": (2, 3, 4)})
    found = _reference(rule("muon(lr = 0.1)"), stacked)["w"]
    start = _start({"w": (2, 3, 4)})["w"]
    for head in range(2):
        optimizer, alone = ReferenceOptimizer(rule("muon(lr = 0.1)")), {"w": start[head]}
        for step in stacked:
            alone = optimizer.step(alone, {"w": step["w"][head]})
        np.testing.assert_array_equal(found[head], alone["w"])


def test_a_rule_inside_a_rule(rule: Rule) -> None:
    """A trace that is itself written with momentum, every second update, as a user might declare it."""
    text = """rule layered(lr) {
      memory trace : like(self) {
        learn 2 * grad; minimize l2; by momentum(lr = 0.1, beta = 0.5); every 2 updates; reads running
      }
      state total = zeros
      total <- total + grad
      self <- self - lr * (trace + total)
    }"""
    gradients = _gradients(7, {"w": (2, 2)})
    found = _reference(rule("layered(lr = 0.3)", text), gradients)["w"]
    value = _start({"w": (2, 2)})["w"]
    boundary, running, inner, total = (np.zeros((2, 2)) for _ in range(4))
    for t, step in enumerate(gradients, 1):
        inner = 0.5 * inner + 0.1 * (boundary - 2 * step["w"])
        running = running - inner
        total = total + step["w"]
        value = value - 0.3 * (running + total)
        if t % 2 == 0:
            boundary = running
    np.testing.assert_allclose(found, value, rtol=1e-12, atol=1e-13)
