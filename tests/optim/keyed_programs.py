"""Programs and helpers for the tests of rules that use `key` around a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nsam

LONG = (pytest.mark.slow, pytest.mark.long)


HEAD = "nsam 1\nuse std.rules (gd, dgd, safe_dgd, adamw)\n"


LINEAR = HEAD + "system net(dim: int = 4) { input x: [dim]; memory w : linear(dim -> 3); output w(x) }\n"


MLP = (
    HEAD
    + """system net(dim: int = 4, heads: int = 2) {
  input x: [dim]
  memory a : linear(dim -> 2*dim)
  memory b : mlp(2*dim -> 12 -> dim, act = tanh, heads = heads)
  output b(tanh(a(x)))
}
"""
)


CLOCK = (
    HEAD
    + """system net(dim: int = 4) {
  input x: [dim]
  memory a : linear(dim -> dim)
  memory b : linear(dim -> 3) { minimize task; by dgd(lr = 0.05, retain = 0.9); every 4 steps }
  output b(tanh(a(x)))
}
"""
)


LOOP = (
    HEAD
    + """system net(dim: int = 4) {
  input x: [dim]
  memory k, v, o : linear(dim -> dim)
  memory r : linear(dim -> 1)
  memory m : linear(dim -> dim) {
    learn normalize(k(x)) -> v(m(x)); minimize l2; by gd(lr = sigmoid(r(m(x))) / 4); every 4 tokens; init zeros
  }
  memory n : linear(dim -> dim) {
    learn normalize(k(o(m(x)))) -> v(x); minimize l2; by gd(lr = 0.1); every 8 tokens; init zeros
  }
  output o(m(k(x)) + n(x) + x)
}
"""
)


TWICE = HEAD + "system net(dim: int = 4) { input x: [dim]; memory w : linear(dim -> dim); output w(tanh(w(x))) }\n"


SHARED = (
    HEAD
    + """system net(dim: int = 4) {
  input x: [dim]
  input c: [dim] per sequence
  memory w : linear(dim -> dim)
  memory b : vector(dim)
  memory u : linear(dim -> dim)
  output x + w(c) + u(b)
}
"""
)
"""Rows of one sequence, or of none, that stand for every token."""


REPEAT = (
    HEAD
    + """system block(dim: int) {
  input x: [dim]
  memory k, v, o : linear(dim -> dim)
  memory m : linear(dim -> dim) {
    learn normalize(k(x)) -> v(m(x)); minimize l2; by gd(lr = 0.1); every 4 tokens; init zeros
  }
  output o(tanh(m(x))) + x
}
system net(dim: int = 4) { input x: [dim]; let h = x; repeat 3 { h = block(h, dim) }; output h }
"""
)


def folding(rule: str, every: str, learn: str = "normalize(k(x)) -> v(m(x))") -> str:
    return f"""nsam 1
use std.rules (gd, dgd, momentum)
system inner(dim: int) {{ input x: [dim]; memory w : linear(dim -> dim); output tanh(w(x)) }}
system net(dim: int = 4) {{
  input x: [dim]
  memory k, v, o : linear(dim -> dim)
  memory m : linear(dim -> dim) {{ learn {learn}; minimize l2; by {rule}; every {every}; init zeros }}
  output o(m(v(k(x))))
}}
"""


FOLDING = {
    "loops": LOOP,
    "every token": folding("dgd(lr = 0.1)", "1 token; reads running", "normalize(k(x)) -> v(x)"),
    "the token before": folding("dgd(lr = 0.1)", "1 token"),
    "momentum": folding("momentum(lr = 0.1)", "4 tokens"),
    "summed": folding("gd(lr = 0.1)", "4 tokens summed"),
    "window": folding("gd(lr = 0.1)", "4 tokens", "normalize(k(x)) -> v(m(x)) over last 3 tokens"),
    "adaptive": folding("gd(lr = 0.1)", "4..8 tokens when surprise > 0.3"),
    "resets": folding("gd(lr = 0.1)", "4 tokens; reset every 8 tokens"),
    "a call inside": folding("gd(lr = 0.1)", "4 tokens", "normalize(k(x)) -> inner(m(x), dim)"),
}


def outer_mean(x: Tensor) -> Tensor:
    """E[x xᵀ] of rows [N, in]."""
    return torch.einsum("ni,nj->ij", x, x) / x.shape[0]


def compiled(text: str, **options: Any) -> nn.Module:
    torch.manual_seed(3)
    return nsam.compile(nsam.loads(text), "net", **{"compiled": False, "keys": True} | options).double()


def data(steps: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(steps)]


def run(module: nn.Module, optimizer: torch.optim.Optimizer, xs: list[Tensor], loss: Callable[..., Tensor]) -> None:
    for x in xs:
        optimizer.zero_grad()
        loss(module(x)[0], x).backward()
        optimizer.step()


def squares(y: Tensor, x: Tensor) -> Tensor:
    return (y - x[..., : y.shape[-1]].sin()).square().sum(-1).mean()


def assert_same(module: nn.Module, wanted: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=tolerance, atol=tolerance)
