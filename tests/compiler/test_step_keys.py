"""What `nsam check` says where a rule with `key` on the step clock cannot serve a parameter, and where it can."""

from __future__ import annotations

import pytest

from nsam.compiler.checks import check_unit
from nsam.dsl.diagnostics import Diagnostic, Report
from nsam.dsl.program import Program

LEVEL = "by dgd(lr = 0.1) for matrices, gd(lr = 0.1) for others"


def program(body: str, by: str = LEVEL) -> Program:
    return Program.loads(
        f"""nsam 1
use std.rules (gd, dgd, safe_dgd)
use std.optimizers (generalized_huber)
rule of_err(lr) {{ self <- self - lr * outer(clip(err, -1, 1), key) }}
rule of_err_alone(lr) {{ self <- self - lr * outer(err, err) @ self }}
rule learnt(lr) {{ memory t : like(self) {{ learn grad; minimize dot; by gd(lr = 1 / dot(key, key)); every 1 update }}
  self <- self - lr * t }}
system net(dim: int = 4) {{
  input tokens: token(8)
  memory e : table(8, dim)
  memory w : linear(dim -> dim)
  let x = e(tokens)
  {body}
}}
train t {{
  model net()
  data text(context = 8, batch = 2)
  minimize cross_entropy(model(tokens), next(tokens))
  {by}
  steps 3
}}
"""
    )


def findings(body: str, by: str = LEVEL) -> list[Diagnostic]:
    report = Report()
    train = program(body, by).train("t")
    check_unit(train.model, train, report=report)
    return report.diagnostics


OTHER_WAY = "memory u : linear(dim -> dim)\noutput e.T(u.T(u(w(x))))"
FAST = "memory m : linear(dim -> dim) { learn w(x) -> x; minimize l2; by gd(lr = 0.1); every 4 tokens"
STARTS = f"memory u : linear(dim -> dim)\n{FAST}; reset every 8 tokens; init u }}\noutput e.T(m(x) + u(x))"
WRITES = f"""memory u : linear(dim -> dim*dim)
  memory c : vector(dim)
  let start = u(c)
  {FAST}; reset every 8 tokens; init start }}
  output e.T(m(x))"""


@pytest.mark.parametrize(
    ("body", "parameter", "reason"),
    [
        (OTHER_WAY, "u.weight", "`u.T(…)` reads it the other way round"),
        (f"{FAST} }}\noutput e.T(m(x))", "m.weight", "what `m`, which moves during the sequence, starts from"),
        (STARTS, "u.weight", "`m` starts from it"),
        (WRITES, "u.weight", "`m` starts from it"),
    ],
    ids=["transposed", "a start", "copied into a start", "writes a start"],
)
@pytest.mark.parametrize("rule", ["dgd", "generalized_huber", "of_err_alone"])
def test_a_matrix_whose_gradient_is_no_sum_over_inputs_is_refused(
    body: str, parameter: str, reason: str, rule: str
) -> None:
    (found,) = findings(body, LEVEL.replace("dgd", rule))
    assert found.code == "N0226"
    needs = "`err`, the error at the output of a layer" if rule == "of_err_alone" else "`key`, the input of a layer"
    assert f"`{rule}` needs {needs}, and `{parameter}` has none" in found.message
    assert reason in found.message
    assert found.primary is not None
    assert found.primary.span.text == parameter.split(".")[0]
    assert "every 1 step" in (found.help or "")


def test_the_models_own_loss_reads_every_weight() -> None:
    found = findings(
        "memory m : linear(dim -> dim) { minimize task; by gd(lr = 0.1); every 4 tokens }\noutput e.T(w(m(x)))"
    )
    assert [d.code for d in found] == ["N0226", "N0226"]
    assert "the gradients by which the model moves its memories read it too" in found[0].message


@pytest.mark.parametrize("rule", ["dgd", "safe_dgd", "learnt", "generalized_huber", "of_err", "of_err_alone"])
def test_one_rule_for_all_cannot_serve_others(rule: str) -> None:
    (found,) = findings("output e.T(w(x))", f"by {rule}(lr = 0.1)")
    assert found.code == "N0226"
    assert f"`{rule}`" in found.message
    assert "`e` is a table" in found.message
    assert "for others" in (found.help or "")


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        ("conv(dim, 4)", "`m` is a conv"),
        ("rmsnorm(dim)", "`m` is a rmsnorm"),
        ("linear(dim -> dim, bias)", "a bias of `m` has no layer input"),
        ("mlp(dim -> 8 -> dim, bias)", "a bias of `m` has no layer input"),
    ],
)
def test_a_memory_of_the_step_clock_is_checked_with_its_own_rule(structure: str, reason: str) -> None:
    body = f"memory m : {structure} {{ minimize task; by dgd(lr = 0.1); every 4 steps }}\noutput e.T(w(m(x)))"
    (found,) = findings(body, "by gd(lr = 0.1)")
    assert found.code == "N0226"
    assert reason in found.message
    report = Report()
    check_unit(program(body, "by gd(lr = 0.1)").symbolic("net"), report=report)  # without a train declaration too
    assert [d.message for d in report.diagnostics] == [found.message]


@pytest.mark.parametrize("rule", ["dgd", "generalized_huber", "of_err", "of_err_alone"])
@pytest.mark.parametrize(
    "body",
    [
        "output e.T(w(w(x)))",
        "memory m : mlp(dim -> 8 -> dim, gated, heads = 2)\noutput e.T(m(w(x)))",
        "memory m : mlp(dim -> 8 -> dim, residual, bias) { minimize task; every 2 steps }\noutput e.T(m(w(x)))",
        "memory m : linear(dim -> dim) { minimize task; by safe_dgd(lr = 0.1); every 4 steps }\noutput e.T(m(w(x)))",
        "memory m : conv(dim, 4) { minimize task; by dgd(lr = 0.1); every inf steps }\noutput e.T(m(w(x)))",
        f"{FAST}; init zeros }}\noutput e.T(m(x))",
    ],
)
def test_weights_of_layers_are_served(body: str, rule: str) -> None:
    body, level = (text.replace("safe_dgd", "dgd").replace("dgd", rule) for text in (body, LEVEL))
    assert [d for d in findings(body, level) if d.severity == "error"] == []


def test_a_repeat_is_checked_once() -> None:
    inner = "let h = x\nrepeat 3 { memory u : linear(dim -> dim); h = h + u.T(u(h)) }\noutput e.T(w(h))"
    (found,) = findings(inner)
    assert "`u.weight`" in found.message
