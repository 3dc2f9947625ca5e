"""Every N02xx code: its failing program triggers exactly it, its repair triggers nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nsam.dsl.codes import n02xx
from nsam.dsl.codes.entry import Code
from nsam.dsl.diagnostics import ProgramError
from nsam.dsl.program import Program

PROGRAMS = [entry for entry in n02xx.TABLE if entry.failing is not None]
DSL = Path(n02xx.__file__).parents[1]


def codes(text: str) -> list[str]:
    """Return the codes that a program triggers."""
    try:
        program = Program.loads(text)
    except ProgramError as error:
        return [found.code for found in error.diagnostics]
    return [found.code for found in program.warnings]


@pytest.mark.parametrize("entry", PROGRAMS, ids=lambda entry: entry.code)
def test_failing_program_triggers_exactly_its_code(entry: Code) -> None:
    assert entry.failing is not None
    assert codes(entry.failing) == [entry.code]


@pytest.mark.parametrize("entry", PROGRAMS, ids=lambda entry: entry.code)
def test_repaired_program_is_clean(entry: Code) -> None:
    assert entry.repaired is not None
    assert codes(entry.repaired) == []


@pytest.mark.parametrize("entry", PROGRAMS, ids=lambda entry: entry.code)
def test_the_place_is_shown(entry: Code) -> None:
    with pytest.raises(ProgramError) as caught:
        Program.loads(entry.failing or "")
    (found,) = caught.value.diagnostics
    assert found.primary is not None
    assert found.primary.span.text.strip()
    assert found.name == entry.name


def test_every_code_is_used_and_every_used_code_is_known() -> None:
    used = {code for path in DSL.glob("*.py") for code in re.findall(r'"(N02\d\d)"', path.read_text())}
    assert used == {entry.code for entry in n02xx.TABLE}


def test_shape_mismatch_keeps_its_number() -> None:
    assert next(entry for entry in n02xx.TABLE if entry.name == "shape-mismatch").code == "N0214"
