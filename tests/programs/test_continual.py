"""The example of continual use: verified, and better from process to process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nsam

FOLDER = Path(__file__).parents[2] / "examples" / "continual"


def test_it_verifies(pair: Any, example: Any) -> None:
    assert pair(example("continual"), "companion", dim=4).apart(19) < 1e-9


def test_each_process_recalls_more_than_the_one_before(tmp_path: Path) -> None:
    file, errors = tmp_path / "diary.safetensors", []
    for day in range(1, 4):
        command = [sys.executable, str(FOLDER / "stream.py"), str(file)]
        found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        assert found.stdout.startswith(f"{day} days")
        errors.append(float(found.stdout.split()[-1]))
    assert errors[2] < errors[1] < errors[0]
    state = nsam.load_state(file)
    assert set(state["kept"]) == {"years.weight"}
