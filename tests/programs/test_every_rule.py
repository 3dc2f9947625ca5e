"""Every rule of the standard library moves a memory inside a sequence, and trains a model around it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import nsam
from nsam import api
from nsam.compiler.step_keys import train_needs_keys

LIBRARY = Path(__file__).resolve().parents[2] / "dsl" / "std"
RULES = [
    (library, name, ", ".join(f"{a.strip()} = 0.01" for a in arguments.split(",") if a.strip() and "=" not in a))
    for library in ("rules", "optimizers")
    for name, arguments in re.findall(
        r"^rule (\w+)\(([^)]*)\)", (LIBRARY / f"{library}.nsam").read_text(encoding="utf-8"), re.MULTILINE
    )
]
EACH = pytest.mark.parametrize(("library", "name", "given"), RULES, ids=[name for _, name, _ in RULES])


def test_the_library_was_read() -> None:
    assert {"dgd", "m3", "generalized_huber", "deep_momentum"} <= {name for _, name, _ in RULES}


@EACH
def test_around_a_model(library: str, name: str, given: str) -> None:
    adamw = "" if name == "adamw" else "use std.rules (adamw)\n"
    text = f"""nsam 1
use std.{library} ({name})
{adamw}system s(dim: int = 8) {{
  input tokens: token(256)
  memory e : table(256, dim)
  memory w : linear(dim -> dim)
  output e.T(w(e(tokens)))
}}
train t {{
  model s()
  data text(context = 8, batch = 2)
  minimize cross_entropy(model(tokens), next(tokens))
  by {name}({given}) for matrices, adamw(lr = 0.01) for others
  steps 3
}}
"""
    torch.manual_seed(0)
    train = nsam.loads(text).train("t", {})
    module = api.compile_unit(train.model, compiled=False, keys=train_needs_keys(train))
    optimizer = api.train_optimizer(train, module)
    before = module.get_parameter("w.weight").detach().clone()
    for _ in range(3):
        module(torch.randint(0, 256, (2, 8)))[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = module.get_parameter("w.weight")
    assert after.isfinite().all()
    assert not torch.equal(before, after)


@EACH
def test_inside_a_sequence(library: str, name: str, given: str) -> None:
    text = f"""nsam 1
use std.{library} ({name})
system s(dim: int = 4) {{
  input x: [dim]
  memory k : linear(dim -> dim)
  memory m : linear(dim -> dim) {{ learn normalize(k(x)) -> x; minimize l2; by {name}({given}); every 4 tokens }}
  output m(x)
}}
"""
    module = nsam.compile(nsam.loads(text), "s", compiled=False)
    y, state = module(torch.randn(2, 12, 4))
    start = module.get_parameter("m.weight")
    assert y.isfinite().all()
    assert not torch.equal(state["sequence"]["m.weight"][0, 0], start)
