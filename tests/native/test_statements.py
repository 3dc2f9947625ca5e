"""Loops: what is stored together, and what apart."""

from __future__ import annotations

from nsam.backends.torch.native.statements import Loop, Order
from nsam.backends.torch.native.values import Buffer, Expression, Lazy, View

SIZES = (4, 8)


def whole(name: str, kind: str = "own") -> View:
    return View(Buffer(name, 32, kind), SIZES, (8, 1))  # type: ignore[arg-type]


def column(name: str) -> View:
    return View(Buffer(name, 4, "input"), SIZES, (1, 0))


def times(*operands: Lazy) -> Expression:
    return Expression("{0} * {1}", operands, SIZES)


def stored(*stores: tuple[View, Lazy]) -> list[list[str]]:
    """Which targets share a loop, loop by loop."""
    order = Order()
    for target, value in stores:
        order.store(target, value)
    loops = order.finish()
    assert all(isinstance(loop, Loop) and loop.sizes == SIZES for loop in loops)
    return [[target.buffer.name for target, _ in loop.stores] for loop in loops]  # type: ignore[union-attr]


def test_copies_of_different_tensors_are_loops_of_their_own() -> None:
    a, b = whole("a", "input"), whole("b", "input")
    assert stored((whole("x", "output"), a), (whole("y", "output"), b)) == [["x"], ["y"]]


def test_what_reads_the_same_values_is_one_loop() -> None:
    a, b, c = (whole(name, "input") for name in "abc")
    x, y, z = (whole(name, "output") for name in "xyz")
    assert stored((x, a), (y, c), (z, times(a, b))) == [["x", "z"], ["y"]]


def test_a_value_for_many_places_is_nothing_in_common() -> None:
    a, b, rate = whole("a", "input"), whole("b", "input"), column("rate")
    assert stored((whole("x", "output"), times(a, rate)), (whole("y", "output"), times(b, rate))) == [["x"], ["y"]]


def test_what_reads_what_another_stores_comes_after_it() -> None:
    a, b, c = (whole(name, "input") for name in "abc")
    between, y, z = whole("between"), whole("y", "output"), whole("z", "output")
    assert stored((between, times(a, a)), (y, b), (z, times(between, c))) == [["between", "z"], ["y"]]


def test_a_store_joins_all_that_it_reads_from_in_their_order() -> None:
    a, b = whole("a", "input"), whole("b", "input")
    x, y, z = (whole(name, "output") for name in "xyz")
    assert stored((x, a), (y, b), (z, times(b, a))) == [["x", "y", "z"]]
