"""Calls inside the loop over chunks: a memory learns from a system that reads it."""

from __future__ import annotations

import pytest
import torch

from nsam import api
from nsam.backends.reference.module import ReferenceModule
from nsam.backends.torch.build import build
from nsam.dsl.program import Program

PROGRAM = """
nsam 1
use std.rules (dgd, momentum)
system sub(dim: int) {{
  input x: [dim]
  memory a : linear(dim -> dim)
  memory taps : conv(dim, width = 3)
  memory level[p in [2, 4]] : linear(dim -> dim) {{
    learn normalize(a(x)) -> x; minimize l2; by dgd(lr = 0.3); every p tokens
  }}
  output x + tanh(chain(level, taps(x)))
}}
system outer(dim: int) {{
  input x: [dim]
  memory q : linear(dim -> dim)
  memory m : linear(dim -> dim) {{ learn normalize(seen) -> x; minimize l2; by momentum(lr = 0.1); every 6 tokens }}
  let h = sub(m(q(x)), dim)
  {body}
  let seen = tanh(h)
  output seen + h
}}
"""
BODIES = {
    "call": "",
    "repeat": "repeat 2 { memory n : rmsnorm(dim); h = h + sub(n(h), dim) }",
    "nested repeats": "repeat 2 { repeat 2 { memory n : rmsnorm(dim); h = h + sub(n(h), dim) } }",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_values_gradients_and_streaming_equal_the_reference(body: str) -> None:
    torch.manual_seed(0)
    unit = Program.loads(PROGRAM.format(body=body)).instantiate("outer", {"dim": 4})
    module, reference = build(unit, compiled=False).double(), ReferenceModule(unit).double()
    assert set(module.state_dict()) == set(reference.state_dict())
    reference.load_state_dict(module.state_dict())
    x = torch.randn(2, 15, 4, dtype=torch.float64)
    y, _ = module(x)
    expected, _ = reference(x)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-9)
    for name, parameter in reference.named_parameters():
        found = module.get_parameter(name).grad
        torch.testing.assert_close(found, parameter.grad, rtol=1e-9, atol=1e-9)
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name
    state, pieces = None, []
    for t in range(x.shape[1]):
        piece, state = module(x[:, t : t + 1], state)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), y, rtol=0, atol=1e-9)


def test_inner_losses_keep_their_paths() -> None:
    unit = Program.loads(PROGRAM.format(body=BODIES["repeat"])).instantiate("outer", {"dim": 4})
    module = api.compile_unit(unit, compiled=False, observe=True)
    _, state = module(torch.randn(1, 12, 4))
    report = api.memory_report(module, state)
    assert set(report) == {"m"} | {f"{at}sub.level.{i}" for at in ("", "repeat.0.", "repeat.1.") for i in (0, 1)}
    assert report["sub.level.0"]["level"] < report["m"]["level"]
