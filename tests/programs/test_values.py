"""Values that do not vary with the token, where values are expected that do; functions with values as bounds."""

from __future__ import annotations

from typing import Any

import pytest

import nsam

LEARN = "minimize l2; by gd(lr = 0.1)"
PLAIN = f"memory m : linear(dim -> dim) {{ learn k(x) -> v(x); {LEARN}; every 3 tokens }}"
FAST = f"memory a : vector(dim) {{ learn v(x); {LEARN}; every 2 tokens }}"

CASES = {
    "slices of keys": (
        "memory at : attention(heads = 2, kv_heads = 1) { learn slice(k(x), 0, 2) -> slice(v(x), 2, 4) }",
        "at(k(x))",
    ),
    "a weight in a vector": (f"{PLAIN}\nmemory w : vector(2); memory z : linear(6 -> dim)", "m(z(concat(w, x)))"),
    "a state in a vector": (
        f"{FAST}\nmemory z : linear(2*dim -> dim)\n"
        f"memory m : linear(2*dim -> dim) {{ learn concat(a, x) -> v(x); {LEARN}; every 4 tokens }}",
        "z(concat(x, a)) + m(concat(x, a))",
    ),
    "numbers in a vector": (
        f"memory w : vector(2); memory z : linear(8 -> dim)\n"
        f"memory m : linear(dim + 1 -> dim) {{ learn concat(mean(x), k(x)) -> v(x); {LEARN}; every 3 tokens }}",
        "m(concat(x, norm(x))) + z(concat(w, x, sum(w), 0.5)) + mean(concat(1, 2)) * x",
    ),
    "a number as a vector": (
        f"memory m : linear(1 -> dim) {{ learn concat(mean(x)) -> v(x); {LEARN}; every 2 tokens; reads running }}",
        "m(concat(sum(x)))",
    ),
    "numbers in an initial state": (
        f"memory a : vector(2) {{ learn concat(mean(x), 1); {LEARN}; every 2 tokens; init concat(3, 1) }}\n"
        "memory z : linear(2 -> dim)",
        "z(a) * x",
    ),
    "an element of a weight": (f"{PLAIN}\nmemory w : vector(3)", "m(x) * index(softmax(w), 1) + index(x, 2) * x"),
    "values as bounds": (PLAIN, "m(x) * max(x, 0.2) - min(x, k(x)) + clip(x, -0.5, norm(x))"),
    "an objective that reads at its value too": (
        "memory m : mlp(dim -> 3 -> dim, act = tanh) {\n"
        "learn k(x) -> v(x); minimize 0.5 * sum((tanh(self(key)) - value)^2) + 0.01 * sum(self(value)^2)\n"
        "by dgd(lr = 0.2); every 4 tokens\n}",
        "m(x)",
    ),
    "a weight as a rate": (
        "memory a : vector(2)\nmemory m : mlp(dim -> 4 -> dim, heads = 2, bias) {\n"
        "learn k(x) -> v(x); minimize l2; by adamw(lr = 0.1 * sigmoid(a)); every 2 tokens; reads running\n}",
        "m(x)",
    ),
    "a state as a rate": (
        f"memory a : vector(2) {{ learn g(x); {LEARN}; every 4 tokens }}\n"
        "memory m : linear(dim -> dim, heads = 2) {\n"
        "learn k(x) -> v(x); minimize dot; by dgd(lr = sigmoid(a), retain = sigmoid(index(a, 0))); every 2 tokens\n}",
        "m(x)",
    ),
    "a weight as a value": (
        f"memory a : vector(dim)\nmemory m : linear(dim -> dim) {{ learn k(x) -> a; {LEARN}; every 2 tokens }}",
        "m(x)",
    ),
    "a weight as a key": (
        f"memory a : vector(dim)\nmemory m : linear(dim -> dim) {{ learn a -> v(x); {LEARN}; every 1 token }}",
        "m(a)",
    ),
    "a weight as the key of attention": (
        "memory a : vector(dim)\nmemory at : attention(heads = 2) { learn a -> v(x) }",
        "at(k(x)) + normalize(a, 2) * x",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_values(case: str, pair: Any) -> None:
    declared, output = CASES[case]
    text = f"""nsam 1
use std.rules (gd, dgd, adamw)
system s(dim: int) {{
input x: [dim]
memory k, v : linear(dim -> dim)
memory g : linear(dim -> 2)
{declared}
output {output}
}}"""
    assert pair(nsam.loads(text), "s", dim=4).apart(11) < 1e-9


BOUNDARY = """nsam 1
use std.rules (gd)
system inner(dim: int) {
  input x: [dim]
  memory w : linear(dim -> dim)
  output w(x)
}
system s() {
  input x: [4]
  memory k, v : linear(4 -> 4)
  memory places : table(16, 4)
  memory taps : conv(4, width = 3)
  memory seen : attention(heads = 2) { learn k(x) -> v(x) }
  memory a : vector(4) { learn x; minimize l2; by gd(lr = 0.1); every 3 tokens; init learned normal(0.5) }
  memory m : linear(4 -> 4, heads = 2) { learn k(x) -> v(x); minimize l2; by gd(lr = 0.1); every 3 tokens }
  output VALUE
}
"""


@pytest.mark.parametrize(
    "value", ["m(seen(a))", "m(taps(a))", "m(places(position(a, 16)))", "x + m(a)", "m(a)", "x + inner(m(a), 4)", "a"]
)
def test_a_vector_s_boundary_value_is_there_at_each_token(value: str, pair: Any) -> None:
    assert pair(nsam.loads(BOUNDARY.replace("VALUE", value)), "s").apart(7, 1) < 1e-9
