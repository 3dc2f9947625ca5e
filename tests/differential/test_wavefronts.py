"""Random programs with a repeat: a wavefront against one pass after the other, values, gradients and states."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from comparison import check, compiled_module
from test_random_programs import FIRST, LAST, found
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nsam.backends.torch.runtime.system import System
from nsam.backends.torch.runtime.wavefront import OneQueue, Wavefront
from nsam.compiler.end_to_end import learns_end_to_end
from nsam.verification.samples import Samples, gap

LONGEST = 100
"""Tokens of the longest sequence: periods that do not divide each other make long patterns of blocks."""


def block_of(module: nn.Module) -> int:
    """The longest pattern of blocks of the repeats of a module."""
    return max((unit.block_tokens for unit in module.modules() if isinstance(unit, System)), default=0)


def outcome(module: nn.Module, inputs: list[Tensor], wave: Wavefront | None) -> list[Tensor]:
    """The output, the states after it, and the gradients of a sum over all of them."""
    if wave is None:
        y, state = module(*inputs)
    else:
        with wave.in_force():
            y, state = module(*inputs)
    found = [y, *(x for x in pytree.tree_leaves(state) if isinstance(x, Tensor))]
    directions = Samples(module.nsam_unit, 3)  # type: ignore[arg-type]
    loss = sum((x * directions.normal(*x.shape)).sum() for x in found if x.requires_grad)
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True) if isinstance(loss, Tensor) else ()
    return [*(x.detach() for x in found), *(x for x in gradients if x is not None)]


def told(seed: int) -> str:
    """What came of a seed: it ran as a wavefront, or why not."""
    case = found(seed)
    unit = check(case.text)
    if "repeat 2" not in case.text or learns_end_to_end(unit):
        return "no repeat"
    module = compiled_module(case, unit)
    assert module is not None
    time = 2 * block_of(module) + 1 + seed % 5
    if time > LONGEST:
        return "long"
    inputs = Samples(unit, seed + 1).inputs(2, max(time, 9))
    wave = Wavefront(OneQueue(), 2 + seed % 3)
    one, other = outcome(module, inputs, wave), outcome(module, inputs, None)
    assert len(one) == len(other)
    if not all(bool(x.isfinite().all()) for x in other):
        return "the memory diverges"
    for x, y in zip(one, other, strict=True):
        assert x.shape == y.shape, case.text
        assert gap(x, y, 1e-6) < 1e-8, case.text
    return "overlaps" if wave.segments else next(iter(wave.reasons), "no repeat")


@pytest.mark.parametrize("first", range(4))
def test_a_wavefront_changes_nothing(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of single blocks, so that short sequences have several segments."""
    monkeypatch.setattr("nsam.compiler.loops.SEGMENT_TOKENS", 1)
    monkeypatch.setattr("nsam.compiler.loops.LONG_TOKENS", 1)
    came = Counter(told(seed) for seed in range(FIRST + first, LAST, 12))
    assert came["overlaps"] >= 1 or (FIRST, LAST) != (0, 300), came
