"""train --resume: what may change in between, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from nsam.runs.checkpoint import latest_checkpoint, load_checkpoint
from nsam.runs.folder import open_run

Run: TypeAlias = Callable[..., Any]


@pytest.fixture
def train(run: Run, tiny: Path, text: Path) -> Run:
    def call(*arguments: object) -> Any:
        return run("train", tiny, "--data", text, "--no-compile", "--out", "r", *arguments)

    return call


@pytest.fixture
def resume(run: Run, tiny: Path) -> Run:
    def call(*arguments: object) -> Any:
        return run("train", tiny, "--no-compile", "--out", "r", "--resume", *arguments)

    return call


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def learning_rate(folder: Path) -> float:
    groups = load_checkpoint(latest_checkpoint(folder / "checkpoints")).optimizer["param_groups"]
    (rate,) = {group["lr"] for group in groups}
    return float(rate)


def test_new_arguments_of_rules_are_taken_said_and_kept(train: Run, resume: Run, tmp_path: Path, tiny: Path) -> None:
    assert train("--set", "steps=2").returncode == 0
    replace(tiny, "adamw(lr = 1e-2)", "adamw(lr = 3e-3)")
    found = resume("--set", "steps=3")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "changed since then: tiny.nsam, adamw.lr 0.01 -> 0.003" in found.stdout
    assert learning_rate(tmp_path / "r") == 3e-3
    assert (tmp_path / "r" / "program" / "tiny.nsam").read_text() == tiny.read_text()
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if "changed" in line] == [
        {"step": 2, "changed": ["tiny.nsam", "adamw.lr 0.01 -> 0.003"]}
    ]
    again = resume("--set", "steps=4", "--set", "lr=0.002")
    assert "changed since then: adamw.lr 0.003 -> 0.002" in again.stdout, again.stderr
    assert learning_rate(tmp_path / "r") == 2e-3
    same = resume("--set", "steps=5")
    assert same.returncode == 0
    assert "changed" not in same.stdout


def test_another_batch_is_taken_where_no_memory_goes_on(train: Run, resume: Run, tmp_path: Path, tiny: Path) -> None:
    assert train("--set", "steps=2").returncode == 0
    found = resume("--set", "steps=3", "--set", "batch=3")
    assert "changed since then: batch 2 -> 3" in found.stdout, found.stderr
    assert open_run(tmp_path / "r")[1].batch == 3
    replace(tiny, "every    chunk tokens", "every    chunk tokens\n    reset    never")
    refused = resume("--set", "batch=4")
    assert refused.returncode == 1
    assert "N0510" in refused.stderr


def test_a_run_that_diverged_goes_on_at_a_lower_rate(train: Run, resume: Run, tmp_path: Path, tiny: Path) -> None:
    replace(tiny, "(dgd, adamw)", "(dgd, gd)")
    replace(tiny, "adamw(lr = 1e-2)", "gd(lr = 1e30)")
    found = train()
    assert "N0506" in found.stderr
    assert "--resume" in found.stderr
    assert "N0506" in resume().stderr
    replace(tiny, "1e30", "1e-2")
    found = resume()
    assert found.returncode == 0, found.stdout + found.stderr
    assert "gd.lr 1e+30 -> 0.01" in found.stdout


def test_a_program_with_the_same_parameters_goes_on_and_that_is_said(
    train: Run, resume: Run, run: Run, tmp_path: Path, tiny: Path
) -> None:
    assert train("--set", "steps=2").returncode == 0
    replace(tiny, "dgd(lr = 0.5)", "dgd(lr = 0.25)")
    renamed = tiny.rename(tmp_path / "renamed.nsam")
    found = run("train", renamed, "--no-compile", "--out", "r", "--resume", "--set", "steps=3")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "changed since then: renamed.nsam\n" in found.stdout
    assert run("generate", "r", "--prompt", "a", "--tokens", 2).returncode == 0
    assert open_run(tmp_path / "r")[1].main == "renamed.nsam"


def test_other_rules_are_refused(train: Run, resume: Run, tmp_path: Path, tiny: Path) -> None:
    assert train("--set", "steps=2").returncode == 0
    before = tiny.read_text()
    replace(tiny, "(dgd, adamw)", "(dgd, gd)")
    replace(tiny, "adamw(lr", "gd(lr")
    found = resume()
    assert found.returncode == 1
    assert "N0507" in found.stderr
    assert "moved by the rule adamw and is by gd" in found.stderr
    assert (tmp_path / "r" / "program" / "tiny.nsam").read_text() == before


def test_a_memory_that_goes_on_has_the_same_states(train: Run, resume: Run, tiny: Path) -> None:
    replace(tiny, "every    chunk tokens", "every    chunk tokens\n    reset    never")
    replace(tiny, "(dgd, adamw)", "(dgd, momentum, adamw)")
    assert train("--set", "steps=2").returncode == 0
    replace(tiny, "dgd(lr = 0.5)", "dgd(lr = 0.25)")
    assert resume("--set", "steps=3").returncode == 0
    replace(tiny, "dgd(lr = 0.25)", "momentum(lr = 0.1)")
    found = resume("--set", "steps=4")
    assert found.returncode == 1, found.stdout + found.stderr
    assert "`m.weight.trace` is absent there and [1, 8, 8] here" in found.stderr
