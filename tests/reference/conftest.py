"""Units from program text, and random float64 inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nsam.dsl.checked import RuleUse, Unit

RULES = "use std.rules (gd, dgd, safe_dgd, momentum, delta_momentum, adamw, muon, m3, m3_algorithm1)"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def build() -> Callable[..., Unit]:
    """Return a function that checks a program's text and gives its system's unit."""
    from nsam.dsl.program import Program

    def unit(text: str, system: str = "s", **parameters: Any) -> Unit:
        return Program.loads(f"nsam 1\n{RULES}\n{text}").instantiate(system, parameters)

    return unit


@pytest.fixture(scope="session")
def rule(build: Callable[..., Unit]) -> Callable[[str], RuleUse]:
    """Return a function that gives a `RuleUse` with constant arguments, `adamw(lr = 0.1)`."""

    def use(call: str, declarations: str = "") -> RuleUse:
        unit = build(
            f"{declarations}\nsystem s() {{ input x: [3]\n"
            f"memory m: linear(3 -> 3) {{ learn x -> x; minimize l2; by {call}; every 1 token summed; init zeros }}\n"
            "output m(x) }"
        )
        found = unit.memory("m").rule
        assert found is not None
        return found

    return use


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def random() -> Callable[..., torch.Tensor]:
    """Return a function that draws standard normal float64 numbers."""
    return _random
