"""A factor set to 0, and numbers known when a program is compiled where other programs have values."""

from __future__ import annotations

from typing import Any

import pytest

import nsam

ABLATED = """nsam 1
rule r(lr, mix = 0.5) {{
  state slow = zeros
  slow <- 0.9 * slow + grad
  self <- 0.9 * self - lr * ({step})
}}
system s(mix: float = 0.5) {{
  input x: [2]
  memory v : linear(2 -> 3)
  memory m : linear(2 -> 3) {{ learn x -> v(x); minimize l2; by r(lr = 0.1, mix = mix); every 2 tokens }}
  output m(x)
}}
"""
STEPS = {
    "a norm": "grad * exp(-norm(mix * slow))",
    "a bound": "grad / max(1, norm(mix * self)) + mix * slow / max(1, root_mean_square(mix * slow))",
    "sums": "grad * (1 + sum((mix * slow)^2) + mean(mix * slow) + dot(mix * err, err) + norm(mix * key))",
    "orthogonalized": "grad + orthogonalize(mix * slow)",
    "outer products": "outer(err, key + mix * key) + outer(mix * err, key) + outer(err, mix * key)",
    "products": "grad + (mix * slow) @ outer(key, key) + self @ (mix * transpose(self) @ self)",
    "the identity": "(1 - identity) * grad * (1 + norm(mix * identity - mix * outer(key, key)))",
    "a sum of ones": "grad * (sum(0 * key + 1) + sum(mix * key + lr)) + grad @ (ones * lr)",
}


@pytest.mark.parametrize("mix", [0, 0.5])
@pytest.mark.parametrize("case", STEPS)
def test_an_ablated_rule(case: str, mix: float, pair: Any) -> None:
    assert pair(nsam.loads(ABLATED.format(step=STEPS[case])), "s", mix=mix).apart(5) < 1e-9


KNOWN = """nsam 1
rule r(lr) {{ self <- self - lr * sqrt(max(1, rows(self) / cols(self))) * norm(lr) * grad / sum(rows(self)) }}
system s(w: float = 3) {{
  input x: [3]
  memory m : linear(3 -> 4) {{
    learn x -> concat(x, w); minimize {number} * sum((self(key) - value)^2); by r(lr = 0.1); every 2 tokens
  }}
  memory a : vector(3) {{ learn x; minimize l2; by r(lr = 0.1); every 2 tokens; reads running }}
  output {number} * m(x + a)
}}
"""


@pytest.mark.parametrize("number", ["norm(2)", "sum(-w)", "dot(2, w)", "mean(w)", "max(norm(w), 1)", "norm(w - 3)"])
def test_numbers_in_reductions(number: str, pair: Any) -> None:
    both = pair(nsam.loads(KNOWN.format(number=number)), "s")
    assert both.apart(5) < 1e-9 if number != "norm(w - 3)" else not both.compiled(*both.inputs(1, 3))[0].any()


def test_sizes_leave_a_rule_affine() -> None:
    """`rows(self)` and reductions of numbers are numbers: the rule is folded by products of matrices."""
    assert "rt.Generic(" not in nsam.source(nsam.loads(KNOWN.format(number="mean(w)")), "s")
    assert "rt.Generic(" in nsam.source(nsam.loads(ABLATED.format(step=STEPS["the identity"])), "s")
