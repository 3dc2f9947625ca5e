"""Copies that need not be: what is copied lies there from the beginning, and everything reads what it read before."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from nsam.backends.torch.native.in_place import in_place, overlap
from nsam.backends.torch.native.statements import Loop, Product, Statement, Turn
from nsam.backends.torch.native.values import Buffer, Expression, Lazy, View, cut, permute

ROWS, COLUMNS = 4, 8


def whole(name: str, kind: str = "own", rows: int = ROWS) -> View:
    return View(Buffer(name, rows * COLUMNS, kind), (rows, COLUMNS), (COLUMNS, 1))  # type: ignore[arg-type]


def part(x: View, start: int, stop: int, dim: int = 0) -> View:
    found = cut(x, dim, start, stop)
    assert isinstance(found, View)
    return found


def times(a: Lazy, b: Lazy) -> Expression:
    return Expression("{0} * {1}", (a, b), a.sizes)


def loop(*stores: tuple[View, Lazy]) -> Loop:
    return Loop(stores[0][1].sizes, list(stores))


def copies(statements: Sequence[Statement]) -> list[str]:
    """What is copied where."""
    stores = [store for s in statements if isinstance(s, Loop) for store in s.stores]
    return [f"{value.buffer.name} -> {target.buffer.name}" for target, value in stores if isinstance(value, View)]


def outputs(statements: Sequence[Statement], results: Sequence[View], seed: int = 0) -> list[np.ndarray]:
    """What a kernel's statements leave in its outputs, one after the other."""
    numbers = np.random.default_rng(seed)
    memory: dict[Buffer, np.ndarray] = {}
    inputs = sorted({v.buffer for s in statements for v in s.views() if v.buffer.kind == "input"}, key=lambda b: b.name)
    for buffer in inputs:
        memory[buffer] = numbers.standard_normal(buffer.size)

    def at(x: View) -> np.ndarray:
        place = memory.setdefault(x.buffer, np.full(x.buffer.size, np.nan))
        return np.lib.stride_tricks.as_strided(place[x.offset :], x.sizes, [8 * step for step in x.strides])

    def value(x: Lazy) -> np.ndarray:
        if isinstance(x, View):
            return at(x).copy()
        assert isinstance(x, Expression)
        a, b = (value(operand) for operand in x.operands)
        return a * b

    for s in statements:
        if isinstance(s, Loop):
            for target, x in s.stores:
                at(target)[...] = value(x)
        elif isinstance(s, Product):
            at(s.target)[...] = value(s.a) @ value(s.b)
        else:
            assert isinstance(s, Turn)
            at(s.target)[...] = value(s.source)
    return [at(x).copy() for x in results]


def test_parts_of_parts_lie_in_the_result() -> None:
    a, b = whole("a", "input"), whole("b", "input")
    x, y, both, result = whole("x"), whole("y"), whole("both", rows=2 * ROWS), whole("result", "output", 4 * ROWS)
    low, high = part(result, 0, 2 * ROWS), part(result, 2 * ROWS, 4 * ROWS)
    before = [
        loop((x, times(a, b))),
        loop((y, times(a, x))),
        loop((part(both, 0, ROWS), x)),
        loop((part(both, ROWS, 2 * ROWS), y)),
        loop((low, both)),
        loop((high, times(both, both))),
    ]
    after = in_place(before)
    assert copies(before) == ["x -> both", "y -> both", "both -> result"]
    assert copies(after) == []
    np.testing.assert_array_equal(outputs(before, [result])[0], outputs(after, [result])[0])


def test_the_result_of_a_product_lies_in_the_whole() -> None:
    left, right = (View(Buffer(name, 64, "input"), (1, 8, 8), (64, 8, 1)) for name in "ab")
    x = View(Buffer("x", 64, "own"), (1, 8, 8), (64, 8, 1))
    result = View(Buffer("result", 128, "output"), (1, 16, 8), (128, 8, 1))
    place = part(result, 8, 16, dim=1)
    before = [Product(x, left, right), loop((part(result, 0, 8, dim=1), times(x, x))), loop((place, x))]
    after = in_place(before)
    assert copies(after) == []
    np.testing.assert_array_equal(outputs(before, [result])[0], outputs(after, [result])[0])


def test_what_goes_to_two_places_is_copied_to_one_of_them() -> None:
    a, x = whole("a", "input"), whole("x")
    result = whole("result", "output", 2 * ROWS)
    before = [loop((x, times(a, a))), loop((part(result, 0, ROWS), x)), loop((part(result, ROWS, 2 * ROWS), x))]
    after = in_place(before)
    assert copies(after) == ["result -> result"]
    np.testing.assert_array_equal(outputs(before, [result])[0], outputs(after, [result])[0])


@pytest.mark.parametrize("case", ["input", "columns", "part of it", "turned", "half", "written again", "used before"])
def test_a_copy_stays_where_something_else_would_change(case: str) -> None:
    a, x, result = whole("a", "input"), whole("x"), whole("result", "output", 2 * ROWS)
    goal, source, first, later = part(result, 0, ROWS), x, [], []
    if case == "input":
        source = a
    elif case == "columns":
        wide = View(Buffer("wide", 2 * ROWS * COLUMNS, "output"), (ROWS, 2 * COLUMNS), (2 * COLUMNS, 1))
        goal = part(wide, 0, COLUMNS, dim=1)
    elif case == "part of it":
        source, goal = part(x, 1, 3), part(result, 0, 2)
    elif case == "turned":
        turned = permute(View(Buffer("square", 16, "output"), (4, 4), (4, 1)), (1, 0))
        assert isinstance(turned, View)
        source, goal = View(Buffer("x", 16, "own"), (4, 4), (4, 1)), turned
        a = View(Buffer("a", 16, "input"), (4, 4), (4, 1))
        x = source
    elif case == "half":
        goal = whole("narrow", "output")
        goal = View(Buffer("narrow", ROWS * COLUMNS, "output", half=True), goal.sizes, goal.strides)
    elif case == "written again":
        later = [loop((x, times(a, times(a, a))))]
    else:
        first = [loop((goal, times(a, a)))]
    before = [*first, loop((x, times(a, a))), loop((goal, source)), *later]
    assert copies(in_place(before)) == copies(before)


def test_views_of_which_one_ends_before_the_other_have_nothing_in_common() -> None:
    x = whole("x", rows=8)
    assert not overlap(part(x, 0, 3), part(x, 3, 8))
    assert overlap(part(x, 0, 4), part(x, 3, 8))
    backwards = View(x.buffer, (3, COLUMNS), (-COLUMNS, 1), offset=5 * COLUMNS)  # rows 5, 4, 3
    assert not overlap(backwards, part(x, 0, 3))
    assert overlap(backwards, part(x, 0, 4))


@pytest.mark.parametrize("seed", range(200))
def test_random_statements_leave_the_same(seed: int) -> None:
    choose = random.Random(seed)
    known: list[View] = [whole(name, "input") for name in "ab"]
    results = [whole(f"result{i}", "output", 4 * ROWS) for i in range(2)]
    free = [(x, i) for x in results for i in range(4)]
    choose.shuffle(free)
    before: list[Statement] = []
    count = 0
    while free:
        kind = choose.choice(("new", "new", "joined", "stored"))
        if kind == "new":
            count += 1
            known.append(whole(f"x{count}"))
            before.append(loop((known[-1], times(choose.choice(known[:-1]), choose.choice(known[:-1])))))
        elif kind == "joined":
            count += 1
            both = whole(f"x{count}", rows=2 * ROWS)
            halves = [part(both, 0, ROWS), part(both, ROWS, 2 * ROWS)]
            before += [loop((half, choose.choice(known))) for half in halves]
            known += halves
        else:
            result, i = free.pop()
            goal = part(result, i * ROWS, (i + 1) * ROWS)
            before.append(loop((goal, choose.choice(known))))
            known.append(goal)
    after = in_place(before)
    assert len(copies(after)) <= len(copies(before))
    for was, now in zip(outputs(before, results), outputs(after, results), strict=True):
        assert not np.isnan(was).any()
        np.testing.assert_array_equal(was, now)
