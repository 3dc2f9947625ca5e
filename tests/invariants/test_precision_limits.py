"""What float32 is held to: a thousandth, or what the program's own conditioning allows, never more than a tenth."""

from __future__ import annotations

import pytest
from torch import Tensor

import nsam
from nsam.verification import precision
from nsam.verification.report import Row

TEXT = """nsam 1
use std.rules (gd)
system s() {
  input x : [4]
  memory k, v : linear(4 -> 4)
  memory m : linear(4 -> 4) { learn normalize(k(x)) -> v(x); minimize l2; by gd(lr = 0.3); every 4 tokens }
  output m(normalize(k(x)))
}
"""


def single() -> list[Row]:
    report = nsam.verify(nsam.loads(TEXT), "s")
    return [row for row in report.rows if row.check == "precision" and row.subject.startswith("float32")]


def test_a_well_conditioned_program_is_held_to_a_thousandth() -> None:
    assert [(row.result, row.limit, row.note) for row in single()] == [("ok", "≤ 0.001", "")] * 2


def test_rounding_is_allowed_what_the_program_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "SINGLE", 1e-12)  # so every program has to be judged by its conditioning
    for row in single():
        assert row.result == "ok", row
        assert 1e-8 < float(row.limit.removeprefix("≤ ")) < 1e-3
        assert "rounding the parameters" in row.note


def test_no_program_is_allowed_more_than_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
        return 0.2

    monkeypatch.setattr(precision, "_apart", apart)
    assert [(row.result, row.limit) for row in single()] == [("failed", "≤ 0.1")] * 2
