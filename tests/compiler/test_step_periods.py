"""What `nsam check` says of periods in steps inside of a level that moves every n steps."""

from __future__ import annotations

import pytest

from nsam.compiler.checks import check_unit
from nsam.dsl.diagnostics import Diagnostic, Report
from nsam.dsl.program import Program

PROGRAM = """nsam 1
use std.rules (adamw)
system inner(dim: int) {
  input x: [dim]
  memory level[p in [%s]] : linear(dim -> dim) { minimize task; every p steps }
  output chain(level, x)
}
system net(dim: int = 4) {
  input tokens: token(8)
  memory e : table(8, dim)
  let h = e(tokens)
  repeat 2 { h = h + inner(h, dim) }
  output e.T(h)
}
train t {
  model net()
  data text(context = 8, batch = 2)
  minimize cross_entropy(model(tokens), next(tokens))
  by adamw(lr = 0.1)
  every %d steps
  steps 12
}
"""


def found(periods: str, every: int) -> list[Diagnostic]:
    train = Program.loads(PROGRAM % (periods, every)).train("t", {})
    report = Report()
    check_unit(train.model, train=train, report=report)
    return [d for d in report.diagnostics if d.code == "N0311"]


@pytest.mark.parametrize(("periods", "every"), [("1, 2, 5", 1), ("2, 4, inf", 2), ("3, 9", 3), ("inf", 7)])
def test_multiples_of_the_levels_period_are_right(periods: str, every: int) -> None:
    assert found(periods, every) == []


@pytest.mark.parametrize(("periods", "every", "help_"), [("1", 2, "every 2 steps"), ("4, 6", 4, "every 8 steps")])
def test_other_periods_are_refused_with_the_next_that_fits(periods: str, every: int, help_: str) -> None:
    (said,) = found(periods, every)
    assert said.help == help_
    assert "level" in said.message
    assert [label.span for label in said.secondary]
