"""Products of matrices of the kernel's own precision: every width of a tile, and matrices that are partly zero."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from nsam.backends.torch.native.kernel import prelude
from nsam.backends.torch.runtime.cxx import library as compiled

KINDS = {"float": torch.float32, "double": torch.float64}
SIZES = [(m, n, k) for m, k in ((64, 64), (13, 20), (7, 5)) for n in (3, 8, 24, 40, 72, 100)]
"""Of dense products: one to nine vectors of eight places, or of four or sixteen, and what is left of one."""
SQUARES = [(64, 64, 64), (48, 40, 48), (36, 36, 36), (34, 16, 34), (20, 32, 32)]
"""Where one matrix, or both, are square, and may be triangles."""

Call = Callable[..., None]


@pytest.fixture(scope="module", params=KINDS)
def products(request: pytest.FixtureRequest) -> tuple[torch.dtype, dict[object, Call]]:
    """A product for each size, by whether A lies by columns; called with the addresses of a, b and c."""
    lines = [f"using T = {request.param};", prelude()]
    names = {(size, turned): f"p{i}" for i, size in enumerate(EACH) for turned in (False, True)}
    names = {key: f"{name}{'t' * key[1]}" for key, name in names.items()}
    for ((m, n, k), turned), name in names.items():
        strides = (1, m + 3) if turned else (k + 3, 1)
        call = f"product<{m}, {n}, {k}, {strides[0]}, {strides[1]}, {n + 1}, {n + 2}>((T*)p[0], (T*)p[1], (T*)p[2]);"
        lines.append(f'extern "C" void {name}(void** p) {{ {call} }}')
    library = compiled("\n".join(lines))
    return KINDS[request.param], {key: getattr(library, name) for key, name in names.items()}


EACH = [*SIZES, *SQUARES]
pytestmark = pytest.mark.slow


def with_zeros(rows: int, columns: int) -> Iterator[Tensor]:
    """Which values of a matrix are kept: triangles, a band, a block, rows, columns, one place, none, and all."""
    i, j = torch.arange(rows).unsqueeze(1), torch.arange(columns)
    for shift in (-5, 0, 1):
        yield j <= i + shift
        yield j >= i + shift
    yield (j - i).abs() < 3
    yield (i // 16 == 1) & (j // 16 == 1)
    yield (i % 7 == 3) & (j >= 0)
    yield (j % 9 == 4) & (i >= 0)
    for place in ((0, 0), (rows - 1, 0), (0, columns - 1), (rows // 2, columns // 2 + 1), (rows - 1, columns - 1)):
        yield (i == place[0]) & (j == place[1])
    yield torch.zeros(rows, columns, dtype=torch.bool)
    yield torch.ones(rows, columns, dtype=torch.bool)


def multiplied(call: Call, a: Tensor, b: Tensor, turned: bool) -> Tensor:
    """What a kernel makes of two matrices. What lies beside their values must not matter."""
    (m, k), n = a.shape, b.shape[1]
    left = torch.full(((k, m + 3) if turned else (m, k + 3)), torch.nan, dtype=a.dtype)
    placed = left.T[:m] if turned else left[:, :k]
    placed.copy_(a)
    right = torch.full((k, n + 1), torch.nan, dtype=a.dtype)
    right[:, :n] = b
    c = torch.full((m, n + 2), 5.0, dtype=a.dtype)
    call((ctypes.c_void_p * 3)(*(x.data_ptr() for x in (left, right, c))))
    assert (c[:, n:] == 5).all()
    return c[:, :n]


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
def test_dense_products(products: tuple[torch.dtype, dict[object, Call]], turned: bool) -> None:
    dtype, calls = products
    torch.manual_seed(0)
    for m, n, k in EACH:
        a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
        got = multiplied(calls[(m, n, k), turned], a, b, turned)
        torch.testing.assert_close(got, a @ b, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
def test_zeros_are_left_out_and_nothing_else(products: tuple[torch.dtype, dict[object, Call]], turned: bool) -> None:
    dtype, calls = products
    torch.manual_seed(0)
    for m, n, k in SQUARES:
        for left in with_zeros(m, k):
            for right in with_zeros(k, n):
                a, b = torch.randn(m, k, dtype=dtype) * left, torch.randn(k, n, dtype=dtype) * right
                got = multiplied(calls[(m, n, k), turned], a, b, turned)
                torch.testing.assert_close(got, a @ b, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)
