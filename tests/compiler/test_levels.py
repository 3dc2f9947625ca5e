"""Definition 2: by frequency, then by the longest chain of same-time needs."""

import pytest

from nsam.compiler.levels import assign_levels, find_cycles
from nsam.compiler.problems import Need
from nsam.compiler.rates import ALWAYS, NEVER, Rate
from nsam.dsl.spans import Source, Span

SPAN = Span(Source("test", ""), 0, 0)


def need(source: str, target: str) -> Need:
    return Need(source, target, "key", SPAN)


def test_rates_are_ordered_by_clock_then_period() -> None:
    slowest_first = [NEVER, Rate("step", 4), Rate("step"), Rate("sequence"), Rate("token", 64), Rate("token"), ALWAYS]
    fastest_first = slowest_first[::-1]
    assert sorted(fastest_first) == slowest_first
    assert Rate("token", 1000).faster_than(Rate("step", 1))
    assert not Rate("token", 4).faster_than(Rate("token", 4))


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (Rate("token"), "1 per token"),
        (Rate("token", 16), "1/16 per token"),
        (Rate("step", 8), "1/8 per step"),
        (Rate("sequence"), "1 per sequence"),
        (ALWAYS, "∞"),
        (NEVER, "0"),
    ],
)
def test_rate_text(rate: Rate, text: str) -> None:
    assert rate.text == text


def test_updates_multiply_the_hosts_period() -> None:
    assert Rate("step", 4).times(8) == Rate("step", 32)
    assert ALWAYS.times(8) == ALWAYS
    assert NEVER.times(8) == NEVER


def test_equal_and_independent_share_a_level() -> None:
    rates = {"a": Rate("token", 16), "b": Rate("token", 16), "w": Rate("step"), "f": Rate("token")}
    assert assign_levels(rates, []) == {"f": 1, "a": 2, "b": 2, "w": 3}


def test_a_same_time_need_splits_a_level() -> None:
    rates = {"a": Rate("token"), "b": Rate("token"), "c": Rate("token"), "w": Rate("step")}
    assert assign_levels(rates, [need("a", "b"), need("b", "c"), need("a", "c")]) == {"a": 1, "b": 2, "c": 3, "w": 4}


def test_a_chain_through_another_frequency_counts_its_own_members_only() -> None:
    rates = {"a": Rate("token"), "slow": Rate("token", 4), "b": Rate("token"), "c": Rate("token")}
    levels = assign_levels(rates, [need("a", "slow"), need("slow", "b")])
    assert levels == {"a": 1, "c": 1, "b": 2, "slow": 3}


def test_a_need_of_a_slower_memory_does_not_change_its_level() -> None:
    rates = {"slow": Rate("token", 4), "fast": Rate("token")}
    assert assign_levels(rates, [need("slow", "fast")]) == {"slow": 2, "fast": 1}


def test_cycles_are_found_shortest_once() -> None:
    cycles = find_cycles([need("a", "b"), need("b", "c"), need("c", "a"), need("b", "a"), need("c", "d")])
    assert [[n.source for n in cycle] for cycle in cycles] == [["a", "b"]]


def test_a_memory_that_needs_itself_is_a_cycle() -> None:
    assert [[n.source for n in cycle] for cycle in find_cycles([need("a", "a"), need("a", "b")])] == [["a"]]


def test_two_tangles_are_two_cycles() -> None:
    cycles = find_cycles([need("a", "b"), need("b", "a"), need("b", "x"), need("x", "y"), need("y", "x")])
    assert [{n.source for n in cycle} for cycle in cycles] == [{"a", "b"}, {"x", "y"}]


def test_no_cycle_in_a_diamond() -> None:
    assert find_cycles([need("a", "b"), need("a", "c"), need("b", "d"), need("c", "d")]) == []


def test_a_cycle_that_passed_the_checks_is_an_internal_error() -> None:
    with pytest.raises(ValueError, match="internal error"):
        assign_levels({"a": ALWAYS, "b": ALWAYS}, [need("a", "b"), need("b", "a")])
