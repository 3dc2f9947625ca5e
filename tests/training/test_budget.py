"""A budget of memory: which schedule it leads to, what is refused, how sizes are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import nsam
from nsam import api
from nsam.backends.torch.budget import Budget, amount, kept, schedules
from nsam.backends.torch.runtime.replay import Schedule
from nsam.backends.torch.runtime.saved import Loop, Part, Repeat
from nsam.backends.torch.runtime.system import System
from nsam.dsl.diagnostics import ProgramError
from nsam.sizes import parse_size

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("500MB", 5 * 10**8), ("2GiB", 2**31), (" 1.5 gib ", 3 * 2**29), ("64B", 64), (4096, 4096)],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "8", "GB", "8 gigs", "-1GB", "0GB", "nan GB", "1e3MB", "8GB8", 0, -4, "9" * 40 + "GB"]
)
def test_what_is_no_size_is_said(text: str | int) -> None:
    with pytest.raises(ProgramError, match="N0521"):
        parse_size(text)


def test_amounts_are_written() -> None:
    assert [amount(x) for x in (12, 3400, 5_600_000, 812_000_000, 8_000_000_000)] == [
        "12 B", "3.40 kB", "5.60 MB", "812 MB", "8.00 GB",
    ]  # fmt: skip
    assert amount(1_001_000_000, up=True) == "1.01 GB"
    assert amount(812_000_001, up=True) == "813 MB"


def test_what_a_schedule_keeps() -> None:
    part = Part(own=100, repeats=[Repeat(4, 10, Part(own=20, loops=[Loop(8, state=3, saved=50)]))])
    assert kept(part, Schedule()) == 100 + 4 * (20 + 8 * 53)
    assert kept(part, Schedule(group=4)) == 100 + 4 * (20 + 2 * 3)
    assert kept(part, Schedule(group=3, kept=2)) == 100 + 4 * (20 + 2 * 53 + 2 * 3)
    assert kept(part, Schedule(passes=3)) == 100 + 3 * 10 + (20 + 8 * 53)
    assert Schedule() == next(iter(schedules(part)))


def model() -> System:
    """Hope with three layers, as plain PyTorch."""
    torch.manual_seed(0)
    program = nsam.load(EXAMPLES / "hope" / "hope.nsam")
    return nsam.compile(program, "hope", compiled=False, dim=8, vocab=16, layers=3)


def tokens(length: int) -> Tensor:
    return torch.arange(2 * length).view(2, length) % 16


def budget_of(limit: int, length: int = 128) -> Budget:
    """What was chosen for two steps with gradients."""
    module = model()
    budget = api.set_memory(module, limit)
    for _ in range(2):
        y, _ = module(tokens(length))
        y.square().sum().backward()
    return budget


def test_a_smaller_budget_computes_more_again_and_one_that_is_too_small_is_refused() -> None:
    whole = budget_of(10**9).choice
    assert whole is not None
    assert whole.estimate.schedule.idle
    assert "everything is kept" in str(whole)
    again = 0.0
    for limit in (whole.everything * 4 // 5, whole.everything // 2, whole.least):
        choice = budget_of(limit).choice
        assert choice is not None
        assert choice.peak <= limit
        assert choice.estimate.again > again
        again = choice.estimate.again
    with pytest.raises(ProgramError) as caught:
        budget_of(whole.least - 20_000)
    found = caught.value.diagnostics[0]
    assert found.code == "N0520"
    assert amount(whole.least, up=True) in found.message


def test_what_was_refused_once_is_refused_again() -> None:
    enough = budget_of(10**9, length=16).choice
    assert enough is not None
    module = model()
    api.set_memory(module, enough.least)
    module(tokens(16))
    for _ in range(2):
        with pytest.raises(ProgramError, match="N0520"):
            module(tokens(512))
    module(tokens(16))


def test_bytes_set_aside_count() -> None:
    budget = budget_of(10**9)
    assert budget.choice is not None
    peak = budget.choice.peak
    budget.reserve(5_000)
    assert budget.choice.peak == peak + 5_000
    with pytest.raises(ProgramError, match="N0520"):
        budget.reserve(10**9)


def test_models_that_learn_by_their_own_loss_have_no_budget() -> None:
    program = nsam.load(EXAMPLES / "end_to_end" / "end_to_end.nsam")
    with pytest.raises(ProgramError, match="N0520"):
        nsam.compile(program, "reader", memory="8GB")
