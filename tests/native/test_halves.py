"""Products of matrices in bfloat16, by the processor's matrix unit where it has one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch

from nsam.backends.torch.native.kernel import prelude
from nsam.backends.torch.native.registry import _library

SIZES = [(16, 16, 16), (64, 32, 128), (128, 64, 16), (17, 33, 48), (50, 16, 70), (31, 100, 33)]
LAYOUTS = {"rows": lambda m, k: (k + 3, 1), "columns": lambda m, k: (1, m + 5), "both": lambda m, k: (2 * k, 2)}
"""Strides of the left operand; the rows of the right one and of the result are longer than they need to be."""

Call = Callable[..., None]


@pytest.fixture(scope="module")
def products() -> dict[tuple[tuple[int, int, int], str], Call]:
    """A product for each size and layout, called with the addresses of a, b and c."""
    lines = ["using T = float;", prelude()]
    names = {(size, layout): f"p{i}" for i, (size, layout) in enumerate((s, x) for s in SIZES for x in LAYOUTS)}
    for ((m, n, k), layout), name in names.items():
        rows, columns = LAYOUTS[layout](m, k)
        call = f"product_of_halves<{m}, {n}, {k}, {rows}, {columns}, {n + 7}, {n + 9}>"
        lines += [f'extern "C" void {name}(void** p) {{', "Tiles ready;", f"{call}((T*)p[0], (T*)p[1], (T*)p[2]);", "}"]
    library = _library("\n".join(lines))
    return {key: getattr(library, name) for key, name in names.items()}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_round_their_operands_at_most(
    size: tuple[int, int, int], layout: str, products: dict[tuple[tuple[int, int, int], str], Call]
) -> None:
    m, n, k = size
    torch.manual_seed(0)
    rows, columns = LAYOUTS[layout](m, k)
    a = torch.randn(m * rows + k * columns).as_strided((m, k), (rows, columns))
    b, c = torch.randn(k, n + 7), torch.full((m, n + 9), 5.0)
    # What lies beside the operands must not matter.
    b[:, n:] = torch.nan
    products[size, layout]((ctypes.c_void_p * 3)(*(x.data_ptr() for x in (a, b, c))))
    rounded = a.bfloat16().double() @ b[:, :n].bfloat16().double()
    exact = a.double() @ b[:, :n].double()
    error = min(float((c[:, :n] - wanted).norm() / wanted.norm()) for wanted in (rounded, exact))
    assert error < 1e-6
    assert (c[:, n:] == 5).all()
