"""Rejections that need the level graph: every code's failing program triggers it, its repair does not."""

import subprocess
import sys
from pathlib import Path

import pytest

from nsam.compiler.checks import check_unit
from nsam.dsl import codes
from nsam.dsl.codes import n03xx
from nsam.dsl.codes.entry import Code
from nsam.dsl.diagnostics import Diagnostic, Report
from nsam.dsl.program import Program

EXAMPLES = Path(__file__).parents[2] / "examples"
CODES = [code for code in n03xx.TABLE if code.failing is not None]
REPAIRED = [code for code in codes.CODES.values() if code.repaired is not None]


def findings(text: str, symbolic: bool = False) -> list[Diagnostic]:
    program = Program.loads(text)
    (system,) = program.systems
    report = Report()
    train = program.train() if program.trains else None
    unit = program.symbolic(system) if symbolic else program.instantiate(system, {"dim": 8})
    check_unit(unit, train, report=report)
    return report.diagnostics


@pytest.mark.parametrize("symbolic", [False, True], ids=["sized", "symbolic"])
@pytest.mark.parametrize("code", CODES, ids=lambda code: f"{code.code}-{code.name}")
def test_the_failing_program_fails_with_its_code(code: Code, symbolic: bool) -> None:
    assert code.failing is not None
    found = findings(code.failing, symbolic)
    assert [d.code for d in found] == [code.code]
    assert found[0].severity == code.severity
    assert found[0].primary is not None
    assert found[0].help


@pytest.mark.parametrize("symbolic", [False, True], ids=["sized", "symbolic"])
@pytest.mark.parametrize("code", CODES, ids=lambda code: f"{code.code}-{code.name}")
def test_the_repaired_program_is_clean(code: Code, symbolic: bool) -> None:
    assert code.repaired is not None
    assert findings(code.repaired, symbolic) == []


@pytest.mark.parametrize("symbolic", [False, True])
def test_the_shipped_programs_are_clean_but_for_what_they_show(symbolic: bool) -> None:
    for file in ("hope/hope.nsam", "zoo/zoo.nsam"):
        program = Program.loads((EXAMPLES / file).read_text(encoding="utf-8"))
        for system in program.systems:
            report = Report()
            unit = program.symbolic(system) if symbolic else program.instantiate(system, {"dim": 8})
            check_unit(unit, report=report)
            wanted = ["N0306"] if system == "detached" else []
            assert [d.code for d in report.diagnostics] == wanted, system


def test_open_periods_and_counts_are_checked_too() -> None:
    text = """nsam 1
use std.rules (gd)
system s(dim: int, chunk: int, passes: int) {
  input x: [dim]
  let h = x
  repeat passes {
    memory slow : linear(dim -> dim) { learn h -> h; minimize l2; by gd(lr = 0.1); every 2 * chunk tokens }
    memory m : linear(dim -> dim) { learn h -> h; minimize l2; by gd(lr = 0.1); every chunk tokens; reads running }
    h = h + m(slow(h))
  }
  output h
}
"""
    assert findings(text, symbolic=True) == []


def test_a_cycle_is_drawn_with_each_frequency() -> None:
    code = next(code for code in CODES if code.code == "N0301")
    (found,) = findings(str(code.failing))
    drawn = found.message + "".join(found.notes)
    for text in ("a (1 per token)", "b (1/4 per token)", "[1/4 per token, reads running]", "value of b"):
        assert text in drawn


@pytest.mark.parametrize(
    "use",
    ["learn k -> x; minimize l2; by gd(lr = 0.1)", "learn x -> x; minimize l2; by gd(lr = sum(k))"],
)
def test_a_memory_that_needs_its_own_running_state_is_a_cycle(use: str) -> None:
    text = f"""nsam 1
use std.rules (gd)
system s(dim: int) {{
  input x: [dim]
  let k = m(x)
  memory m : linear(dim -> dim) {{ {use}; every 1 token; reads running }}
  output k
}}
"""
    (found,) = findings(text)
    assert found.code == "N0301"
    assert "`m` needs its own state" in found.message
    assert findings(text.replace("running", "boundary")) == []


def test_a_cycle_through_a_called_system_is_found() -> None:
    text = """nsam 1
use std.rules (gd)
system inner(dim: int) {
  input x: [dim]
  input z: [dim]
  memory m : linear(dim -> dim) { learn z -> x; minimize l2; by gd(lr = 0.1); every 1 token; reads running }
  output m(x)
}
system outer(dim: int) {
  input x: [dim]
  memory g : linear(dim -> dim) { learn x -> y; minimize l2; by gd(lr = 0.1); every 1 token; reads running }
  let y = inner(x, g(x), dim)
  output y
}
"""
    report = Report()
    check_unit(Program.loads(text).symbolic("outer"), report=report)
    assert [d.code for d in report.diagnostics] == ["N0301"]
    assert "`inner.m` and `g`" in report.diagnostics[0].message


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


def test_the_size_of_a_graph_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """nsam 1
system s(dim: int) {
  input x: [dim]
  memory a, b, c, d : linear(dim -> dim)
  output a(b(c(d(x))))
}
"""
    assert findings(text) == []
    monkeypatch.setattr("nsam.compiler.collect.MOST_EDGES", 1)
    (found,) = findings(text)
    assert found.code == "N0309"


def test_checks_load_no_graph_library() -> None:
    code = "import sys, nsam.compiler.checks; sys.exit('networkx' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("code", REPAIRED, ids=lambda code: f"{code.code}-{code.name}")
def test_what_repairs_any_mistake_gets_no_warning(code: Code) -> None:
    assert code.repaired is not None
    program = Program.loads(code.repaired)
    report = Report()
    for system in program.systems:
        check_unit(program.symbolic(system), None, report=report)
    assert [found.message for found in (*program.warnings, *report.diagnostics)] == []
