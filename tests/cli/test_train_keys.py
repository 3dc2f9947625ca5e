"""Rules that use `key` and `err` as the optimizer of `nsam train`: they learn, resume exactly, and are explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

Run = Callable[..., Any]

PROGRAM = """nsam 1

use std.rules (dgd, safe_dgd, adamw)

system block(dim: int) {
  input x: [dim]
  memory norm : rmsnorm(dim)
  memory q, k, v, o : linear(dim -> dim)
  memory attend : attention(heads = 2) { learn k(norm(x)) -> v(norm(x)) }
  let h = x + o(attend(q(norm(x))))
  memory wide : rmsnorm(dim)
  memory ffn : mlp(dim -> 2*dim -> dim, bias)
  output h + ffn(wide(h))
}

system net(dim: int = 16) {
  input tokens: token(256)
  memory embed : table(256, dim)
  let h = embed(tokens)
  repeat 2 { h = block(h, dim) }
  memory slow : linear(dim -> dim) { minimize task; by safe_dgd(lr = 0.02); every 6 steps }
  output embed.T(h + slow(h))
}

train keyed {
  model    net()
  data     text(context = 32, batch = 4)
  minimize cross_entropy(model(tokens), next(tokens))
  by       dgd(lr = 0.05, erase = 0.01) for matrices, adamw(lr = 1e-2) for others
  every    3 steps
  steps    40
}
"""


BY_TOKEN = PROGRAM.replace("use std.rules", "use std.optimizers (generalized_huber, generalized_lp)\nuse std.rules")
BY_TOKEN = BY_TOKEN.replace("safe_dgd(lr = 0.02)", "generalized_lp(lr = 0.001)")
BY_TOKEN = BY_TOKEN.replace("dgd(lr = 0.05, erase = 0.01)", "generalized_huber(lr = 0.05, bound = 0.1)")
PROGRAMS = {"keyed": PROGRAM, "by_token": BY_TOKEN}


@pytest.fixture(params=PROGRAMS)
def keyed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"{request.param}.nsam"
    path.write_text(PROGRAMS[request.param])
    return path


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_it_learns(run: Run, keyed: Path, text: Path, tmp_path: Path) -> None:
    found = run("train", keyed, "--data", text, "--no-compile", "--out", "run", "--set", "every=1", "--set", "steps=60")
    assert found.returncode == 0, found.stdout + found.stderr
    curve = losses(tmp_path / "run")
    assert curve[60] < curve[1] - 1.0


def test_a_run_stopped_within_the_periods_goes_on_exactly(run: Run, keyed: Path, text: Path, tmp_path: Path) -> None:
    common = ("train", keyed, "--no-compile", "--checkpoint-steps", 1)
    for folder, steps in (("whole", 11), ("parts", 4)):
        found = run(*common, "--data", text, "--out", folder, "--set", f"steps={steps}")
        assert found.returncode == 0, found.stdout + found.stderr
    found = run(*common, "--out", "parts", "--resume", "--set", "steps=11")
    assert found.returncode == 0, found.stdout + found.stderr
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert whole == parts
    for name in ("model.safetensors", "state.safetensors"):
        a, b = (load_file(tmp_path / r / "checkpoints" / "step-000011" / name) for r in ("whole", "parts"))
        assert a.keys() == b.keys()
        assert all(bool((a[key] == b[key]).all()) for key in a), name
    kind = "tokens" if keyed.stem == "by_token" else "keys"
    assert any(f"repeat.0.block.q.weight.{kind}" in key for key in a)  # what belongs to a period that is not closed
    assert any("nsam.keys" in key for key in a)


def test_a_budget_changes_nothing(run: Run, keyed: Path, text: Path, tmp_path: Path) -> None:
    for folder, options in (
        ("plain", ()),
        ("lean", ("--memory", {"keyed": "850kB", "by_token": "1072kB"}[keyed.stem])),
    ):
        found = run("train", keyed, "--data", text, "--no-compile", "--out", folder, "--set", "steps=7", *options)
        assert found.returncode == 0, found.stdout + found.stderr
        assert ("computed again" in found.stdout) == (folder == "lean")
    assert losses(tmp_path / "plain") == losses(tmp_path / "lean")


EXPLAINED = {
    "keyed": (
        "Wₜ = Wₜ₋₁ − 0.01 (Wₜ₋₁ E[x xᵀ]) − 0.05 ∇",
        "moves every 6 steps by the sum of the task's gradients, by safe_dgd along the",
    ),
    "by_token": (
        "miss = Wₜ₋₁ x + g",
        "Wₜ = Wₜ₋₁ − 0.05 clip(miss, −0.1, 0.1) xᵀ",
        "W and states take the mean over the tokens of a step",
        "kept of each token until the step, for each read of W [out, in]: in + 1 + out numbers",
        "moves every 6 steps by the sum of the task's gradients, by generalized_lp, a",
    ),
}


def test_it_is_explained(run: Run, keyed: Path) -> None:
    found = run("explain", keyed, "keyed")
    assert found.returncode == 0, found.stderr
    shown = " ".join(found.stdout.split())
    for line in EXPLAINED[keyed.stem]:
        assert line in shown
    assert "moves every 3 steps" in found.stdout
    found = run("explain", keyed, "keyed", "--format", "json")
    level = json.loads(found.stdout)[-1]
    assert [part["label"] for part in level["rules"]] == ["matrices", "others"]
