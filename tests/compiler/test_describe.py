"""Texts for memories whose numbers wait for the values of parameters."""

from __future__ import annotations

import pytest

from nsam.compiler.checks import check_unit
from nsam.compiler.describe import number_text
from nsam.dsl.constants import Unknown
from nsam.dsl.diagnostics import Report
from nsam.dsl.program import Program
from nsam.dsl.sizes import Poly

SYSTEM = """nsam 1

system layer(dim: int, scale: float) {{
  input x: [dim]
  memory n : rmsnorm(dim, eps = {eps})
  memory m : linear(dim -> dim) {{ init learned normal({deviation}) }}
  output m(n(x))
}}
"""


@pytest.mark.parametrize(("eps", "deviation"), [("scale", "dim ^ -0.5"), ("scale / 2", "scale"), ("1e-5", "0.1")])
def test_numbers_of_parameters_are_checked_before_they_have_values(eps: str, deviation: str) -> None:
    program = Program.loads(SYSTEM.format(eps=eps, deviation=deviation))
    report = Report()
    check_unit(program.symbolic("layer"), report=report)
    assert not report.diagnostics
    unit = program.instantiate("layer", {"dim": 16, "scale": 0.25})
    assert {m.name: m.initial.deviation for m in unit.memories}["m"] == pytest.approx(
        {"dim ^ -0.5": 0.25, "scale": 0.25, "0.1": 0.1}[deviation]
    )


def test_numbers_in_words() -> None:
    assert number_text(0.5) == "0.5"
    assert number_text(Poly.variable("dim")) == "dim"
    assert number_text(Unknown("float")) == "…"
