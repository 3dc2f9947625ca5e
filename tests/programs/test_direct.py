"""`transfer … : direct` stops the gradient on every way into the target's clauses, in both backends alike."""

from __future__ import annotations

import pytest

import nsam

HEAD = "nsam 1\nuse std.rules (gd)\nsystem s(dim: int) {\n  input x: [dim]\n  memory k : linear(dim -> dim)\n"
MOVES = "minimize l2; by gd(lr = 0.1); every 2 tokens; reset every 4 tokens"
CASES = {
    "context and start": f"""
  memory a : linear(dim -> dim) {{ learn k(x) -> x; minimize l2; by gd(lr = 0.1); every 4 tokens }}
  memory m : like(a) {{ learn k(x) -> a(x); {MOVES}; init a }}
  transfer a -> m : direct
  output m(x) + k(x)
""",
    "context and start from a weight": f"""
  memory a : linear(dim -> dim)
  memory m : like(a) {{ learn k(x) -> a(x); {MOVES}; init a }}
  transfer a -> m : direct
  output m(x) + k(x)
""",
    "context and generated start": f"""
  input c: [dim] per sequence
  memory w : linear(dim -> dim*dim)
  memory m : linear(dim -> dim) {{ learn k(x) -> sum(w(x)) * x; {MOVES}; init w(c) }}
  transfer w -> m : direct
  output m(x) + k(x)
""",
    "context through a repeat in the loop": f"""
  let h = m(k(x))
  repeat 2 {{ memory n : linear(dim -> dim); h = n(h) }}
  memory m : linear(dim -> dim) {{ learn h -> k(x); {MOVES} }}
  transfer k -> m : direct
  output h
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("body", CASES.values(), ids=CASES.keys())
def test_both_backends_stop_the_same_gradients(body: str) -> None:
    report = nsam.verify(nsam.loads(f"{HEAD}{body}}}"), "s", dim=4)
    assert report.ok, report


def test_a_direct_transfer_that_would_stop_nothing_is_refused() -> None:
    body = f"memory m : linear(dim -> dim) {{ learn x -> x; {MOVES} }}\ntransfer k -> m : direct\noutput m(k(x))"
    with pytest.raises(nsam.ProgramError, match="N0305 `k` is only what `m` is read with"):
        nsam.compile(nsam.loads(f"{HEAD}{body}\n}}"), "s", dim=4, compiled=False)
