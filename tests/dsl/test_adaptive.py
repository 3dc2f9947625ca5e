"""Adaptive periods: what the checker makes of them, how they are written, what is refused."""

from __future__ import annotations

import pytest

from nsam.dsl.checked import Frequency
from nsam.dsl.diagnostics import ProgramError
from nsam.dsl.format import format_source
from nsam.dsl.program import Program

PROGRAM = """nsam 1

use std.rules (gd)

system s(dim: int, n: int = 4, m: int = 16, x: float = 0.5) {
  input x_in: [dim]
  memory w : linear(dim -> dim) {
    learn    x_in -> x_in
    minimize l2
    by       gd(lr = 0.1)
    EVERY
  }
  output w(x_in)
}
"""


def frequency(every: str, **parameters: float) -> Frequency:
    unit = Program.loads(PROGRAM.replace("EVERY", every)).instantiate("s", {"dim": 4, **parameters})
    found = unit.memory("w").frequency
    assert found is not None
    return found


def codes(every: str, program: str = PROGRAM) -> list[str]:
    with pytest.raises(ProgramError) as caught:
        Program.loads(program.replace("EVERY", every)).instantiate("s", {"dim": 4})
    return [found.code for found in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("every", "wanted"),
    [
        ("every 4..16 tokens when surprise > 0.5", (4, 16, 0.5)),
        ("every 1..1 token when surprise > -2", (1, 1, -2)),
        ("every n..m tokens when surprise > x", (4, 16, 0.5)),
        ("every 2 * n..3 * (m - 8) tokens when surprise > 2 * x + 1", (8, 24, 2.0)),
        ("every n..m tokens when surprise > inf", (4, 16, float("inf"))),
        ("every 4.. 16 tokens when surprise > .5", (4, 16, 0.5)),
    ],
)
def test_bounds_and_threshold_are_compile_time_numbers(every: str, wanted: tuple[int, int, float]) -> None:
    found = frequency(every)
    assert (found.period, found.slowest, found.threshold) == wanted
    assert (found.unit, found.summed) == ("token", False)


def test_parameters_give_the_bounds() -> None:
    found = frequency("every n..m tokens when surprise > x", n=2, m=6, x=0.25)
    assert (found.period, found.slowest, found.threshold) == (2, 6, 0.25)


def test_a_fixed_period_has_neither() -> None:
    found = frequency("every 4 tokens")
    assert (found.slowest, found.threshold) == (None, None)


@pytest.mark.parametrize(
    ("every", "wanted"),
    [
        ("every 4..16 tokens", "N0120"),
        ("every 4 tokens when surprise > 1", "N0120"),
        ("every 4..16 tokens when novelty > 1", "N0111"),
        ("every 6..16 tokens when surprise > 1", "N0243"),
        ("every 16..4 tokens when surprise > 1", "N0243"),
        ("every 4..inf tokens when surprise > 1", "N0243"),
        ("every inf..inf tokens when surprise > 1", "N0243"),
        ("every 0..4 tokens when surprise > 1", "N0223"),
        ("every 1.5..3 tokens when surprise > 1", "N0210"),
        ("every 4..16 tokens summed when surprise > 1", "N0242"),
        ("every 4..16 updates when surprise > 1", "N0222"),
        ("every 4..16 tokens when surprise > x_in", "N0212"),
        ('every 4..16 tokens when surprise > "much"', "N0210"),
        ("every 4..16 tokens when surprise > 1; reset every 8 tokens", "N0224"),
        ("every 4..16 tokens when surprise > 1; reset every 18 tokens", "N0224"),
    ],
)
def test_what_does_not_fit_is_refused(every: str, wanted: str) -> None:
    assert codes(every) == [wanted]


def test_there_is_no_surprise_on_the_step_clock_or_for_the_task() -> None:
    task = PROGRAM.replace("learn    x_in -> x_in\n", "").replace("minimize l2", "minimize task")
    assert codes("every 4..16 steps when surprise > 1", task) == ["N0242"]
    assert codes("every 4..16 tokens when surprise > 1", task) == ["N0242"]


def test_rules_and_training_have_fixed_periods() -> None:
    rule = """nsam 1
rule r(lr) {
  memory t : like(self) { learn grad; minimize dot; by r0(lr = 1); every 1..2 updates when surprise > 1 }
  self <- self - lr * t
}
rule r0(lr) {
  self <- self - lr * grad
}
"""
    train = """nsam 1
use std.rules (gd)
system model(vocab: int) {
  input tokens: token(vocab)
  memory embed : table(vocab, 4)
  output embed.T(embed(tokens))
}
train t {
  model model(vocab = 256)
  data text(context = 8, batch = 2)
  minimize cross_entropy(model(tokens), next(tokens))
  by gd(lr = 0.1)
  every 1..2 steps when surprise > 1
  steps 4
}
"""
    for text in (rule, train):
        with pytest.raises(ProgramError) as caught:
            Program.loads(text)
        assert [found.code for found in caught.value.diagnostics] == ["N0242"]


def test_the_words_are_names_elsewhere() -> None:
    text = PROGRAM.replace("x_in", "surprise").replace("dim: int,", "dim: int, when: int = 1,")
    Program.loads(text.replace("EVERY", "every when * 4..16 tokens when surprise > 1"))


def test_layout() -> None:
    wanted = PROGRAM.replace("EVERY", "every    n..2 * m tokens when surprise > x / 2")
    given = PROGRAM.replace("EVERY", "every    n  ..2*m tokens  when surprise>x/2")
    assert format_source(given) == wanted
    assert format_source(wanted) == wanted
