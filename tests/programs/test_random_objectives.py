"""Objectives at random, scalars and vectors mixed: derived inner gradients against those of autograd."""

from __future__ import annotations

import random
from typing import Any

import pytest

import nsam

PROGRAM = """nsam 1
use std.rules (gd, dgd)
system s() {
  input x: [4]
  memory k, v : linear(4 -> 4)
  memory a, b : vector(4) { learn x; minimize l2; by gd(lr = 0.1); every 3 tokens; init learned normal(0.5) }
  memory m : STRUCTURE { learn CONTEXT; minimize OBJECTIVE; by RULE; every PERIOD; init learned normal(0.5) }
  output READ * x
}
"""
STRUCTURES = [
    "linear(4 -> 4)",
    "linear(4 -> 4, heads = 2, bias)",
    "mlp(4 -> 6 -> 4, bias)",
    "mlp(4 -> 4 -> 4, heads = 2, residual)",
    "vector(4)",
]


class Objective:
    """Writes a smooth objective of vectors and scalars."""

    def __init__(self, seed: int, keyed: bool) -> None:
        self.random = random.Random(seed)
        self.read = "self(key)" if keyed else "self"
        self.leaves = ["value", "key", "self(value)", "self(0.5 * key)"] if keyed else ["value", "self"]

    def one_of(self, *forms: str) -> str:
        """One of some forms; `V` in it becomes a vector, `S` a scalar, `N` a number."""
        return self.random.choice(forms)

    def vector(self, depth: int) -> str:
        if depth == 0:
            return self.random.choice([*self.leaves, self.read, self.read])
        form = self.one_of(
            "V + V", "V - V", "V * V", "S * V", "V + S", "S - V", "V / (2 + S^2)", "S / (2 + V^2)", "N * V", "V + N",
            "-(V)", "tanh(V)", "sin(V)", "softplus(V)", "gelu_tanh(V)", "exp(tanh(V))", "log(1 + V^2)", "sqrt(1 + V^2)",
            "max(V, S)", "min(V, V)", "max(V, N)", "clip(V, -0.5, S)", "clip(S, V, 0.5)", "V^2", "(2 + sin(S))^V",
            "(2 + sin(V))^S", "(2 + sin(V))^1.5", "abs(V)", "softmax(V)", "normalize(2 + sin(V))",
            "0 * V + S", "relu(V)", "sign(V)", "silu(V)",
        )  # fmt: skip
        return self.filled(form, depth)

    def scalar(self, depth: int) -> str:
        form = self.one_of(
            "sum(V)", "mean(V)", "norm(V)", "dot(V, V)", "sigmoid(S)", "S * S", "S + N", "sum(V) - mean(V)", "tanh(S)",
            "max(S, S)", "N * S", "sum(tanh(V))", "mean(V * V)",
        )  # fmt: skip
        return self.filled(form, depth) if depth else f"mean({self.vector(0)})"

    def filled(self, form: str, depth: int) -> str:
        made = {"V": self.vector, "S": self.scalar}
        text = ""
        for letter in form:
            if letter == "N":
                text += self.random.choice(["0", "1", "(-1)", "0.3", "2"])
            else:
                text += f"({made[letter](depth - 1)})" if letter in made else letter
        return text

    def text(self) -> str:
        whole = self.one_of("sum(V)", "mean(V)", "sum(V + S)", "mean(S - V)", "sum(S * V)", "S", "sum(max(V, S))")
        return f"0.2 * mean({self.read}) + sin({self.filled(whole, 3)})"


@pytest.mark.parametrize("seed", range(24))
def test_random_objective(seed: int, pair: Any) -> None:
    choice = random.Random(seed)
    structure = choice.choice(STRUCTURES)
    keyed = not structure.startswith("vector")
    context = choice.choice(["k(x) -> v(x)", "k(x) -> b", "a -> b"] if keyed else ["v(x)", "a"])
    text = PROGRAM.replace("STRUCTURE", structure).replace("OBJECTIVE", Objective(seed, keyed).text())
    text = text.replace("CONTEXT", context + choice.choice(["", "", " over last 2 tokens"]))
    text = text.replace("RULE", "gd(lr = 0.1)").replace("READ", "m(x)" if keyed else "m")
    text = text.replace("PERIOD", choice.choice(["1 token", "3 tokens", "3 tokens; reads running", "3 tokens summed"]))
    assert pair(nsam.loads(text), "s").apart(5, 1) < 1e-8, text


IN_A_RULE = """nsam 1
rule plain(lr, retain = 1) { self <- retain * self - lr * grad }
rule twice(lr) {
  memory n : like(self) { learn grad; minimize OBJECTIVE; by plain(lr = 0.1); every 1 update; reads running }
  self <- self - lr * (grad + n)
}
system s() {
  input x: [4]
  memory k, v : linear(4 -> 4)
  memory m : linear(4 -> 4) { learn k(x) -> v(x); minimize l2; by twice(lr = 0.1); every 2 tokens; init learned }
  output m(x)
}
"""


@pytest.mark.parametrize(
    "objective",
    [
        "mean(self + mean(self^2))",
        "sum(norm(self - value) + value)",
        "sum(sigmoid(mean(self)) - value)",
        "norm(self)^0.5 + sum(abs(self - value)^1.5)",
        "sum(gelu_tanh(1000 * self))",
    ],
)
def test_scalars_beside_matrices_in_a_rule(objective: str, pair: Any) -> None:
    assert pair(nsam.loads(IN_A_RULE.replace("OBJECTIVE", objective)), "s").apart(5, 1) < 1e-9
