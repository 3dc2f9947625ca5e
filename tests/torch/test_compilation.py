from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._functorch._aot_autograd.autograd_cache import AOTAutogradCache

from nsam.backends.torch.runtime.compilation import LOST, CompilerSettings


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("quick_kernels")
def test_views_that_the_cache_loses_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a product of matrices gives, looked at in another way, is a result that torch's cache keeps wrongly."""
    kept: list[Any] = []
    monkeypatch.setattr(AOTAutogradCache, "save", lambda key, entry, remote: kept.append(entry))

    def both(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        product = x @ w
        return product, product.view(2, 3, 2, 4).transpose(1, 2)

    results = []
    torch._dynamo.reset()
    with CompilerSettings(), torch._inductor.config.patch(fx_graph_cache=True):
        for function in (both, torch.compile(both, fullgraph=True)):
            torch.manual_seed(0)
            inputs = [torch.randn(size, dtype=torch.float64).requires_grad_() for size in ((2, 3, 5), (5, 8))]
            first, second = function(*inputs)
            (first.square().sum() + second.sin().sum()).backward()
            results.append((first, second, *(x.grad for x in inputs)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)
    assert kept
    views = [output.view_meta_sequence for entry in kept for output in entry.runtime_metadata.output_info]
    assert not any(type(view).__name__ in LOST for seen in views if seen is not None for view in seen.sequence)
