"""Published optimizers, as rules: against torch, against restated equations, and inside a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import nsam

SHAPES = [(3, 5), (5, 3), (4, 4), (7,), (1, 6)]
STEPS = 50
ALL = [
    "nesterov", "adagrad", "rmsprop", "lion", "adamuon", "preconditioned_momentum", "generalized_huber",
    "generalized_lp", "dgd_momentum", "dgd_momentum_inside", "deep_momentum", "deep_muon",
]  # fmt: skip


def walk(optimizer_of: Callable[[list[Tensor]], torch.optim.Optimizer]) -> list[Tensor]:
    """All parameters after each of 50 steps on gradients that depend on where they are."""
    generator = torch.Generator().manual_seed(11)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]
    optimizer = optimizer_of(parameters)
    path = []
    for _ in range(STEPS):
        for p in parameters:
            p.grad = p.detach().sin() + torch.randn(p.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
        path.append(torch.cat([p.detach().flatten() for p in parameters]))
    return path


@pytest.mark.parametrize(
    ("rule", "arguments", "theirs"),
    [
        ("nesterov", {"lr": 0.03}, lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, nesterov=True)),
        ("adagrad", {"lr": 0.1}, lambda p: torch.optim.Adagrad(p, lr=0.1)),
        ("rmsprop", {"lr": 0.01, "beta": 0.9}, lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9)),
    ],
)
def test_step_for_step_as_torch(rule: str, arguments: dict[str, float], theirs: Any) -> None:
    mine = walk(lambda p: nsam.optimizer("std.optimizers", rule, p, **arguments))
    wanted = walk(theirs)
    assert max(float((a - b).abs().max()) for a, b in zip(mine, wanted, strict=True)) < 1e-12
    assert float((mine[-1] - mine[0]).abs().max()) > 0.1


class Restated(torch.optim.Optimizer):
    """An optimizer from `update(p, grad, state, t) -> new p`, on matrices (a vector is one row)."""

    def __init__(self, parameters: list[Tensor], update: Callable[..., Tensor]) -> None:
        super().__init__(parameters, {})
        self.update, self.kept, self.t = update, {}, 0

    def step(self, closure: Any = None) -> None:
        self.t += 1
        for i, p in enumerate(self.param_groups[0]["params"]):
            memory = self.kept.setdefault(i, {})
            matrix = p.detach().reshape(1, -1) if p.dim() == 1 else p.detach()
            p.data = self.update(matrix, p.grad.reshape(matrix.shape), memory, self.t).reshape(p.shape)


def lion(p: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    m = s.get("m", torch.zeros_like(p))
    s["m"] = 0.99 * m + 0.01 * g
    return p - 0.02 * (torch.sign(0.9 * m + 0.1 * g) + 0.1 * p)


def newton_schulz(m: Tensor) -> Tensor:
    x = m / max(float(m.norm()), 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    return x


def adamuon(p: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    s["m"] = 0.95 * s.get("m", torch.zeros_like(p)) + g
    o = newton_schulz(torch.sign(s["m"]))
    s["v"] = 0.95 * s.get("v", torch.zeros_like(p)) + 0.05 * o**2
    o = o / (s["v"].sqrt() + 1e-8)
    return p - 0.02 * (0.2 * p.numel() ** 0.5 / o.norm() * o + 0.1 * p)


def preconditioned(p: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    """Eq. 46-47 with P = diag(C)^(-1/2), C the running average of the rows' products."""
    s["c"] = 0.99 * s.get("c", torch.zeros(p.shape[0], p.shape[0], dtype=p.dtype)) + 0.01 * g @ g.T
    preconditioner = torch.diag(1 / (s["c"].diagonal().sqrt() + 1e-8))
    s["m"] = 0.9 * s.get("m", torch.zeros_like(p)) - 0.02 * preconditioner @ g
    return p + s["m"]


def deep(p: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> tuple[Tensor, Tensor]:
    """Eq. 50: one step of gradient descent on the network's reconstruction of the gradient, then a read of it."""
    n = p.shape[1]
    u = g / g.norm()
    weights = [s.get("w1", torch.eye(2 * n, n, dtype=p.dtype)), s.get("w2", torch.eye(n, 2 * n, dtype=p.dtype))]

    def net(w1: Tensor, w2: Tensor) -> Tensor:
        return u + torch.nn.functional.silu(u @ w1.T) @ w2.T

    with torch.enable_grad():
        leaves = [w.clone().requires_grad_() for w in weights]
        slopes = torch.autograd.grad(0.5 * (net(*leaves) - u).square().sum(), leaves)
    s["w1"], s["w2"] = (0.99 * w - 0.1 * slope for w, slope in zip(weights, slopes, strict=True))
    return net(s["w1"], s["w2"]), g.norm()


def deep_momentum(p: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    read, size = deep(p, g, s, t)
    return p - 0.02 * size * read


def deep_muon(p: Tensor, g: Tensor, s: dict[str, Tensor], t: int) -> Tensor:
    read, _ = deep(p, g, s, t)
    return p - 0.02 * max(1, p.shape[0] / p.shape[1]) ** 0.5 * newton_schulz(read)


@pytest.mark.parametrize(
    ("rule", "arguments", "update"),
    [
        ("lion", {"lr": 0.02, "decay": 0.1}, lion),
        ("adamuon", {"lr": 0.02, "decay": 0.1}, adamuon),
        ("preconditioned_momentum", {"lr": 0.02}, preconditioned),
        ("deep_momentum", {"lr": 0.02}, deep_momentum),
        ("deep_muon", {"lr": 0.02}, deep_muon),
    ],
)
def test_step_for_step_as_published(rule: str, arguments: dict[str, float], update: Any) -> None:
    mine = walk(lambda p: nsam.optimizer("std.optimizers", rule, p, **arguments))
    wanted = walk(lambda p: Restated(p, update))
    # Newton-Schulz turns the side where the Gram matrix is smaller, which rounds differently.
    assert max(float((a - b).abs().max()) for a, b in zip(mine, wanted, strict=True)) < 1e-9
    assert float((mine[-1] - mine[0]).abs().max()) > 0.1


LINEAR_DEEP_MOMENTUM = """nsam 1
rule linear_deep_momentum(lr, beta = 0.95) {
  memory net : linear(cols(self) -> rows(self)) {
    learn identity -> transpose(grad); minimize dot; by plain(lr = 1, retain = beta); every 1 update; reads running
  }
  let ahead = grad + beta * transpose(net(identity))
  self <- self - lr * sqrt(max(1, rows(self) / cols(self))) * orthogonalize(ahead)
}
rule plain(lr, retain) {
  self <- retain * self - lr * grad
}
"""


def test_deep_momentum_with_a_linear_memory_and_newton_schulz_is_muon() -> None:
    program = nsam.loads(LINEAR_DEEP_MOMENTUM)
    mine = walk(lambda p: nsam.optimizer(program, "linear_deep_momentum", p, lr=0.02))
    wanted = walk(lambda p: nsam.optimizer("std.rules", "muon", p, lr=0.02))
    assert max(float((a - b).abs().max()) for a, b in zip(mine, wanted, strict=True)) < 1e-12


RULES = ["gd", "dgd", "safe_dgd", "momentum", "delta_momentum", "adamw", "muon", "m3", "m3_algorithm1"]

INSIDE = """nsam 1
use {library} ({rule})
system s(dim: int) {{
  input x: [dim]
  memory q, k, v : linear(dim -> dim)
  memory rate : linear(dim -> 1)
  memory m : {structure} {{
    learn normalize(k(x)) -> normalize(v(x)); minimize l2; by {rule}(lr = {rate}); every {every}; {more}
  }}
  output m(q(x))
}}
"""


@pytest.mark.parametrize("rule", [*ALL, *RULES])
@pytest.mark.parametrize(
    ("structure", "every", "rate", "more"),
    [
        ("linear(dim -> dim, heads = 2)", "3 tokens", "0.1 * sigmoid(rate(x))", "init learned"),
        ("mlp(dim -> 6 -> dim, act = silu, residual)", "1 token", "0.05", "reads running"),
        ("mlp(dim -> 6 -> dim, act = gelu)", "4 tokens", "0.05 * sigmoid(rate(x))", "reset every 8 tokens"),
    ],
    ids=["heads", "online", "resets"],
)
def test_inside_a_sequence(rule: str, structure: str, every: str, rate: str, more: str, pair: Any) -> None:
    library = "std.rules" if rule in RULES else "std.optimizers"
    text = INSIDE.format(library=library, rule=rule, structure=structure, every=every, rate=rate, more=more)
    assert pair(nsam.loads(text), "s", dim=4).apart(10) < 1e-9


USERS = {
    "a state": "state m = 0.5; m <- 0.9*m + 0.1*grad; self <- self - lr*m",
    "a memory of a memory": (
        "memory t : like(self) { learn grad; minimize l2; by momentum(lr = 0.3, beta = 0.5); every 2 updates }\n"
        "self <- self - lr*t"
    ),
    "a memory of errors": (
        "memory t : like(self) { learn key -> err; minimize l2; by dgd(lr = 0.1); every 1 update; reads running }\n"
        "self <- self - lr*outer(t(key), key)"
    ),
    "a network of errors": (
        "memory t : mlp(cols(self) -> 3 -> rows(self), act = gelu, gated) {\n"
        "  learn key -> err; minimize huber(0.5); by adamw(lr = 0.05); every 2 updates; init 0.3 * identity\n}\n"
        "self <- self - lr*(grad + outer(t(key), key))"
    ),
    "a slow matrix of errors": (
        "memory t : linear(cols(self) -> rows(self)) {\n"
        "  learn key -> err; minimize l2; by gd(lr = 0.3); every 3 updates summed\n}\n"
        "self <- self - lr*(grad + outer(t(key), key))"
    ),
}


@pytest.mark.parametrize("body", USERS)
@pytest.mark.parametrize(
    ("structure", "clock"),
    [
        ("linear(dim -> dim)", "every 1 token; reads running"),
        ("mlp(dim -> 3 -> dim, bias, residual)", "every 3 tokens; reset every 6 tokens"),
        ("mlp(dim -> 2*dim -> dim, gated, heads = 2)", "every 2 tokens; reset never"),
    ],
    ids=["matrix", "biases", "heads"],
)
def test_rules_of_ones_own(body: str, structure: str, clock: str, pair: Any) -> None:
    text = f"""nsam 1
use std.rules (gd, dgd, momentum, adamw)
rule own(lr) {{
{USERS[body]}
}}
system s(dim: int) {{
  input x: [dim]
  memory q, k, v : linear(dim -> dim)
  memory g : linear(dim -> 1)
  memory m : {structure} {{
    learn normalize(k(x)) -> normalize(v(x)); minimize l2; by own(lr = 0.1 * sigmoid(g(x))); {clock}
  }}
  output m(q(x))
}}
"""
    assert pair(nsam.loads(text), "s", dim=4).apart(9) < 1e-9
