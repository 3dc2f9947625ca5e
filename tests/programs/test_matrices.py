"""Values with a matrix a token, and values the same for all tokens where calls and outputs want one a token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nsam
from nsam.dsl.diagnostics import ProgramError

PARTS = """nsam 1
use std.rules (gd)
system twice() {
  input v: [4]
  output 2 * v
}
system moves() {
  input m: [4, 4]
  memory b : vector(4)
  memory a : vector(4) { learn softmax(sum(m) * b); minimize l2; by gd(lr = 0.1); every 3 tokens }
  output 2 * m * a
}
system written() {
  input x: [4]
  input c: [4] per sequence
  memory fast : linear(4 -> 4) { init outer(c, c) }
  output fast(x)
}
system scaled() {
  input x: [4]
  input c: [] per sequence
  output c * x
}
system size() {
  input x: [4]
  memory o : linear(4 -> 1)
  output sum(o(x))
}
system tally() {
  input x: [4]
  let h = 1
  repeat 2 {
    memory o : linear(4 -> 1)
    h = h + sum(o(h * x))
  }
  output h
}
system s() {
  input x: [4]
  input row: [4]
  input m: [4, 4]
  input s: []
  input c: [4] per sequence
  memory w : vector(4)
  memory a : vector(4) { learn x; minimize l2; by gd(lr = 0.1); every 3 tokens }
  DECLARED
  output OUTPUT
}
"""
RUNNING = "memory r : vector(4) { learn x; minimize l2; by gd(lr = 0.1); every 2 tokens; reads running; init zeros }"
CASES = {
    "outer": ("", "outer(x, row)"),
    "outer of weights": ("", "outer(w, w)"),
    "outer of a state": ("", "outer(a, x) * 2 + 1"),
    "outer of a sequence's value": ("", "softmax(outer(c, x)) * s"),
    "outer of one value for all": ("", "outer(c, c)"),
    "with numbers, vectors and states": ("", "m * s + x - row * a / (1 + exp(w))"),
    "reduced": ("", "x * sum(m) + norm(m) * row - mean(outer(w, x)) * dot(m, m)"),
    "bounds": ("", "max(m, row) - min(1, m) + clip(m, -1, s)"),
    "in a loop": (RUNNING, "outer(r, x) + m"),
    "through loops": (
        f"{RUNNING}\nmemory f : linear(4 -> 4) {{\n"
        "learn sum(outer(r, x)) * x -> normalize(x) * norm(outer(a, r)); minimize l2\n"
        "by gd(lr = 0.1); every 3 tokens\n}",
        "outer(f(x), r) * m",
    ),
    "an initial state": ("memory z : linear(4 -> 4) { init outer(c, c) }", "z(x)"),
    "an initial state that learns": (
        "memory z : linear(4 -> 4) { learn x -> x; minimize l2; by gd(lr = 0.05); every 2 tokens; init outer(w, c) }",
        "z(x)",
    ),
    "calls": ("", "moves(outer(w, x)) + moves(outer(a, a))"),
    "passes": ("let h = outer(w, w)\nrepeat 2 {\nmemory v : vector(4)\nh = h + outer(v, x)\n}", "h"),
    "a weight in a call": ("", "twice(w)"),
    "a sequence's value in a call": ("", "twice(c) + written(x, c)"),
    "a weight as a sequence's value": ("", "written(x, w)"),
    "numbers in a call": ("", "scaled(x, 2) * scaled(x, sum(c))"),
    "a weight in passes": ("let h = w\nrepeat 2 {\nmemory o : linear(4 -> 4)\nh = h + o(h)\n}", "h"),
    "a sequence's value in passes": ("let h = c\nrepeat 2 {\nh = h * c\n}", "h"),
    "values from outside in passes": (
        "let h = x\nlet p = c * w\nlet o = outer(w, w)\n"
        "repeat 2 {\nmemory l : linear(4 -> 4)\nh = h + l(h * p) * sum(o)\n}",
        "h",
    ),
    "what algebra makes a number": (
        "memory z : linear(4 -> 8, heads = 4) {\n"
        "learn 1 + 0 * x -> concat(row, x); minimize l2; by gd(lr = 0.05); every 2 tokens\n}",
        "(0 * x + 1) * sum(2 + 0 * row) + slice(z(1 - 0 * x), 0, 4) + sum(0 * m + 1) * twice(0 * x + 2) * x",
    ),
    "a weight is the output": ("", "w"),
    "a number a token is the output": ("", "sum(c) * s + norm(w)"),
    "a number a token comes from a call": ("", "x * size(x) + tally(x)"),
}


@pytest.mark.parametrize("case", CASES)
def test_values_gradients_and_splits(case: str, pair: Any) -> None:
    declared, output = CASES[case]
    both = pair(nsam.loads(PARTS.replace("DECLARED", declared).replace("OUTPUT", output)), "s")
    assert both.apart(7) < 1e-9
    inputs = both.inputs(2, 7)
    with torch.no_grad():
        whole, _ = both.compiled(*inputs)
        first, state = both.compiled(*(x[:, :2] for x in inputs[:4]), inputs[4])
        second, _ = both.compiled(*(x[:, 2:] for x in inputs[:4]), inputs[4], state=state)
    assert whole.shape == both.reference(*inputs)[0].shape
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-12)


def test_outer_is_all_products(pair: Any) -> None:
    both = pair(nsam.loads(PARTS.replace("DECLARED", "").replace("OUTPUT", "outer(x, row)")), "s")
    x, row, *rest = both.inputs(2, 5)
    found, _ = both.compiled(x, row, *rest)
    assert torch.equal(found, torch.einsum("bti,btj->btij", x, row))


@pytest.mark.parametrize("output", ["normalize(m, 2)", "rope(m)", "outer(m, x)", "outer(s, x)"])
def test_what_needs_vectors_says_so(output: str) -> None:
    with pytest.raises(ProgramError) as caught:
        nsam.loads(PARTS.replace("DECLARED", "").replace("OUTPUT", output)).instantiate("s", {})
    assert caught.value.diagnostics[0].code == "N0214"
