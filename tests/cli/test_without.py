"""`--without`: passes are switched off from the command line, and a run keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nsam.training.restore import trained_model

pytestmark = pytest.mark.slow


def test_a_run_keeps_its_passes(run: Any, tiny: Path, text: Path, tmp_path: Path) -> None:
    asked = ("--data", text, "--no-compile", "--out", "plain")
    made = run("train", tiny, *asked, "--set", "steps=2", "--without", "hoist,share")
    assert made.returncode == 0, made.stdout + made.stderr
    assert json.loads((tmp_path / "plain" / "run.json").read_text())["without"] == ["share", "hoist"]
    assert "| passes | all but share, hoist |" in (tmp_path / "plain" / "summary.md").read_text()
    again = run("train", tiny, "--out", "plain", "--resume", "--no-compile", "--set", "steps=3", "--without", "sink")
    assert again.returncode != 0
    assert "--without" in again.stderr
    again = run("train", tiny, "--out", "plain", "--resume", "--no-compile", "--set", "steps=3")
    assert again.returncode == 0, again.stdout + again.stderr
    module, _ = trained_model(tmp_path / "plain")
    assert module.nsam_passes.without == ("share", "hoist")


def test_an_unknown_pass_is_a_diagnostic(run: Any, tiny: Path) -> None:
    for command in ("train", "verify", "explain", "compile"):
        more = ("--dump", "code") if command == "compile" else ()
        said = run(command, tiny, "--without", "shre", *more)
        assert said.returncode != 0
        assert "N0403" in said.stderr + said.stdout
        assert "did you mean `share`" in said.stderr + said.stdout
