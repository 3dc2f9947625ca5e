"""Schedules: which memory moves when, and how stale transfers are."""

from fractions import Fraction
from typing import Any

import pytest

from nsam.compiler.explain import explain
from nsam.compiler.timeline import Delay, Timeline, timeline
from nsam.compiler.timeline_text import scale, timeline_text
from nsam.dsl.program import Program

TEXT = """nsam 1
use std.rules (gd)
system s(dim: int, fast: int = 4, slow: int = 6, clear: int = 12) {
  input x: [dim]
  memory w : linear(dim -> dim)
  memory b : linear(dim -> dim) { learn w(x) -> x; minimize l2; by gd(lr = 0.1); every slow tokens }
  memory a : linear(dim -> dim) {
    learn b(x) -> x; minimize l2; by gd(lr = 0.1); every fast tokens; reset every clear tokens; init b
  }
  memory r : linear(dim -> dim) { learn a(x) -> x; minimize l2; by gd(lr = 0.1); every 5 tokens; reads running }
  memory p : linear(dim -> dim) { learn r(x) -> x; minimize l2; by gd(lr = 0.1); every 5 tokens summed; reads running }
  output w(p(x))
}
"""


def of(tokens: int = 24, **parameters: Any) -> Timeline:
    return timeline(Program.loads(TEXT).instantiate("s", {"dim": 4, **parameters}), tokens=tokens)


def moves(schedule: Timeline, name: str) -> tuple[int, ...]:
    return next(row.moves for row in schedule.rows if name in row.names)


def delay(schedule: Timeline, source: str, target: str, kind: str = "backprop") -> Delay:
    (found,) = [d for d in schedule.delays if (d.source, d.target, d.kind) == (source, target, kind)]
    return found


def test_moves_and_resets() -> None:
    schedule = of()
    assert moves(schedule, "a") == (4, 8, 12, 16, 20, 24)
    assert moves(schedule, "b") == (6, 12, 18, 24)
    assert moves(schedule, "r") == (5, 10, 15, 20)
    assert next(row.resets for row in schedule.rows if "a" in row.names) == (12, 24)
    assert [row.names for row in schedule.slow] == [("w",), ("training",)]


def test_hyperperiod_is_the_least_common_multiple() -> None:
    assert of().hyperperiod == 60
    assert of(fast=8, slow=16, clear=32).hyperperiod == 160


def test_long_periods_are_told_to_the_last_digit_and_columns_stay_apart() -> None:
    program = Program.loads(
        "nsam 1\nuse std.rules (gd)\nsystem s(dim: int) {\n  input x: [dim]\n"
        "  memory a : linear(dim -> dim) { learn x -> x; minimize l2; by gd(lr = 0.1); every 1000004 tokens }\n"
        "  memory b : linear(dim -> dim) { learn x -> a(x); minimize l2; by gd(lr = 0.1); every 1 token }\n"
        "  memory c : linear(dim -> dim) { minimize task; every 10000000 steps }\n"
        "  output c(b(x))\n}\n"
    )
    text = timeline_text(timeline(program.instantiate("s", {"dim": 4}), tokens=1), 100)
    assert "s: 1 token, hyperperiod 1,000,004 tokens" in text
    assert "1000004  500002.5  backprop  a -> b (value)" in text
    assert "1/10000000 per step  c" in text
    assert "one mark = 1 token;  ● moves\n" in text
    assert "nothing moves so soon" in timeline_text(timeline(program.instantiate("s", {"dim": 4}), tokens=0), 100)


def test_names_are_cut_in_the_middle() -> None:
    memories = "".join(
        f"  memory {'a_long_name_' * 3}{i} : vector(dim) {{ learn x; minimize l2; by gd(lr = 0.1); every 1 token }}\n"
        f"  let y{i} = x + {'a_long_name_' * 3}{i}\n"
        for i in range(2)
    )
    program = Program.loads(
        f"nsam 1\nuse std.rules (gd)\nsystem s(dim: int) {{\n  input x: [dim]\n{memories}  output y0 + y1\n}}\n"
    )
    text = timeline_text(timeline(program.instantiate("s", {"dim": 4}), tokens=4), 72)
    assert "a_long_nam…_name_a_long_name_0" in text
    assert "a_long_nam…_name_a_long_name_1" in text


def test_staleness_by_brute_force() -> None:
    schedule = of()
    ages = [token - (token - 1) // 6 * 6 for token in range(1, 61)]
    found = delay(schedule, "b", "a")
    assert (found.most, found.mean) == (max(ages), Fraction(sum(ages), len(ages)))
    assert (delay(schedule, "r", "p").most, delay(schedule, "r", "p").mean) == (0, 0)
    ages = [token - token // 5 * 5 for token in range(1, 61)]
    found = delay(schedule, "p", "w")
    assert (found.most, found.mean) == (max(ages), Fraction(sum(ages), len(ages)))


@pytest.mark.parametrize(("slow", "clear"), [(6, 12), (8, 12), (5, 12), (24, 4)])
def test_staleness_at_resets_by_brute_force(slow: int, clear: int) -> None:
    ages = [reset % slow for reset in range(clear, clear * slow + 1, clear)]
    found = delay(of(slow=slow, clear=clear), "b", "a", "init")
    assert (found.most, found.mean) == (max(ages), Fraction(sum(ages), len(ages)))


@pytest.mark.parametrize("tokens", [1, 24, 128, 5000])
def test_text_fits_and_marks_every_move(tokens: int) -> None:
    schedule = of(tokens)
    text = schedule.text()
    assert max(len(line) for line in text.splitlines()) <= 100
    line = next(line for line in text.splitlines() if " b " in line and "1/6 per token" in line)
    each = scale(tokens, 100)
    assert each >= 1
    assert ("●" in line or "█" in line) == (tokens >= 6)


def test_scale_is_the_smallest_that_fits() -> None:
    assert scale(64, 64) == 1
    assert scale(128, 64) == 2
    assert scale(128, 60) == 4
    assert scale(10_000_000, 60) == 166_667
    assert scale(128, 0) == 128
    assert scale(2000, -7) == 2000


ADAPTIVE = """nsam 1
use std.rules (gd, dgd)
system s(dim: int, n: int = 4, m: int = 12) {
  input x: [dim]
  memory w : linear(dim -> dim)
  memory a : mlp(dim -> dim -> dim, heads = 2) {
    learn w(x) -> x; minimize l2; by dgd(lr = 0.1); every n..m tokens when surprise > 0.25
  }
  memory b : linear(dim -> dim) { learn a(x) -> x; minimize l2; by gd(lr = 0.1); every 4 tokens }
  memory c : linear(dim -> dim) {
    learn w(x) -> x; minimize l2; by gd(lr = 0.1); every 1 token; reset every 6 tokens; init d
  }
  memory d : linear(dim -> dim) { learn w(x) -> x; minimize l2; by gd(lr = 0.1); every n..m tokens when surprise > 0 }
  output b(x) + c(x) + d(x)
}
"""


def test_adaptive_memories_decide_at_the_shortest_period_and_lie_on_its_level() -> None:
    unit = Program.loads(ADAPTIVE).instantiate("s", {"dim": 4})
    schedule = timeline(unit, tokens=24)
    row = next(row for row in schedule.rows if "a" in row.names)
    fixed = next(row for row in schedule.rows if "b" in row.names)
    assert (row.frequency, row.adaptive, row.moves) == ("1/12..1/4 per token", True, (4, 8, 12, 16, 20, 24))
    assert (fixed.frequency, fixed.adaptive, fixed.level) == ("1/4 per token", False, row.level)
    assert delay(schedule, "a", "b").most == 12
    assert delay(schedule, "a", "b").mean is None
    assert delay(schedule, "d", "c", "init").most == 12 - 2
    lines = schedule.text().splitlines()
    assert "○" in next(line for line in lines if "1/12..1/4" in line)
    assert any("12  varies" in line for line in lines)


def test_an_adaptive_memory_is_explained() -> None:
    text = explain(Program.loads(ADAPTIVE).instantiate("s", {"dim": 4}))
    flat = " ".join(text.split())
    assert "every 4 to 12 tokens: s is the sequence's last boundary before t" in flat
    assert "the mean of L at Wₛ over the heads and i = s+1, …, t exceeds 0.25, or t − s = 12" in flat
    assert "the mean of L at Mₛ over i = s+1, …, t exceeds 0, or t − s = 12" in flat


RULES = """nsam 1
use std.rules (gd)
rule mine(lr) {
  memory slow : like(self) { learn grad; minimize dot; by gd(lr = 0.5); every 3 updates summed }
  memory late : like(self) { learn grad; minimize dot; by gd(lr = 0.5); every 3 updates summed; reads running }
  memory fold : like(self) { learn grad; minimize dot; by within(lr = 0.5); every 4 updates }
  memory sums : like(self) { learn grad; minimize dot; by within(lr = 0.5); every 4 updates summed }
  state trace = zeros
  trace <- 0.9 * trace + grad
  self <- self - lr * (trace + slow + late + fold + sums)
}
rule within(lr) {
  memory deep : like(self) { learn grad; minimize dot; by gd(lr = 0.5); every 3 updates summed }
  self <- self - lr * (grad + deep)
}
system s(dim: int) {
  input x: [dim]
  memory m : linear(dim -> dim) { learn x -> x; minimize l2; by mine(lr = 0.1); EVERY }
  output m(x)
}
"""


def served(every: str, tokens: int = 48) -> Timeline:
    return timeline(Program.loads(RULES.replace("EVERY", every)).instantiate("s", {"dim": 4}), tokens=tokens)


def every(period: int, tokens: int = 48) -> tuple[int, ...]:
    return tuple(range(period, tokens + 1, period))


@pytest.mark.parametrize("host", ["every 4 tokens", "every 1 token", "every 4..8 tokens when surprise > 0.5"])
def test_memories_of_a_rule_count_tokens_where_the_host_folds_over_them(host: str) -> None:
    schedule = served(host)
    periods = {"trace": 1, "slow": 3, "late": 3, "fold": 4, "sums": 4, "fold.deep": 3, "sums.deep": 12}
    assert {name: moves(schedule, f"m.{name}") for name in periods} == {n: every(p) for n, p in periods.items()}
    assert schedule.hyperperiod == 12
    assert not any(row.adaptive for row in schedule.rows if "m" not in row.names)
    assert (delay(schedule, "m.slow", "m").most, delay(schedule, "m.slow", "m").mean) == (3, 2)
    assert (delay(schedule, "m.late", "m").most, delay(schedule, "m.late", "m").mean) == (2, 1)
    level = {name: row.level for row in schedule.rows for name in row.names}
    assert level["m.trace"] < level["m.slow"] == level["m.fold.deep"] < level["m.fold"] < level["m.sums.deep"]


def test_memories_of_a_rule_count_periods_where_the_host_is_summed() -> None:
    schedule = served("every 4 tokens summed")
    periods = {"trace": 4, "slow": 12, "late": 12, "fold": 16, "sums": 16, "fold.deep": 12, "sums.deep": 48}
    assert {name: moves(schedule, f"m.{name}") for name in periods} == {n: every(p) for n, p in periods.items()}
    assert schedule.hyperperiod == 48


def test_memories_of_a_rule_count_steps_on_the_step_clock() -> None:
    text = RULES.replace(
        "learn x -> x; minimize l2; by mine(lr = 0.1); EVERY", "minimize task; by mine(lr = 0.1); every 4 steps"
    )
    schedule = timeline(Program.loads(text).instantiate("s", {"dim": 4}))
    frequency = {name: row.frequency for row in schedule.slow for name in row.names}
    found = {name: frequency[f"m.{name}"] for name in ("trace", "slow", "fold", "fold.deep", "sums.deep")}
    periods = {"trace": 4, "slow": 12, "fold": 16, "fold.deep": 12, "sums.deep": 48}
    assert found == {name: f"1/{period} per step" for name, period in periods.items()}


def test_a_reset_of_the_host_cuts_the_periods_of_its_rule() -> None:
    schedule = served("every 4 tokens; reset every 8 tokens", 24)
    assert moves(schedule, "m.slow") == (3, 6, 11, 14, 19, 22)
    assert moves(schedule, "m.sums.deep") == ()
    assert next(row.resets for row in schedule.rows if "m.slow" in row.names) == (8, 16, 24)
    assert schedule.hyperperiod == 8
    for name, ages in (("slow", (1, 2, 3, 1, 2, 3, 1, 2)), ("late", (1, 2, 0, 1, 2, 0, 1, 2))):
        found = delay(schedule, f"m.{name}", "m")
        assert (found.most, found.mean) == (max(ages), Fraction(sum(ages), 8))
    assert delay(schedule, "m.sums.deep", "m.sums").most == 8
    assert "↺ resets" in schedule.text()
    assert "↺ moves, then resets" in served("every 3 tokens; reset every 12 tokens").text()


@pytest.mark.parametrize(("host", "reset"), [(4, 0), (4, 96), (1, 8), (1, 2)])
def test_what_a_rule_keeps_is_seen_where_the_rule_is_applied(host: int, reset: int) -> None:
    every = f"every {host} tokens summed" if host > 1 else "every 1 token"
    schedule = served(every + (f"; reset every {reset} tokens" if reset else ""))
    for name, seen, updates in (("slow", "m", 3), ("late", "m", 3), ("fold", "m", 4), ("sums.deep", "m.sums", 12)):
        found = delay(schedule, f"m.{name}", seen)
        period, apart = updates * host, 4 * host if seen == "m.sums" else host
        looks = range(apart, (reset or 48 * host) + 1, apart)
        ages = [token % period if name == "late" else (token - 1) % period + 1 for token in looks]
        mean = Fraction(sum(ages), len(ages)) if ages else None
        assert (found.most, found.mean) == (max(ages, default=None), mean), name


def test_what_a_rule_keeps_is_seen_once_a_period_of_steps() -> None:
    text = RULES.replace(
        "learn x -> x; minimize l2; by mine(lr = 0.1); EVERY", "minimize task; by mine(lr = 0.1); every 4 steps"
    )
    schedule = timeline(Program.loads(text).instantiate("s", {"dim": 4}))
    ages = {name: delay(schedule, f"m.{name}", "m", "direct") for name in ("slow", "late")}
    assert (ages["slow"].most, ages["slow"].mean) == (11, 7)
    assert (ages["late"].most, ages["late"].mean) == (8, 4)
