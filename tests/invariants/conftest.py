"""Verification of the shipped programs, and of modules that are broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nsam.dsl.checked import Unit
from nsam.dsl.program import Program

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shipped() -> Callable[..., Unit]:
    """Return a function that gives a system of a shipped program: `shipped("hope", "titans", dim=8)`."""

    def unit(name: str, system: str, **parameters: Any) -> Unit:
        return Program.load(EXAMPLES / name / f"{name}.nsam").instantiate(system, parameters)

    return unit
