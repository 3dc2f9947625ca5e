"""Programs that join features which meet rarely: each computes what the reference does, and keeps the invariants."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsam.compiler.checks import check_unit
from nsam.dsl.diagnostics import Report
from nsam.dsl.program import Program
from nsam.verification import verify_unit

PROGRAMS = sorted((Path(__file__).parent / "combinations").glob("*.nsam"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_what_is_compiled_is_what_is_said(path: Path) -> None:
    program = Program.load(path)
    report = Report()
    check_unit(program.symbolic("s"), report=report)
    assert not report.failed
    found = verify_unit(program.instantiate("s"), stability_tokens=16)
    wrong = [row for row in found.failed if row.check != "stability"]
    assert not wrong, found.text
