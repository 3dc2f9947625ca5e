"""Decays and triangles ahead of the loop: on each clock, with resets, and where blocks are not whole chunks."""

from __future__ import annotations

import pytest
import torch

import nsam
from nsam.backends.torch import runtime as rt
from nsam.backends.torch.runtime import system
from nsam.verification import verify_unit

PROGRAM = """nsam 1
use std.rules (dgd)
system s(dim: int = 4) {
  input x : [dim]
  memory k, v, g : linear(dim -> dim)
  memory r : linear(dim -> 1)
  memory a : linear(dim -> dim) {
    learn normalize(k(x)) -> v(x); minimize l2; by dgd(lr = 0.2, retain = sigmoid(4 + r(x))); every 4 tokens; FIRST
  }
  memory b : linear(dim -> dim) {
    learn normalize(g(x)) -> v(x); minimize l2; by dgd(lr = 0.3, retain = sigmoid(3 + r(x))); every PERIOD tokens
    SECOND
  }
  output a(normalize(k(x))) + b(normalize(g(x)))
}
"""
SEQUENCE, NEVER, EVERY = "reset per sequence", "reset never", "reset every 8 tokens"


@pytest.mark.parametrize(
    ("first", "second", "period", "decorator"),
    [
        (SEQUENCE, SEQUENCE, 4, "@rt.aligned(4)"),
        (SEQUENCE, SEQUENCE, 8, "@rt.aligned(8)"),
        (EVERY, SEQUENCE, 8, "@rt.aligned(8)"),
        (NEVER, NEVER, 8, "@rt.aligned(8, never=True)"),
        (SEQUENCE, SEQUENCE, 6, None),  # blocks end at both memories' boundaries
        (SEQUENCE, NEVER, 4, None),  # and here at marks of two clocks
        (EVERY, NEVER, 4, None),
    ],
)
def test_tables_of_whole_chunks(first: str, second: str, period: int, decorator: str | None) -> None:
    text = PROGRAM.replace("FIRST", first).replace("SECOND", second).replace("PERIOD", str(period))
    program = nsam.loads(text)
    source = nsam.source(program, "s")
    assert ("rt.decay_rows(" in source) is (decorator is not None)
    assert decorator is None or f"\n{decorator}\n" in source
    report = verify_unit(program.instantiate("s", {}), stability_tokens=2048)
    assert report.ok, report.text


@pytest.mark.parametrize("piece", [None, 3])
@pytest.mark.parametrize(("offset", "length"), [(0, 16), (0, 21), (5, 3), (5, 14)])
@pytest.mark.parametrize("retain", ["gates", "number"])
@pytest.mark.parametrize("later", [False, True])
def test_rows_are_those_of_each_chunk(later: bool, retain: str, offset: int, length: int, piece: int | None) -> None:
    """Against decay and triangle of one chunk at a time."""
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(2, 3, length, 4, dtype=torch.float64, generator=generator)
    keep = torch.rand(2, 3, length, 1, dtype=torch.float64, generator=generator)
    erase = 0.3 * torch.rand(2, 3, length, 1, dtype=torch.float64, generator=generator)
    at = rt.At(offset, 0, length, 2)
    rows = rt.decay_rows(keep, at, 8, piece=piece, positive=True, later=later)
    inverse = rt.triangle_rows(key, erase, rows if retain == "gates" else 0.9, at, 8, piece=piece, later=later)
    assert (rows.shape[-1], inverse.shape[-1]) == ((1, 0) if later else (1 + (piece or 8), piece or 8))
    pieces = rt.pieces(at, 8, ((8, False),), key, keep, erase, rows, inverse)
    assert len(pieces) > 1 or length == 3
    for inner, (k, a, e, some, rest) in pieces:
        gates = rt.decay(a if retain == "gates" else 0.9, inner.length, k, positive=True, piece=piece)
        wanted = rt.triangle(k, e, gates)
        mine = rt.decay_of(some, piece=piece, positive=True)
        found = rt.triangle_of(rest, k, e, mine if retain == "gates" else 0.9, piece=piece)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)
        if retain == "gates":
            parts = zip(getattr(mine, "parts", (mine,)), getattr(gates, "parts", (gates,)), strict=True)
            for one, other in parts:
                for name in ("gamma", "between", "before_gamma", "before"):
                    torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-13)


def test_one_sequence_s_tables_are_made_before_the_loop() -> None:
    """Work on one sequence and head is not done in native kernels; on several heads it is."""
    at, key = rt.At(0, 0, 16, 1), torch.ones(1, 1, 16, 4)
    keep, heads = torch.ones(1, 1, 1, 1), key.expand(1, 2, 16, 4)
    assert rt.decay_rows(keep, at, 8, later=True).shape == (1, 1, 16, 9)
    assert rt.triangle_rows(key, 0.1, 0.9, at, 8, later=True).shape == (1, 1, 16, 8)
    assert rt.triangle_rows(heads, 0.1, 0.9, at, 8, later=True).shape == (1, 2, 16, 0)
    assert rt.decay_rows(keep, at._replace(batch=2), 8, later=True).shape == (1, 1, 16, 1)


NESTED = """nsam 1
use std.rules (safe_dgd)
system s(dim: int = 6) {
  input x : [dim]
  memory q : linear(dim -> dim)
  memory keep_of, rate_of : linear(dim -> GATES)
  let key = normalize(mk(x), 2)
  let retention = sigmoid(4 + keep_of(x))
  let rate = sigmoid(rate_of(x)) / 4
  memory mk : mlp(dim -> 2 * dim -> dim, residual, heads = 2) {
    learn key -> self(x); minimize pseudo_huber(1.5); by safe_dgd(lr = rate, retain = retention); every 6 tokens
  }
  memory mem : mlp(dim -> 2 * dim -> dim, residual, heads = 2) {
    learn key -> self(x); minimize pseudo_huber(1.5); by safe_dgd(lr = rate, retain = retention); every 3 tokens
  }
  output mem(normalize(q(x), 2))
}
"""


@pytest.mark.parametrize("gates", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_decay_is_there_for_triangles_of_an_outer_loop(
    batch: int, gates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mk` makes the keys of `mem` at its own boundaries, so triangles wait for them, and decays do not."""
    monkeypatch.setattr(system, "At", lambda *how: rt.At(*how[:-1], True))  # tables come as for native kernels
    program = nsam.loads(NESTED.replace("GATES", str(gates)))
    torch.manual_seed(0)
    module = nsam.compile(program, "s", compiled=False).double()
    reference = nsam.compile(program, "s", backend="reference").double()
    reference.load_state_dict(module.state_dict())
    results = []
    x = torch.randn(batch, 20, 6, dtype=torch.float64)
    for each in (module, reference):
        y, _ = each(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), tuple(each.parameters()))])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


GATED = """nsam 1
use std.rules (dgd)
system s(dim: int = 8) {
  input k : [dim]
  input v : [dim]
  input rate : [1]
  input keep : [1]
  memory m : linear(dim -> dim) {
    learn k -> v; minimize l2; by dgd(lr = rate, retain = sigmoid(keep)); every 16 tokens; init learned
  }
  output m(k)
}
"""


@pytest.mark.parametrize("text", [GATED, GATED.replace("learn k ->", "learn normalize(k) ->")])
def test_what_is_too_little_to_compile(text: str) -> None:
    source = nsam.source(nsam.loads(text), "s")
    light = "@rt.aligned(16, light=True)\ndef s_before(" in source
    assert light is (text == GATED)
    assert "@rt.aligned(16)\ndef s_before(" in source or light
    assert "@rt.stage" not in source  # what is left after the loop merges heads


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("short_calls")
@pytest.mark.parametrize("batch", [1, 3])
def test_compiled_tables_of_kernels_equal_the_plain_form(batch: int, request: pytest.FixtureRequest) -> None:
    if batch == 1:  # tables for torch's kernels; for more, in ours
        request.getfixturevalue("quick_kernels")
    program = nsam.loads(GATED)
    torch.manual_seed(0)
    fast, plain = (nsam.compile(program, "s", compiled=compiled).double() for compiled in (True, False))
    plain.load_state_dict(fast.state_dict())
    given = [torch.randn(batch, 75, size, dtype=torch.float64) for size in (8, 8, 1, 1)]
    results = []
    for module in (fast, plain):
        inputs = [x.clone().requires_grad_() for x in given]
        y, state = module(*inputs)
        more, _ = module(*(x[:, :23] for x in inputs), state)
        (y.square().sum() + more.square().sum()).backward()
        results.append([y, more, *(x.grad for x in (*inputs, *module.parameters()))])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
