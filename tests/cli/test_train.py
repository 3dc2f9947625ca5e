"""train and generate from end to end: what a user types, what is on disk, what a kill leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

Run: TypeAlias = Callable[..., Any]


def curve(folder: Path) -> list[tuple[int, str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], name, line[name]) for line in lines for name in ("loss", "held_out") if name in line]


def start(tmp_path: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nsam", "train", *map(str, arguments)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists() and any(s >= step for s, _, _ in curve_so_far(folder)):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")


def curve_so_far(folder: Path) -> list[tuple[int, str, float]]:
    try:
        return curve(folder)
    except ValueError:  # a line that is being written
        return []


@pytest.fixture
def train(run: Run, tiny: Path, text: Path) -> Run:
    def call(*arguments: object) -> Any:
        return run("train", tiny, "--data", text, "--no-compile", *arguments)

    return call


def test_a_run_leaves_everything_and_generates(train: Run, run: Run, tmp_path: Path, tiny: Path) -> None:
    found = train("--set", "steps=6")
    assert found.returncode == 0, found.stdout + found.stderr
    folder = tmp_path / "runs" / "tiny_bytes-1"
    for name in ("run.json", "metrics.jsonl", "loss.png", "levels.png", "graph.html", "sample.txt", "summary.md"):
        assert (folder / name).stat().st_size > 0, name
    assert (folder / "checkpoints" / "step-000006" / "model.safetensors").exists()
    assert (folder / "program" / "tiny.nsam").read_text() == tiny.read_text()
    assert "held out" in found.stdout
    tiny.unlink()  # the folder is all that generate needs
    first = run("generate", folder, "--prompt", "línea ", "--tokens", 20, "--seed", 3)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("línea ")
    assert len(first.stdout.encode()) >= len("línea ".encode()) + 20
    again = run("generate", folder, "--prompt", "línea ", "--tokens", 20, "--seed", 3)
    assert again.stdout == first.stdout


def test_without_graphviz_a_run_ends_well_and_says_what_is_missing(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = train("--set", "steps=1")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "no image of the level graph: " in found.stdout
    assert "apt install graphviz" in found.stdout
    folder = tmp_path / "runs" / "tiny_bytes-1"
    assert (folder / "graph.html").exists()
    assert not (folder / "graph.svg").exists()


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_curve(train: Run, run: Run, tmp_path: Path, tiny: Path, text: Path) -> None:
    assert train("--out", "whole", "--set", "steps=40").returncode == 0
    parts = tmp_path / "parts"
    options = ("--no-compile", "--set", "steps=40", "--out", parts, "--checkpoint-steps", 1)
    process = start(tmp_path, tiny, "--data", text, *options)
    wait_for_step(parts, 5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert curve_so_far(parts)[-1][0] < 40, "the kill came too late to show anything"
    found = run("train", tiny, "--out", parts, "--resume", "--no-compile")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "continuing at step" in found.stdout
    assert curve(parts) == curve(tmp_path / "whole")
    names = ("model.safetensors", "state.safetensors")
    for name in names:
        a, b = (tmp_path / run_ / "checkpoints" / "step-000040" / name for run_ in ("whole", "parts"))
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(run: Run, tmp_path: Path, tiny: Path, text: Path) -> None:
    folder = tmp_path / "stopped"
    process = start(tmp_path, tiny, "--data", text, "--no-compile", "--set", "steps=100000", "--out", folder)
    wait_for_step(folder, 3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in output
    assert "Traceback" not in errors
    done = curve(folder)[-1][0]
    assert (folder / "checkpoints" / f"step-{done:06d}").is_dir()
    found = run("train", tiny, "--out", folder, "--resume", "--no-compile", "--set", f"steps={done + 2}")
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_run_is_not_overwritten_and_a_changed_one_not_resumed(
    train: Run, run: Run, tmp_path: Path, tiny: Path, text: Path
) -> None:
    assert train("--out", "r", "--set", "steps=2").returncode == 0
    again = train("--out", "r")
    assert again.returncode == 1
    assert "N0508" in again.stderr
    context = run("train", tiny, "--out", "r", "--resume", "--no-compile", "--set", "context=8")
    assert context.returncode == 1
    assert "it was 16 and is 8" in context.stderr
    program = tiny.read_text()
    tiny.write_text(program.replace("tiny(dim = 8)", "tiny(dim = 6)"))
    other = run("train", tiny, "--out", "r", "--resume", "--no-compile")
    assert other.returncode == 1
    assert "N0507" in other.stderr
    assert "[256, 8] there and [256, 6]" in other.stderr
    tiny.write_text(program)
    text.write_text(text.read_text() + "more\n")
    data = run("train", tiny, "--out", "r", "--resume", "--no-compile")
    assert data.returncode == 1
    assert "N0510" in data.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--set", "context=100000"], "N0503"),
        (["--set", "batch=1000000000000"], "N0517"),
        (["--device", "nothing"], "N0512"),
        (["--device", "meta"], "N0512"),
        (["--cuda-graph"], "N0522"),
        (["nobody"], "N0515"),
        (["--out", "text.txt"], "N0508"),
        (["--out", "text.txt/below"], "N0514"),
    ],
)
def test_wrong_requests_are_diagnostics(train: Run, arguments: list[str], code: str) -> None:
    found = train(*arguments)
    assert found.returncode == 1, found.stdout + found.stderr
    assert code in found.stderr
    assert "Traceback" not in found.stderr


def test_periods_that_are_set_are_checked_like_those_in_the_file(
    train: Run, run: Run, tmp_path: Path, tiny: Path
) -> None:
    slow = "memory slow : linear(dim -> dim) { minimize task; every p steps }\n  output"
    text = tiny.read_text().replace("chunk: int = 4", "chunk: int = 4, p: int = 4")
    tiny.write_text(text.replace("output", slow).replace("+ m(", "+ slow(x) + m("))
    for setting in ("every=8", "every=3"):
        refused = train("--set", setting)
        assert refused.returncode == 1
        assert f"`slow` moves every 4 steps, and the level that trains it every {setting[-1]}" in refused.stderr
        assert not (tmp_path / "runs").exists()
    for command in (["graph", "-o", "g.dot"], ["schedule"], ["explain"]):
        assert "N0311" in run(*command, tiny, "tiny_bytes", "-p", "every=3").stderr
    assert train("--set", "every=2", "--set", "steps=2", "--out", "r").returncode == 0
    resumed = run("train", tiny, "--out", "r", "--resume", "--no-compile", "--set", "p=3")
    assert "N0311" in resumed.stderr


def test_a_memory_that_is_never_reset_goes_on_in_a_resumed_run(
    train: Run, run: Run, tmp_path: Path, tiny: Path
) -> None:
    program = tiny.read_text()
    tiny.write_text(program.replace("every    chunk tokens", "every    chunk tokens\n    reset    never"))
    assert train("--out", "whole", "--set", "steps=6").returncode == 0
    assert train("--out", "parts", "--set", "steps=3").returncode == 0
    found = run("train", tiny, "--out", "parts", "--resume", "--no-compile", "--set", "steps=6")
    assert found.returncode == 0, found.stdout + found.stderr
    losses = {name: [c for c in curve(tmp_path / name) if c[1] == "loss"] for name in ("whole", "parts")}
    assert losses["parts"] == losses["whole"]
    tiny.write_text(program)
    assert train("--out", "reset", "--set", "steps=6").returncode == 0
    reset = [c for c in curve(tmp_path / "reset") if c[1] == "loss"]
    assert reset[0] == losses["whole"][0]
    assert reset[1:] != losses["whole"][1:]


def test_a_resumed_run_keeps_its_seed(train: Run) -> None:
    assert train("--resume", "--seed", 3).returncode == 2


def test_seeds_have_64_bits(train: Run, run: Run, tmp_path: Path) -> None:
    found = train("--seed", 2**64)
    assert found.returncode == 2
    assert "--seed" in found.stderr
    assert train("--seed", 2**64 - 1, "--out", "r", "--set", "steps=1").returncode == 0
    text = ("generate", "r", "--prompt", "a", "--tokens", 2, "--seed")
    assert run(*text, 2**64).returncode == 2
    assert run(*text, 2**64 - 1).returncode == 0


def test_a_diverging_run_stops_with_the_last_good_checkpoint(train: Run, tmp_path: Path, tiny: Path) -> None:
    tiny.write_text(tiny.read_text().replace("adamw(lr = 1e-2)", "gd(lr = 1e30)").replace("(dgd, adamw)", "(dgd, gd)"))
    found = train("--out", "bad")
    assert found.returncode == 1, found.stdout + found.stderr
    assert "N0506" in found.stderr
    assert "last good checkpoint" in found.stderr
    assert (tmp_path / "bad" / "checkpoints" / "step-000000").is_dir()


def test_generate_refuses_what_is_not_a_run(run: Run, tmp_path: Path) -> None:
    found = run("generate", tmp_path, "--prompt", "x")
    assert found.returncode == 1
    assert "N0509" in found.stderr
    assert run("generate", tmp_path, "--prompt", "").returncode == 2


def test_a_budget_of_memory_is_said_kept_and_refused(train: Run, run: Run, tiny: Path) -> None:
    found = train("--set", "steps=2", "--memory", "1GB", "--out", "run")
    assert found.returncode == 0, found.stderr
    assert "memory: about" in found.stdout
    assert "of a budget of 1.00 GB; everything is kept" in found.stdout
    again = run("train", tiny, "--no-compile", "--set", "steps=3", "--out", "run", "--resume")
    assert "of a budget of 1.00 GB" in again.stdout
    small = train("--set", "steps=2", "--memory", "1kB", "--out", "small")
    assert small.returncode == 1
    assert "N0520" in small.stderr + small.stdout
    least = re.search(r"at least ([0-9.]+) (.?B), the budget", small.stderr + small.stdout)
    assert least is not None
    measured_again = f"{float(least[1]) * 1.03:.2f}{least[2]}"  # two measurements differ by a kilobyte; Adam needs 20
    enough = train("--set", "steps=2", "--memory", measured_again, "--out", "least")
    assert enough.returncode == 0, enough.stderr
    assert "N0521" in (bad := train("--memory", "lots")).stderr + bad.stdout
