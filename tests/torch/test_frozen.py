"""Models whose parameters are frozen keep no graph of autograd, and blocks compile once whatever asks for gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils import _pytree as pytree

import nsam
from nsam.backends.torch.runtime import blocks

TEXT = """nsam 1
use std.rules (gd, dgd, momentum)
system block(dim: int) {
  input x: [dim]
  memory k, v : linear(dim -> dim)
  memory m : linear(dim -> dim) {
    learn normalize(k(x)) -> v(x); minimize l2; by dgd(lr = 0.1); every 4 tokens; init zeros; reset never
  }
  memory t : linear(dim -> dim) {
    learn normalize(k(x)) -> v(x); minimize l2; by momentum(lr = 0.1, beta = 0.9); every 4 tokens; reset every 8 tokens
  }
  memory u : mlp(dim -> dim -> dim) {
    learn normalize(k(x)) -> v(x); minimize l2; by gd(lr = 0.1); every 8 tokens summed; init zeros
  }
  output m(x) + t(x) + u(x)
}
system s(dim: int = 4) {
  input x: [dim]
  memory e : linear(dim -> dim)
  let h = e(x)
  repeat 2 { h = h + block(h, dim) }
  output h
}
"""
END_TO_END = """nsam 1
use std.rules (gd)
system s(dim: int = 4) {
  input x: [dim]
  memory b : linear(dim -> dim) { minimize task; by gd(lr = 0.1); every 4 tokens }
  output b(x)
}
"""
HOW: list[dict[str, Any]] = [{"compiled": False}, {"backend": "reference"}]


def asking(found: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(found) if isinstance(x, Tensor) and x.requires_grad]


@pytest.mark.parametrize("how", HOW, ids=["torch", "reference"])
def test_a_frozen_model_keeps_no_graph(how: dict[str, Any]) -> None:
    module = nsam.compile(nsam.loads(TEXT), "s", **how).double().requires_grad_(False)
    x = torch.randn(2, 11, 4, dtype=torch.float64)
    y, state = module(x)
    assert not asking((y, state))
    assert not asking(module(x, state))
    x.requires_grad_()  # what is asked for there is
    y, state = module(x, state)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().amin() > 0
    assert asking(module(x.detach(), state))


@pytest.mark.parametrize("how", HOW, ids=["torch", "reference"])
def test_nor_one_that_moves_by_its_own_loss(how: dict[str, Any]) -> None:
    module = nsam.compile(nsam.loads(END_TO_END), "s", **how).double().requires_grad_(False)
    x, targets = torch.randn(2, 11, 4, dtype=torch.float64), torch.zeros(2, 11, dtype=torch.int64)
    y, state = module(x, targets=targets)
    assert not asking(y)
    assert not asking(module(x, state=state, targets=targets)[0])


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """How many graphs there are; torch traces them, and nothing is compiled."""
    monkeypatch.setattr(
        blocks, "compiled_by_torch", lambda f, options: torch.compile(f, fullgraph=True, dynamic=False, backend="eager")
    )
    monkeypatch.setattr(blocks, "keepable", lambda: False)
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("short_calls")
@pytest.mark.parametrize("asked", ["parameters", "some of them", "input", "nothing"])
def test_blocks_compile_once(traced: Any, asked: str) -> None:
    module = nsam.compile(nsam.loads(TEXT + f"# {asked}\n"), "s").requires_grad_(asked == "parameters")
    x = torch.randn(2, 64, 4, requires_grad=asked == "input")
    if asked == "some of them":
        module.get_parameter("e.weight").requires_grad_()
    for _ in range(2):
        y, state = module(x)
        y, state = module(x, state)
        if asked != "nothing":
            y.sum().backward()
    assert traced() == 2  # a block, and what is done for all tokens before
