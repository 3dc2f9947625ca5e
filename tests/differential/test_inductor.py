"""Small random programs through inductor: compiled blocks against the reference, values and gradients in float64.

Compiling is what takes time, so the programs have one short period and a segment is two of them, of quick kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from comparison import compare
from sizes import SMALL
from test_random_programs import found

from nsam.backends.torch.runtime import blocks, kept
from nsam.compiler import loops

SEEDS = range(7)
PERIOD = SMALL.periods[0]
TIME = 4 * PERIOD + 1
"""Two segments and a rest."""
LOADED = "loaded from an earlier run"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The compiled functions that were called; segments are of two periods."""
    called: list[str] = []
    original = blocks._compile

    def noted(function: Callable[..., Any], **how: bool) -> Callable[..., Any]:
        compiled = original(function, **how)

        def run(*args: Any) -> Any:
            called.append(function.__name__)
            return compiled(*args)

        return run

    def load(*given: Any) -> Any:
        function = original_load(*given)
        if function is not None:
            called.append(LOADED)
        return function

    original_load = kept._load
    monkeypatch.setattr(kept, "_load", load)
    monkeypatch.setattr(blocks, "_compile", noted)
    monkeypatch.setattr(loops, "SEGMENT_TOKENS", 2 * PERIOD)
    return called


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
@pytest.mark.usefixtures("quick_kernels")
@pytest.mark.parametrize("seed", SEEDS)
def test_inductor_equals_reference(seed: int, calls: list[str]) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    case = replace(found(seed, SMALL), time=TIME, compiled=True)
    outcome = compare(case)
    if outcome.error is not None:
        raise outcome.error
    assert not outcome.skipped
    assert not outcome.failures(), case.text
    assert calls, "the blocks ran as plain PyTorch"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1 or LOADED in calls
