from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table

from nsam.backends.torch.native import regions, registry
from nsam.backends.torch.native.regions import Replaced, replace

Check = Callable[..., list[Replaced]]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions with a single product are worth a kernel too."""
    monkeypatch.setattr(regions, "FEWEST_PRODUCTS", 1)


@pytest.fixture
def check(small: None) -> Check:
    """Replaces what can be replaced in a function's two graphs, and compares what they give with torch's results."""

    def run(function: Callable[..., Sequence[Tensor]], *inputs: Tensor, tolerance: float = 1e-9) -> list[Replaced]:
        found: list[Replaced] = []

        def compiler(module: torch.fx.GraphModule, _: object) -> Callable[..., object]:
            expected = copy.deepcopy(module)
            found.extend(replace(module.graph))
            module.recompile()

            def call(args: list[Tensor]) -> object:
                given = list(args)
                wanted, got = expected(*given), module(*given)
                for a, b in zip(wanted, got, strict=True):
                    if isinstance(a, Tensor):
                        assert a.dtype == b.dtype
                        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance, equal_nan=True)
                return wanted

            call._boxed_call = True  # type: ignore[attr-defined]
            return call

        compiled = aot_function(
            function,
            fw_compiler=compiler,
            bw_compiler=compiler,
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )
        sum(y.square().sum() for y in compiled(*inputs)).backward()  # type: ignore[union-attr]
        return found

    return run


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that run from now on."""
    names: list[str] = []
    types = registry._types

    def seen(name: str) -> object:
        names.append(name)
        return types(name)

    monkeypatch.setattr(registry, "_types", seen)
    return names
