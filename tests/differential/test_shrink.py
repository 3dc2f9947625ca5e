"""The shrinker, on code generators that are broken on purpose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import Case, compare
from generator import program
from program_text import program_text
from shrink import FailsAlike, shrink
from torch import Tensor

from nsam.backends.torch import build as torch_backend
from nsam.backends.torch.runtime.ahead import decay_rows
from nsam.backends.torch.runtime.triangular import Decay, Decays, decay
from nsam.dsl import syntax
from nsam.dsl.checked import Unit
from nsam.dsl.format import format_check
from nsam.dsl.parser import parse
from nsam.dsl.spans import Source

PROGRAM = """nsam 1

use std.rules (gd, dgd, momentum)

rule leaky(lr, retain = 1) {
  state m = zeros
  m <- 0.8 * m + 0.2 * grad
  self <- retain * self - lr * (m + 0.5 * grad)
}

system inner() {
  input x: [4]
  memory w : linear(4 -> 4, bias)
  output silu(w(x))
}

system s() {
  input x: [4]
  memory k, v : linear(4 -> 4)
  memory gate : linear(4 -> 1)
  memory norm : rmsnorm(4)
  memory kept : attention(heads = 2, window = 3) { learn rope(k(x), 2) -> v(x) }
  let a = inner(norm(x))
  let b = tanh(a) - 0.3 * kept(v(x))
  memory slow : mlp(4 -> 6 -> 4, act = gelu, residual) {
    learn normalize(k(x)) -> self(v(b)); minimize huber(0.7); by leaky(lr = 0.1, retain = 0.9)
    every 4 tokens; reset every 8 tokens
  }
  memory fast : linear(4 -> 4, heads = 2) {
    learn normalize(k(b), 2) -> slow(a)
    minimize l2
    by dgd(lr = 0.2, retain = 0.6 + 0.4 * sigmoid(gate(x)), erase = 0.1)
    every 2 tokens
    reads running
    init zeros
  }
  let h = b
  repeat 2 { memory n : layernorm(4); h = h + 0.5 * inner(n(h)) }
  output fast(normalize(h)) + slow(tanh(h)) + a
}
"""


def shrunk(case: Case) -> tuple[Case, frozenset[str], frozenset[str]]:
    """What is left of a case that fails, how that fails, and how the whole did."""
    outcome = compare(case)
    small = shrink(case, FailsAlike(outcome))
    return small, compare(small).kinds(), outcome.kinds()


def break_code(monkeypatch: pytest.MonkeyPatch, old: str, new: str, more: str = "") -> None:
    """Let the code generator write `new` for `old`, and `more` at the end."""
    original = torch_backend.write_source

    def write(unit: Unit, *rest: Any, **named: Any) -> tuple[str, str]:
        text, name = original(unit, *rest, **named)
        return f"{text.replace(old, new)}\n\n{more}", name

    monkeypatch.setattr(torch_backend, "write_source", write)


CASE = Case(PROGRAM, seed=3, time=9)


def test_the_program_is_right_as_long_as_nothing_is_broken() -> None:
    assert not compare(CASE).kinds()


@pytest.mark.slow
def test_a_wrong_value_is_shrunk_to_the_function_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    break_code(monkeypatch, "torch.tanh(", "1.001 * torch.tanh(")
    small, found, before = shrunk(CASE)
    assert "values" in found & before
    assert len(small.text.splitlines()) <= 8
    assert "tanh" in small.text
    assert (small.batch, small.time) == (1, 1)
    assert format_check(small.text)


def remembers(keep: Tensor | float, time: int, like: Tensor, **named: Any) -> Decay | Decays:
    """A decay that was dropped."""
    return decay(1.0, time, like, **named)


def remembers_ahead(keep: Tensor, at: Any, chunk: int, **named: Any) -> Tensor:
    """The same of chunks whose decays are computed ahead of the loop."""
    return decay_rows(torch.ones_like(keep), at, chunk, **named)


@pytest.mark.slow
def test_a_dropped_decay_is_shrunk_to_one_memory_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsam.backends.torch.runtime.decay", remembers)
    monkeypatch.setattr("nsam.backends.torch.runtime.decay_rows", remembers_ahead)
    small, found, before = shrunk(CASE)
    assert "values" in found & before
    assert len(small.text.splitlines()) <= 16
    assert small.text.count("memory") <= 2
    assert "retain" in small.text


@pytest.mark.slow
def test_a_scaled_gradient_stays_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    more = "def scaled(x):\n    y = torch.sigmoid(x)\n    return y.detach() + 1.01 * (y - y.detach())\n"
    break_code(monkeypatch, "torch.sigmoid(", "scaled(", more)
    small, found, before = shrunk(CASE)
    assert before == found == {"gradient"}
    assert "sigmoid" in small.text
    assert len(small.text.splitlines()) <= 16


@pytest.mark.slow
def test_an_exception_stays_the_same_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    break_code(monkeypatch, "F.gelu(", "F.no_such_function(")
    small, found, before = shrunk(CASE)
    assert found == before == {"AttributeError while running"}
    assert "gelu" in small.text
    assert len(small.text.splitlines()) <= 8


@pytest.mark.parametrize("seed", range(6))
def test_programs_are_written_as_they_were_read(seed: int) -> None:
    tree = parse(Source("program", program(seed)))
    again: syntax.File = parse(Source("again", program_text(tree)))
    assert again == tree
