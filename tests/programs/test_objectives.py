"""Every objective with every structure and activation: derived inner gradients against those of autograd."""

from __future__ import annotations

from typing import Any

import pytest

import nsam
from nsam.compiler.explain import explain

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


@pytest.mark.parametrize("structure", ["linear(4 -> 4)", "mlp(4 -> 6 -> 4)"])
@pytest.mark.parametrize(
    "objective",
    [
        "sum(sigmoid(dot(self(key), value)) - value)",
        "mean(norm(self(key) - value) + key)",
        "sum(max(norm(self(key)), 0.1) + value * mean(self(key)))",
    ],
)
def test_a_scalar_beside_a_vector_counts_for_each_element(objective: str, structure: str, pair: Any) -> None:
    assert apart(pair, structure, objective, "k(x) -> v(x)", "m(x)") < 1e-9


@pytest.mark.parametrize(
    "objective",
    ["sum(0.25 * norm(self(key) - value)^2 + 0 * key)", "norm(self(key)) + sum(0 * value)", "sum(self(0 * key + key))"],
)
def test_zero_times_a_vector_has_its_shape(objective: str, pair: Any) -> None:
    assert apart(pair, "linear(4 -> 4)", objective, "k(x) -> v(x)", "m(x)") < 1e-9


@pytest.mark.parametrize("structure", ["vector(4)", "mlp(4 -> 6 -> 4, bias)"])
def test_an_objective_of_weight_zero(structure: str, pair: Any) -> None:
    vector = structure == "vector(4)"
    read = "self" if vector else "self(key)"
    found = apart(pair, structure, f"0 * sum({read})", "v(x)" if vector else "k(x) -> v(x)", "m" if vector else "m(x)")
    assert found < 1e-9


def test_an_equation_keeps_zero_times_a_vector() -> None:
    text = PROGRAM.replace("STRUCTURE", "linear(4 -> 4)").replace("CONTEXT", "k(x) -> v(x)").replace("READ", "m(x)")
    unit = nsam.loads(text.replace("OBJECTIVE", "sum(mean(self(key)^2) + 0 * value)")).instantiate("s")
    assert "0 v" in explain(unit)


@pytest.mark.parametrize(
    "objective", ["sum(clip(key, -norm(self(key)), 0.1))", "sum(clip(0.1 * key, self(key), value))"]
)
def test_a_gradient_goes_through_the_bounds_of_clip(objective: str, pair: Any) -> None:
    assert apart(pair, "linear(4 -> 4)", objective, "k(x) -> v(x)", "m(x)") < 1e-9


@pytest.mark.parametrize("objective", ["sum(normalize(self(key), 2) * value)", "dot(self(normalize(key, 2)), value)"])
def test_slices_are_normalized_each_by_itself(objective: str, pair: Any) -> None:
    assert apart(pair, "linear(4 -> 4)", objective, "k(x) -> v(x)", "m(x)") < 1e-9


def test_slices_that_do_not_divide_a_head_are_refused() -> None:
    text = PROGRAM.replace("STRUCTURE", "linear(4 -> 4, heads = 2)").replace("CONTEXT", "k(x) -> v(x)")
    program = nsam.loads(text.replace("OBJECTIVE", "sum(normalize(self(key), 4))").replace("READ", "m(x)"))
    with pytest.raises(nsam.ProgramError, match="do not divide"):
        nsam.compile(program, "s", compiled=False)


@pytest.mark.parametrize("objective", ["sum(self)", "norm(self)", "sum(self) * dot(value, value)"])
@pytest.mark.parametrize("context", ["v(x)", "v(x) over last 3 tokens"])
def test_a_gradient_without_the_token_counts_for_each(objective: str, context: str, pair: Any) -> None:
    """The state alone gives it: it is one row, and the period adds up as many as there are tokens."""
    assert apart(pair, "vector(4)", objective, context, "m") < 1e-9


def test_a_gradient_of_a_bias_without_the_token_counts_for_each(pair: Any) -> None:
    assert apart(pair, "linear(4 -> 4, bias)", "sum(self(key)) * sum(key)", "k(x) -> v(x)", "m(x)") < 1e-9
    assert apart(pair, "linear(4 -> 4, bias)", "sum(self(key))", "k(x) -> v(x)", "m(x)") < 1e-9


STEADY = """nsam 1
use std.rules (gd, dgd, momentum)
system s() {
  input x: [4]
  memory a, b : vector(4) { learn x; minimize l2; by gd(lr = 0.1); every 4 tokens; init learned normal(0.5) }
  memory m : STRUCTURE { learn a -> b; minimize l2; by RULE; every 4 tokens; init learned normal(0.5) }
  output m(x)
}
"""


@pytest.mark.parametrize(
    ("structure", "rule"),
    [
        ("linear(4 -> 4)", "gd(lr = 0.1)"),
        ("linear(4 -> 4, heads = 2)", "dgd(lr = 0.1 * sigmoid(norm(b)))"),
        ("mlp(4 -> 6 -> 4)", "momentum(lr = 0.1, beta = sigmoid(norm(b)))"),
    ],
)
def test_what_another_state_gives_is_learnt_at_each_token(structure: str, rule: str, pair: Any) -> None:
    """Key, value and gates are the boundary values of other memories: one row each, for all tokens of a period."""
    text = STEADY.replace("STRUCTURE", structure).replace("RULE", rule)
    assert pair(nsam.loads(text), "s").apart(9, 1) < 1e-9
