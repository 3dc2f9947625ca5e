"""A sequence of any length finds its blocks compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

import nsam
from nsam.backends.torch.runtime import blocks, kept
from nsam.backends.torch.runtime.blocks import apart
from nsam.backends.torch.runtime.kept import Kept

HOPE = Path(__file__).resolve().parents[2] / "examples" / "hope" / "hope.nsam"


@pytest.mark.parametrize(("sizes", "axis"), [([4, 4, 4], 1), ([3, 4, 4, 2], 2), ([5], 1), ([1, 1], 1)])
def test_slices_are_those_of_split_each_for_itself(sizes: list[int], axis: int) -> None:
    x = torch.randn(2, sum(sizes), sum(sizes), 3, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn_like(part) for part in torch.split(x, sizes, axis)]

    def run(cut: Callable[..., Any]) -> tuple[list[torch.Tensor], torch.Tensor]:
        parts = list(cut(x, sizes, axis))
        (slope,) = torch.autograd.grad(sum((p * w).sum() for p, w in zip(parts, weights, strict=True)), x)
        return parts, slope

    (found, slope), (wanted, expected) = run(apart), run(torch.split)
    assert all(part.is_contiguous() for part in found)
    for a, b in zip([*found, slope], [*wanted, expected], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
@pytest.mark.parametrize(("dim", "keepable"), [(8, False), (16, True)])  # two programs, for compiled code is shared
def test_blocks_are_compiled_once_for_all_lengths(monkeypatch: pytest.MonkeyPatch, dim: int, keepable: bool) -> None:
    if keepable and not kept.keepable():
        pytest.skip("this torch stores no compiled functions, or caches are off")

    def traced(function: Callable[..., Any], **ignored: Any) -> Any:
        return real(function, backend="eager", fullgraph=True, dynamic=False)

    def made(compiled: Kept, *arguments: Any) -> Any:
        new.append(compiled.function.__qualname__)
        return make(compiled, *arguments)

    real, make, new = torch.compile, Kept._made, list[str]()
    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setattr(Kept, "_made", made)
    monkeypatch.setattr(blocks, "keepable", lambda: keepable)
    torch.manual_seed(0)
    module = nsam.compile(nsam.load(HOPE), "titans", dim=dim, heads=2, chunk=8, slow=16, compiled=True)
    names = sys.modules[type(module).__module__].__dict__
    found = [f for name, f in names.items() if name.startswith(("titans_segment", "titans_every"))]
    for time in (32, 48, 75, 128):
        _, state = module(torch.randn(2, time, dim))
        module(torch.randn(2, 32, dim), state)[0].sum().backward()
    codes = [inner.__wrapped__.__code__ for inner in found if hasattr(inner, "__wrapped__")]
    by_torch = sum(len(_debug_get_cache_entry_list(code)) for code in codes)
    by_us = sum(name.startswith(("titans_segment", "titans_every")) for name in new)
    assert (by_torch, by_us) == ((0, 1) if keepable else (1, 0))
