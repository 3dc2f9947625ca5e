from __future__ import annotations

import gc
from pathlib import Path

import pytest

import nsam
from nsam.dsl import program
from nsam.dsl.diagnostics import ProgramError


def test_a_check_collects_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[bool] = []
    checked = program._checked

    def noted(loaded: program.LoadedProgram) -> program.Program:
        seen.append(gc.isenabled())
        return checked(loaded)

    monkeypatch.setattr(program, "_checked", noted)
    nsam.loads("nsam 1\n")
    (tmp_path / "empty.nsam").write_text("nsam 1\n")
    nsam.load(tmp_path / "empty.nsam")
    assert seen == [False, False]


@pytest.mark.parametrize("enabled", [True, False])
def test_afterwards_it_is_as_before(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        nsam.loads("nsam 1\n")
        assert gc.isenabled() is enabled
        with pytest.raises(ProgramError):
            nsam.loads("nsam 1\nsystem {")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
