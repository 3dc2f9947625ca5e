"""Which blocks become native kernels, and what `explain` says of those that do not."""

from __future__ import annotations

import pytest

from nsam.compiler.explain import explain
from nsam.compiler.instances import LARGE_PRODUCT, LARGEST_MATRIX, library_is_faster
from nsam.dsl.program import Program

PROGRAM = """nsam 1
use std.rules (dgd)
system s(dim: int, chunk: int) {
  input x : [dim]
  memory k : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn normalize(k(x)) -> x; minimize l2; by dgd(lr = 0.2); every chunk tokens }
  output m(x)
}
"""


@pytest.mark.parametrize(
    ("flops", "matrix", "instances", "cores", "library"),
    [
        (LARGE_PRODUCT, 4 * LARGEST_MATRIX, 1, 8, False),  # small: always a kernel
        (LARGE_PRODUCT + 1, LARGEST_MATRIX, 2, 2, False),
        (LARGE_PRODUCT + 1, LARGEST_MATRIX + 1, 2, 2, True),  # no longer in the cache
        (LARGE_PRODUCT + 1, LARGEST_MATRIX, 3, 2, False),  # three of four places taken
        (LARGE_PRODUCT + 1, LARGEST_MATRIX, 2, 4, True),  # two cores of four would be idle
        (LARGE_PRODUCT + 1, LARGEST_MATRIX, 9, 8, True),  # and here seven, half of the time
        (LARGE_PRODUCT + 1, LARGEST_MATRIX, 64, 8, False),
    ],
)
def test_large_products_are_the_librarys(flops: int, matrix: int, instances: int, cores: int, library: bool) -> None:
    assert library_is_faster(flops, matrix, instances, cores) is library
    assert library_is_faster(flops, matrix, instances, cores, halves=True) is (flops > LARGE_PRODUCT)


@pytest.mark.parametrize(
    ("dim", "chunk", "told"),
    [
        (64, 64, "on CPU, where batch × heads is 2 or more"),
        (256, 256, "on CPU, where batch × heads keep 75% of the threads busy"),
        (512, 64, "on CPU, where batch × heads keep 75% of the threads busy"),
        (1024, 64, "nothing: a product with m.weight takes 134 MFLOP, faster in the library"),
    ],
)
def test_explain_says_where(dim: int, chunk: int, told: str) -> None:
    text = explain(Program.loads(PROGRAM).instantiate("s", {"dim": dim, "chunk": chunk}))
    assert told in " ".join(text.split())


def test_the_largest_product_need_not_be_the_largest_states() -> None:
    """A small state with long chunks beside a large one with short chunks."""
    text = PROGRAM.replace(
        "output m(x)",
        """memory n : linear(2 * dim -> 2 * dim) {
    learn concat(x, x) -> concat(x, x); minimize l2; by dgd(lr = 0.2); every 4 tokens
  }
  output m(x) + 0 * sum(n(concat(x, x)))""",
    )
    unit = Program.loads(text).instantiate("s", {"dim": 256, "chunk": 256})
    assert "keep 75% of the threads busy" in " ".join(explain(unit).split())
