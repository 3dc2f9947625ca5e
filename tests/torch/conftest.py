"""The compiled backend: units of shipped programs and of texts, random numbers."""

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


@pytest.fixture(scope="session")
def unit_of() -> Callable[[str], Unit]:
    """Return a function that checks the body of a system with input x [4]."""

    def unit(body: str) -> Unit:
        rules = "use std.rules (gd, dgd, safe_dgd, momentum, adamw, muon)"
        return Program.loads(f"nsam 1\n{rules}\nsystem s() {{\ninput x: [4]\n{body}\n}}").instantiate("s", {})

    return unit


@pytest.fixture
def random() -> Callable[..., torch.Tensor]:
    """Return a function that draws standard normal float64 numbers, the same in every run."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return draw
