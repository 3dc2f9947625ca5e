"""`nsam generate` and memories that are never reset: they go on from the run, and from one text to the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

import nsam
from nsam.runs.checkpoint import latest_checkpoint, load_checkpoint
from nsam.training.restore import trained_model

Run: TypeAlias = Callable[..., Any]


@pytest.fixture
def generate(run: Run, tmp_path: Path, tiny: Path, text: Path) -> Run:
    """A run of three steps with a lifelong memory, and the command that continues a text with it."""
    program = tiny.read_text()
    tiny.write_text(program.replace("every    chunk tokens", "every    chunk tokens\n    reset    never"))
    made = run("train", tiny, "--data", text, "--no-compile", "--out", "kept", "--set", "steps=3")
    assert made.returncode == 0, made.stdout + made.stderr

    def call(*arguments: object, succeeds: bool = True) -> str:
        found = run("generate", "kept", "--prompt", "The list ", "--tokens", 40, "--temperature", 1, *arguments)
        assert (found.returncode == 0) is succeeds, found.stdout + found.stderr
        assert "Traceback" not in found.stderr
        return str(found.stdout if succeeds else found.stderr)

    return call


def memory(file: Path) -> torch.Tensor:
    found: torch.Tensor = nsam.load_state(file)["kept"]["m.weight"]
    return found


def test_texts_start_from_what_the_run_has_learnt(generate: Run, tmp_path: Path) -> None:
    run_state = load_checkpoint(latest_checkpoint(tmp_path / "kept" / "checkpoints")).memory
    files = [tmp_path / name for name in ("first", "second", "fresh")]
    text = generate("--state", files[0])
    assert text == generate()
    generate("--state", files[1], "--stream", 1)
    generate("--state", files[2], "--fresh")
    _, last = trained_model(tmp_path / "kept")
    assert torch.equal(last["kept"]["m.weight"], run_state["kept"]["m.weight"])
    for file, state in ((files[0], nsam.take_sequences(last, [0])), (files[1], nsam.take_sequences(last, [1]))):
        assert nsam.load_state(file)["steps"] == state["steps"] + len("The list ") + 40
    states = [memory(file) for file in files]
    assert all(state.shape == (1, 1, 8, 8) for state in states)
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert "N0515" in generate("--stream", 99, succeeds=False)


def test_texts_go_on_from_the_last_text(generate: Run, tmp_path: Path) -> None:
    file = tmp_path / "diary.safetensors"
    generate("--state", file)
    before, learnt = nsam.load_state(file), memory(file)
    assert before["position"] == 0
    generate("--state", file)
    after = nsam.load_state(file)
    assert not torch.equal(memory(file), learnt)
    assert after["steps"] == before["steps"] + len("The list ") + 40
    file.write_bytes(b"no")
    assert "N0519" in generate("--state", file, succeeds=False)


def test_without_a_lifelong_memory_there_is_nothing_to_keep(run: Run, tiny: Path, text: Path) -> None:
    assert run("train", tiny, "--data", text, "--no-compile", "--out", "r", "--set", "steps=1").returncode == 0
    found = run("generate", "r", "--prompt", "a", "--tokens", 3, "--state", "s")
    assert found.returncode == 1
    assert "N0515" in found.stderr
    assert run("generate", "r", "--prompt", "a", "--tokens", 3).returncode == 0
