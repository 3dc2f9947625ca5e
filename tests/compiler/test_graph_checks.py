"""Rejections that need the level graph: every code's failing program triggers it, its repair does not."""

import subprocess
import sys

import pytest

from nsam.compiler.checks import check_unit
from nsam.dsl.codes import n03xx
from nsam.dsl.codes.entry import Code
from nsam.dsl.diagnostics import Diagnostic, Report
from nsam.dsl.program import loads

CODES = [code for code in n03xx.TABLE if code.failing is not None]


def findings(text: str, name: str | None = None) -> list[Diagnostic]:
    program = loads(text)
    system = name or text.rsplit("system ", 1)[1].split("(", 1)[0]
    report = Report()
    check_unit(program.instantiate(system, {"dim": 8}), report=report)
    return report.diagnostics


@pytest.mark.parametrize("code", CODES, ids=lambda code: f"{code.code}-{code.name}")
def test_the_failing_program_fails_with_its_code(code: Code) -> None:
    assert code.failing is not None
    found = findings(code.failing)
    assert [d.code for d in found] == [code.code]
    assert found[0].severity == code.severity
    assert found[0].primary is not None
    assert found[0].help


@pytest.mark.parametrize("code", CODES, ids=lambda code: f"{code.code}-{code.name}")
def test_the_repaired_program_is_clean(code: Code) -> None:
    assert code.repaired is not None
    assert findings(code.repaired) == []


def test_a_cycle_is_drawn_with_each_frequency() -> None:
    code = next(code for code in CODES if code.code == "N0301")
    (found,) = findings(str(code.failing))
    drawn = found.message + "".join(found.notes)
    for text in ("a (1 per token)", "b (1/4 per token)", "[1/4 per token, reads running]", "value of b"):
        assert text in drawn


def test_a_parameter_with_another_way_to_the_output_is_not_warned_about() -> None:
    text = """nsam 1
use std.rules (gd)
system s(dim: int) {
  input x: [dim]
  memory k : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn k(x) -> x; minimize l2; by gd(lr = 0.1); every 1 token }
  transfer k -> m : direct
  output m(x) + k(x)
}
"""
    assert findings(text) == []


def test_what_lies_behind_a_direct_transfer_is_named_too() -> None:
    text = """nsam 1
use std.rules (gd)
system s(dim: int) {
  input x: [dim]
  memory deep, k : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn k(deep(x)) -> x; minimize l2; by gd(lr = 0.1); every 1 token }
  transfer k -> m : direct
  output m(x)
}
"""
    (found,) = findings(text)
    assert found.code == "N0306"
    assert "`deep` and `k`" in found.message


def test_a_gate_keeps_its_gradient_where_the_rule_has_none() -> None:
    text = """nsam 1
rule signed(lr) { self <- self - lr * sign(grad) }
system s(dim: int) {
  input x: [dim]
  memory k : linear(dim -> dim)
  memory rate : linear(dim -> 1)
  memory m : linear(dim -> dim) {
    learn k(x) -> x; minimize l2; by signed(lr = sigmoid(rate(x))); every 1 token
  }
  output m(x)
}
"""
    (found,) = findings(text)
    assert found.code == "N0307"
    assert "`k` gets no gradient" in found.message


def test_checks_load_no_graph_library() -> None:
    code = "import sys, nsam.compiler.checks; sys.exit('networkx' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
