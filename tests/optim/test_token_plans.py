"""Plans over the rows of all tokens against the plan of one token, applied to each and averaged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import nsam
from nsam.backends.torch.rule_source import emit_step, load
from nsam.compiler.rule_lowering import Lowering
from nsam.compiler.rule_passes import clean
from nsam.compiler.rule_plan import RulePlan, lower_rule

PRODUCTS = """\
self - lr * outer(err, key)
self - lr * outer(err, key) @ outer(key, key)
self - lr * transpose(outer(key, err)) - lr * grad
self - lr * outer(err, key) * self
self * outer(err, abs(key)) / 3
self - lr * outer(err, key) / (abs(self) + 1)
self @ outer(key, abs(key)) * dot(err, err)
self * dot(err, self @ key)
(1 - lr * norm(err)) * (self - outer(err, key))
(self - outer(err, key)) / (1 + norm(err))
self - lr * outer(outer(err, key) @ key, key)
self - lr * outer(err, transpose(outer(err, key)) @ err)
self - lr * outer(outer(err, key) @ key + self @ key, key)
self - lr * outer(max(err, 0.1), min(key, lr))
self - lr * outer(clip(err, -lr, lr) * err, sqrt(abs(key)))
self - lr * outer(err, key) / (1 + dot(key, key))
self + lr * mean(err) * self - sum(key) * grad
self - lr * rows(self) * outer(err, key) / (cols(self) + 1)
self / (1 + dot(key, abs(key)))
self @ (identity - lr * outer(key, abs(key)))
(identity - lr * outer(err, err)) @ self
self - lr * outer(err, key) @ transpose(self) @ self
self - lr * self @ transpose(self) @ outer(err, key)
self - lr * (self + outer(err, key)) @ (outer(key, abs(key)) + identity)
self - lr * outer((self + outer(err, key)) @ key, key)
self * (1 - lr * norm(err)) * (2 + norm(key)) - lr * norm(key) * norm(err) * grad
(2 - dot(key, key)) * self @ outer(key, abs(key))
-outer(err, key)
lr * self - outer(-err, key) * (lr - 2)
transpose(transpose(self) - outer(key, err))
outer(err ^ 2, key) ^ 1
sign(self) + outer(err, key) @ transpose(outer(abs(err), key)) @ self
self - outer(err, key) - 1 / norm(err)
self - lr * outer(err, key) * sum(0 * key + lr)
self - lr * norm(err ^ 0) * outer(err, key ^ 0)
""".splitlines()
WHOLE = """\
self - lr * outer(err, key) * outer(err, key)
self + orthogonalize(outer(err, key) + self)
self * norm(outer(err, key))
self - lr * sign(outer(err, key)) - lr * outer(err, key) * max(self, outer(err, abs(key)))
outer(err, key) @ transpose(outer(abs(err), key) * self) @ self
self - lr * dot(self, outer(err, key)) * outer(err, key)
self - lr * outer(self @ transpose(outer(err, key)) @ err, key) / (1 + norm(sign(outer(err, key))))
""".splitlines()


def rule_of(body: str) -> Any:
    named = body.replace("outer(err, key)", "step") if "step" not in body else body
    text = f"nsam 1\nrule mine(lr) {{\n let step = outer(err, key)\n self <- {named}\n}}\n"
    return nsam.loads(text + "system s(dim: int) { input x: [dim]; output x }\n").rule("mine", {"lr": 0.3}).rule


def applied(plan: RulePlan, *given: Tensor | tuple[()]) -> Tensor:
    """The new matrix after one update."""
    parameters = dict.fromkeys(plan.parameters, 0.3)
    after: Tensor = load(emit_step(plan), "step")(*given, **parameters, count=1)[0]
    return after


def by_token(rule: Any, w: Tensor, grad: Tensor, keys: Tensor, errs: Tensor, weight: Tensor) -> Tensor:
    """Σ w of the whole right side at each token, the rule as it is inside a sequence."""
    plan, shares = clean(Lowering(rule).lower({})), weight[0, :, 0]
    tokens = [applied(plan, w, (), grad, keys[..., i, :], errs[..., i, :]) for i in range(keys.shape[-2])]
    return sum(share * token for share, token in zip(shares, tokens, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("body", [*PRODUCTS, *WHOLE])
def test_a_mean_over_tokens(body: str) -> None:
    rule = rule_of(body)
    torch.manual_seed(0)
    w, grad = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    keys, errs = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    weight = torch.full((2, 5, 1), 1 / 5, dtype=torch.float64)
    plan = lower_rule(rule, steps=True)
    found = applied(plan, w, (), grad, keys, errs, weight)
    torch.testing.assert_close(found, by_token(rule, w, grad, keys, errs, weight), rtol=1e-12, atol=1e-12)
    source = emit_step(plan)
    assert ("tokens_whole" in source) == (body in WHOLE), source


def test_terms_that_use_no_token_count_once() -> None:
    """Two reads of a layer, or two steps of a period, have weights that add up to 2."""
    rule = rule_of("(0.9 - lr * norm(err)) * self - lr * (outer(err, key) + grad) - 1 / norm(err)")
    torch.manual_seed(0)
    w, grad = torch.randn(2, 1, 3, 4, dtype=torch.float64)
    keys, errs = torch.randn(1, 6, 4, dtype=torch.float64), torch.randn(1, 6, 3, dtype=torch.float64)
    weight = torch.full((1, 6, 1), 1 / 3, dtype=torch.float64)
    found = applied(lower_rule(rule, steps=True), w, (), grad, keys, errs, weight)
    lengths = errs.norm(dim=-1)
    wanted = (0.9 - 0.3 * lengths.sum() / 3) * w - 0.3 * (errs.mT @ keys / 3 + grad) - (1 / lengths).sum() / 3
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
