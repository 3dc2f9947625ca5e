"""Every objective with every structure and activation: derived inner gradients against those of autograd."""

from __future__ import annotations

from typing import Any

import pytest

import nsam

ACTIVATIONS = ["silu", "gelu", "gelu_tanh", "relu", "tanh", "sigmoid", "softplus", "identity"]
OBJECTIVES = {
    "dot": "dot",
    "l2": "l2",
    "lp": "lp(3)",
    "huber": "huber(0.5)",
    "pseudo_huber": "pseudo_huber(1)",
    "expression": "0.25 * sum((self(key) - value)^4) + 0.1 * norm(self(key))",
}
STRUCTURES = [
    "linear(4 -> 4)",
    "linear(4 -> 4, heads = 2, bias)",
    *(f"mlp(4 -> 6 -> 4, act = {act})" for act in ACTIVATIONS),
    *(f"mlp(4 -> 6 -> 4, act = {act}, residual, gated, bias, heads = 2)" for act in ACTIVATIONS),
    "mlp(4 -> 3 -> 5 -> 4, residual)",
]
PROGRAM = """nsam 1
use std.rules (gd)
system s() {
  input x: [4]
  memory k, v : linear(4 -> 4)
  memory m : STRUCTURE { learn CONTEXT; minimize OBJECTIVE; by gd(lr = 0.1); every 2 tokens; init learned normal(0.5) }
  output READ * x
}
"""


def apart(pair: Any, structure: str, objective: str, context: str, read: str) -> float:
    text = PROGRAM.replace("STRUCTURE", structure).replace("OBJECTIVE", objective)
    found: float = pair(nsam.loads(text.replace("CONTEXT", context).replace("READ", read)), "s").apart(5, 1)
    return found


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_inner_gradient(objective: str, structure: str, pair: Any) -> None:
    assert apart(pair, structure, OBJECTIVES[objective], "normalize(k(x)) -> v(x)", "m(x)") < 1e-9


@pytest.mark.parametrize(
    "objective", ["dot", "l2", "lp(3)", "huber(0.5)", "pseudo_huber(1)", "0.25 * sum((self - value)^4)"]
)
def test_inner_gradient_of_a_vector(objective: str, pair: Any) -> None:
    assert apart(pair, "vector(4)", objective, "v(x)", "m") < 1e-9


def test_inner_gradient_of_oja(pair: Any) -> None:
    assert apart(pair, "linear(4 -> 4)", "oja", "normalize(k(x)) -> normalize(v(x))", "m(x)") < 1e-9
