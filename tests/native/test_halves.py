"""Products of matrices in bfloat16, by the processor's matrix unit where it has one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch

from nsam.backends.torch.native.kernel import prelude
from nsam.backends.torch.runtime.cxx import library as compiled

SIZES = [(16, 16, 16), (64, 32, 128), (128, 64, 16), (17, 33, 48), (50, 16, 70), (31, 100, 33)]
LAYOUTS = {"rows": lambda m, k: (k + 3, 1), "columns": lambda m, k: (1, m + 5), "both": lambda m, k: (2 * k, 2)}
"""Strides of an operand; the rows of the result are longer than they need to be."""
WAYS = [("rows", "rows", "float", "float"), ("columns", "rows", "float", "float"), ("both", "rows", "float", "float"),
        ("rows", "columns", "float", "float"), ("columns", "both", "float", "float"),
        ("rows", "rows", "half", "half"), ("columns", "columns", "half", "half"), ("both", "both", "half", "half"),
        ("rows", "columns", "half", "float"), ("columns", "rows", "float", "half")]  # fmt: skip
"""Layouts of the operands, and their types."""
NAMES = {"float": "T", "half": "at::BFloat16"}

Call = Callable[..., None]


@pytest.fixture(scope="module")
def products() -> dict[object, Call]:
    """A product for each size and way, called with the addresses of a, b and c; by tiles, or without."""
    lines = ["using T = float;", prelude()]
    names = {(size, way, f): f"{f[0]}{i}" for i, (size, way) in enumerate(EACH) for f in FUNCTIONS}
    for ((m, n, k), (left, right, *types), function), name in names.items():
        numbers = (m, n, k, *LAYOUTS[left](m, k), *LAYOUTS[right](k, n), n + 9)
        a, b = (f"({NAMES[kind]}*)p[{i}]" for i, kind in enumerate(types))
        lines += [f'extern "C" void {name}(void** p) {{', "Tiles ready;"]
        lines += [f"{function}<{', '.join(map(str, numbers))}>({a}, {b}, (T*)p[2]);", "}"]
    library = compiled("\n".join(lines))
    return {key: getattr(library, name) for key, name in names.items()}


FUNCTIONS = ("product_of_halves", "any_product")
EACH = [(size, way) for i, size in enumerate(SIZES) for j, way in enumerate(WAYS) if (i + j) % 2 == 0 or i == 4]


def placed(rows: int, columns: int, layout: str, kind: str) -> torch.Tensor:
    """A matrix in a layout. What lies beside its values must not matter."""
    down, across = LAYOUTS[layout](rows, columns)
    whole = torch.full((rows * down + columns * across,), torch.nan)
    x = whole.to(torch.bfloat16 if kind == "half" else torch.float32).as_strided((rows, columns), (down, across))
    return x.copy_(torch.randn(rows, columns))


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("size", "way"), EACH, ids=str)
def test_products_round_their_operands_at_most(
    size: tuple[int, int, int], way: tuple[str, str, str, str], function: str, products: dict[object, Call]
) -> None:
    m, n, k = size
    torch.manual_seed(0)
    a, b = placed(m, k, way[0], way[2]), placed(k, n, way[1], way[3])
    c = torch.full((m, n + 9), 5.0)
    products[size, way, function]((ctypes.c_void_p * 3)(*(x.data_ptr() for x in (a, b, c))))
    rounded = a.bfloat16().double() @ b.bfloat16().double()
    exact = a.double() @ b.double()
    error = min(float((c[:, :n] - wanted).norm() / wanted.norm()) for wanted in (rounded, exact))
    assert error < 1e-6
    assert (c[:, n:] == 5).all()
