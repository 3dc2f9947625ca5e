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


OWN = """nsam 1
use std.rules (adamw, gd, m3)
rule two(lr) {
  memory slow : like(self) { learn grad; minimize dot; by gd(lr = 1); every 2 updates summed }
  self <- self + lr * slow
}
rule nested(lr) {
  memory slow : like(self) { learn grad; minimize dot; by adamw(lr = 1, decay = 0); every 2 updates summed }
  self <- self + lr * slow
}
rule started(lr) {
  state c = 3
  state d = ones
  state z = zeros
  memory p : linear(cols(self) -> cols(self)) {
    learn grad -> grad; minimize dot; by gd(lr = 1); every 1 update; init 2 * identity
  }
  c <- c + grad
  d <- 0.5 * d
  z <- z + grad
  self <- self - lr * c * d * z - grad @ p
}
rule letters(lr) {
  state v = zeros
  state s = zeros
  let x = grad + 1
  let g = 3 * x
  v <- 0.5 * v + g
  s <- s + v
  s <- s + x
  self <- self - lr * rows(self) * s
}
system s() {
  input x: [4]
  input g: []
  memory k : linear(4 -> 4)
  memory m : STRUCTURE { learn KEY; minimize l2; by RULE; every EVERY }
  output READ
}
"""


def own(rule: str, every: str, structure: str = "linear(4 -> 4)") -> list[str]:
    """The explanation of a memory, line by line, spaces squeezed."""
    vector = structure.startswith("vector")
    text = OWN.replace("STRUCTURE", structure).replace("EVERY", every).replace("RULE", rule)
    text = text.replace("KEY", "x" if vector else "k(x) -> x").replace("READ", "m" if vector else "m(x)")
    return [" ".join(line.split()) for line in explain(Program.loads(text).instantiate("s", {})).splitlines()]


@pytest.mark.parametrize(
    ("rule", "every", "wanted"),
    [
        ("two(lr = 1)", "4 tokens summed", "slowₛ₊₄ = slowₛ − slow_total when n ≡ 0 (mod 2), else slowₛ"),
        ("two(lr = 1)", "4 tokens summed", "where n = s/4 + 1 is the number of the update"),
        (
            "two(lr = 1)",
            "4 tokens summed; reset every 8 tokens",
            "where n is the number of the update since the last reset",
        ),
        ("two(lr = 1)", "4 tokens", "slowₜ = slowₜ₋₁ − slow_total when t ≡ 0 (mod 2), else slowₜ₋₁"),
        ("two(lr = 1)", "4 tokens; reset every 8 tokens", "where t counts the tokens since the last reset"),
        ("two(lr = 1)", "4 tokens; reset never", "where t counts the tokens, over all sequences"),
        (
            "adamw(lr = 0.1)",
            "4 tokens summed",
            "Mₛ₊₄ = 0.999 Mₛ − 0.1 (mₛ₊₄ / (1 − 0.9^n)) / (√(v′ₛ₊₄ / (1 − 0.999^n)) + 10⁻⁸)",
        ),
        ("nested(lr = 1)", "4 tokens", "slowₜ = slowₜ₋₁ − slow_mₜ / (1 − 0.9^⌊t / 2⌋) /"),
    ],
)
def test_updates_are_counted(rule: str, every: str, wanted: str) -> None:
    assert any(wanted in line for line in own(rule, every))


def test_a_plain_count_is_not_explained() -> None:
    for rule, every in (("two(lr = 1)", "4 tokens"), ("gd(lr = 1)", "4 tokens summed; reset every 8 tokens")):
        assert not any("counts" in line or "number of the update" in line for line in own(rule, every))


def test_what_states_start_from_is_told_where_it_is_not_zero() -> None:
    found = own("started(lr = 1)", "2 tokens")
    assert [line for line in found if "₀" in line] == ["where c₀ = 3", "where d₀ = 1", "where p₀ = 2 I"]


def test_no_symbol_of_a_rule_stands_for_something_else_too() -> None:
    found = own("letters(lr = 1)", "2 tokens")
    for line in (
        "x′ = ∇ + 1",
        "g = 3 x′",
        "v′ₜ = ½ v′ₜ₋₁ + g",
        "s′′ = s′ₜ₋₁ + v′ₜ",
        "s′ₜ = s′′ + x′",
        "Mₜ = Mₜ₋₁ − rows(Mₜ₋₁) s′ₜ",
    ):
        assert any(text.removeprefix("update ") == line for text in found), line
    vector = own("adamw(lr = 0.1 * g, decay = 0)", "2 tokens", "vector(4)")
    assert "update m′ₜ = 0.9 m′ₜ₋₁ + 0.1 ∇" in vector
    assert any(line.startswith("mₜ = mₜ₋₁ − 0.1 g (m′ₜ /") for line in vector)


def test_an_argument_keeps_its_name() -> None:
    found = own("letters(lr = g)", "2 tokens")
    assert "g′ = 3 x′" in found
    deep = own("gd(lr = g)", "2 tokens", "mlp(4 -> 4 -> 4)")
    assert "update Wₜ = Wₜ₋₁ − ηₜ g′ xᵀ eq. 65" in deep
    assert any(line.startswith("for (W, x, g′) = (W₁, k, g₁)") for line in deep)


def test_a_summed_memory_that_reads_running_shows_its_new_state_at_the_closing_token() -> None:
    assert "a read at t shows Mₛ, at the chunk's last token Mₛ₊₄" in own("gd(lr = 1)", "4 tokens summed; reads running")
    assert "a read at t shows Mₛ" in own("gd(lr = 1)", "4 tokens summed")
