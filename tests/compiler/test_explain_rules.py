"""Rules in mathematics: columns, errors by their names, products element by element, and equations by features."""

from __future__ import annotations

import pytest

from nsam.compiler.explain import explain
from nsam.dsl.program import Program

RULES = """nsam 1
use std.rules (dgd, momentum, delta_momentum, muon, m3)
use std.optimizers (
  adagrad, preconditioned_momentum, generalized_huber, generalized_lp, deep_momentum, deep_muon, dgd_momentum_inside
)
rule kept_keys(lr) {
  memory seen : linear(cols(self) -> cols(self)) {
    learn key -> key; minimize l2; by plain(lr = lr); every 1 update; reads running
  }
  self <- self - lr * outer(err, seen(key))
}
rule plain(lr) {
  self <- self - lr * grad
}
rule turned(lr) {
  self <- self - lr * outer(self @ transpose(self) @ self @ key, key) * self - lr * grad
}
rule both(lr) {
  self <- tanh(self) - lr * (grad + outer(clip(err, -1, 1), key))
}
"""


SYSTEM = """system s(dim: int = 4) {
  input x: [dim]
  memory k, v : linear(dim -> dim)
  memory m : STRUCTURE {
    learn k(x) -> v(x)WINDOW; minimize OBJECTIVE; by RULE(lr = 0.1); every 4 tokens
  }
  output m(x)
}
"""


def explained(**clauses: str) -> str:
    text = RULES + SYSTEM
    for name in ("STRUCTURE", "WINDOW", "OBJECTIVE", "RULE"):
        default = {"STRUCTURE": "linear(dim -> dim)", "WINDOW": "", "OBJECTIVE": "l2"}
        text = text.replace(name, clauses.get(name.lower(), default.get(name, "plain")))
    return explain(Program.loads(text).instantiate("s", {}))


def update(rule: str, minimize: str = "l2", window: str = "", structure: str = "linear(dim -> dim)") -> str:
    found = explained(rule=rule, objective=minimize, window=window, structure=structure)
    part = found.split("\n  update ")[1].split("\n  moves ")[0]
    return " ".join(part.split())


@pytest.mark.parametrize(
    ("rule", "minimize", "wanted"),
    [
        ("kept_keys", "l2", "Mₜ = Mₜ₋₁ − 0.1 e (seenₜ k)ᵀ"),
        ("kept_keys", "huber(1)", "Mₜ = Mₜ₋₁ − 0.1 g (seenₜ k)ᵀ"),
        ("kept_keys", "dot", "Mₜ = Mₜ₋₁ + 0.1 v (seenₜ k)ᵀ"),
        ("generalized_huber", "dot", "miss = Mₜ₋₁ k − v"),
        ("generalized_huber", "l2", "miss = Mₜ₋₁ k + e"),
        ("generalized_lp", "oja", "miss = Mₜ₋₁ k − v"),
        ("turned", "l2", ") ⊙ Mₜ₋₁"),
        ("preconditioned_momentum", "l2", "scale = I / (√(covarianceₜ ⊙ I) + 10⁻⁸)"),
    ],
)
def test_layers_act_on_columns(rule: str, minimize: str, wanted: str) -> None:
    assert wanted in update(rule, minimize)


def test_each_layer_has_its_error_and_its_gradient() -> None:
    found = update("both", structure="mlp(dim -> dim -> dim)")
    assert "Wₜ = tanh(Wₜ₋₁) − 0.1 (∇ + clip(g, −1, 1) xᵀ)" in found
    assert "for (W, x, g) = (W₁, k, g₁) (W₂, x₂, g₂), each with its ∇" in found


def test_a_window_has_rows() -> None:
    found = update("dgd", window=" over last 3 tokens")
    assert "Mₜ = Mₜ₋₁ (I − 0.1 Xᵀ X) − 0.1 ∇" in found
    assert "X the keys of the window, a row for each token" in found
    assert "G" not in found


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("momentum", "eq. 33–34"),
        ("muon", "eq. 33–34, 42"),
        ("m3", "eq. 33–34, 42, 75"),
        ("preconditioned_momentum", "eq. 46–47"),
        ("delta_momentum", "eq. 48–49"),
        ("deep_momentum", "eq. 50"),
        ("deep_muon", "eq. 42, 50, 52"),
        ("dgd_momentum_inside", "eq. 33–34, 57, 88"),
        ("generalized_huber", "eq. 59–60"),
        ("generalized_lp", "eq. 59–60"),
        ("dgd", "eq. 57, 88"),
        ("adagrad", ""),
        ("kept_keys", ""),
    ],
)
def test_equations_come_from_what_a_rule_remembers(rule: str, wanted: str) -> None:
    """Squares of gradients and memories of keys are no momentum."""
    found = update(rule)
    assert wanted in found if wanted else "eq." not in found
    assert found.count("eq.") == bool(wanted)


def test_only_what_is_missed_is_called_e() -> None:
    shown = explained(objective="sum((self(key) - mean(self(key)))^4) + sum((self(key) - value)^4)")
    assert "u = ŷ − mean(ŷ)" in shown
    assert "e = ŷ − v" in shown
    assert "e = ŷ − mean" not in shown
