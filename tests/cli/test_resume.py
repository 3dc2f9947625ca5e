"""train --resume: what may change in between, and what is said about it."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from nsam.runs.checkpoint import latest_checkpoint, load_checkpoint
from nsam.runs.folder import RunFolder, open_run
from nsam.runs.lock import held

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
    assert "changed since the last checkpoint: tiny.nsam, adamw.lr 0.01 -> 0.003" in found.stdout
    assert learning_rate(tmp_path / "r") == 3e-3
    assert (tmp_path / "r" / "program" / "tiny.nsam").read_text() == tiny.read_text()
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if "changed" in line] == [
        {"step": 2, "changed": ["tiny.nsam", "adamw.lr 0.01 -> 0.003"]}
    ]
    again = resume("--set", "steps=4", "--set", "lr=0.002")
    assert "changed since the last checkpoint: adamw.lr 0.003 -> 0.002" in again.stdout, again.stderr
    assert learning_rate(tmp_path / "r") == 2e-3
    same = resume("--set", "steps=5")
    assert same.returncode == 0
    assert "changed" not in same.stdout


def test_another_batch_is_taken_where_no_memory_goes_on(train: Run, resume: Run, tmp_path: Path, tiny: Path) -> None:
    assert train("--set", "steps=2").returncode == 0
    found = resume("--set", "steps=3", "--set", "batch=3")
    assert "changed since the last checkpoint: batch 2 -> 3" in found.stdout, found.stderr
    assert open_run(tmp_path / "r")[1].batch == 3
    replace(tiny, "every    chunk tokens", "every    chunk tokens\n    reset    never")
    refused = resume("--set", "batch=4")
    assert refused.returncode == 1
    assert "N0510" in refused.stderr


def test_other_values_of_the_model_are_said_and_kept(train: Run, resume: Run, tmp_path: Path, tiny: Path) -> None:
    assert train("--set", "steps=2").returncode == 0
    found = resume("--set", "steps=4", "--set", "chunk=8", "--set", "every=2")
    assert "changed since the last checkpoint: every 1 -> 2, model.chunk 4 -> 8\n" in found.stdout, found.stderr
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert {"step": 2, "changed": ["every 1 -> 2", "model.chunk 4 -> 8"]} in lines
    replace(tiny, "chunk: int = 4", "chunk: int = 2")  # what was set stays
    assert "checkpoint: tiny.nsam\n" in resume("--set", "steps=6").stdout


def test_a_run_does_not_end_before_where_it_is(train: Run, resume: Run, tmp_path: Path) -> None:
    assert train("--set", "steps=4").returncode == 0
    found = resume("--set", "steps=3")
    assert found.returncode == 1
    assert "N0510" in found.stderr
    assert open_run(tmp_path / "r")[1].overrides["steps"] == 4
    assert resume("--set", "steps=4").returncode == 0


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
    assert "changed since the last checkpoint: renamed.nsam\n" in found.stdout
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


@pytest.mark.parametrize("before", ["checkpoint", "step"])
def test_a_run_that_stopped_before_its_first_checkpoint_can_go_on(
    before: str, train: Run, resume: Run, run: Run, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nsam.training.loop.save_checkpoint", stop)
        if before == "step":
            patch.setattr("nsam.training.loop.Trainer._save", lambda *arguments: None)
            patch.setattr("nsam.training.loop.Trainer._advance", stop)
        stopped = train("--checkpoint-steps", 7, "--threads", 1)
    assert stopped.returncode == 130, stopped.stdout + stopped.stderr
    assert "no checkpoint was saved yet" in stopped.stdout
    continued = stopped.stdout.strip().splitlines()[-1].split()
    assert continued[1:4] == ["train", str(tiny), "tiny_bytes"]
    assert continued[4:] == [
        *("--out", "r", "--resume", "--threads", "1", "--checkpoint-steps", "7", "--no-compile"),
    ]
    assert "N0508" in train().stderr
    generated = run("generate", "r", "--prompt", "a")
    assert "N0509" in generated.stderr
    assert "--resume" in generated.stderr
    replace(tiny, "tiny(dim = 8)", "tiny(dim = 6)")  # nothing is learnt yet: everything may change
    found = run(*continued[1:], "--set", "steps=2")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "changed" not in found.stdout
    assert run("generate", "r", "--prompt", "a", "--tokens", 2).returncode == 0


def test_a_run_is_trained_by_one_process_at_a_time(train: Run, resume: Run, tmp_path: Path) -> None:
    assert train("--set", "steps=1").returncode == 0
    with held(RunFolder(tmp_path / "r")):
        found = resume("--set", "steps=2")
    assert found.returncode == 1
    assert "N0523" in found.stderr
    assert resume("--set", "steps=2").returncode == 0


def test_where_files_cannot_be_locked_a_run_goes_on(train: Run, resume: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    assert train("--set", "steps=1").returncode == 0
    monkeypatch.setattr("nsam.runs.lock.fcntl.flock", unknown)
    assert resume("--set", "steps=2").returncode == 0
