"""Every kept program, compared as random ones are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from comparison import Case, compare
from kept import files, keep, read, told

from nsam.dsl.format import format_check


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_kept_program(path: Path) -> None:
    case = read(path)
    outcome = compare(case)
    if outcome.error is not None:
        raise outcome.error
    assert not outcome.skipped
    assert not outcome.failures(), case.text


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_kept_program_is_in_the_standard_layout(path: Path) -> None:
    assert format_check(path.read_text())


def test_a_case_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kept.FOLDER", tmp_path / "kept")
    case = Case(
        "nsam 1\n\nsystem s() {\n  input x: [1]\n  output x\n}\n", seed=7, time=5, batch=1, without=("hoist", "sink")
    )
    path = keep(case, "seed_7", "values")
    again = read(path)
    assert again == replace(case, text=told(case, "values"))
