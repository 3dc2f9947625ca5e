"""Published recurrences, written here from their equations, against the interpreted programs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nsam.backends.reference import ReferenceModule
from nsam.dsl.checked import Unit

Build = Callable[..., Unit]
Random = Callable[..., Tensor]

D, T = 4, 7
MATRIX = """
system s() {{
  input x: [4]
  memory q, k, v : linear(4 -> 4)
  memory beta, gate : linear(4 -> 1)
  let b = sigmoid(beta(x))
  let a = sigmoid(2 + gate(x))
  memory m : linear(4 -> 4) {{ {clauses} }}
  output m(q(x))
}}
"""


def _run(build: Build, random: Random, clauses: str) -> tuple[ReferenceModule, Tensor, Tensor]:
    module = ReferenceModule(build(MATRIX.format(clauses=clauses)), torch.Generator().manual_seed(0))
    x = random(2, T, D)
    return module, x, module(x)[0]


def _projections(module: ReferenceModule, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = {name: p.detach() for name, p in module.named_parameters()}
    q, k, v = (x @ weights[f"{n}.weight"].T for n in "qkv")
    beta = torch.sigmoid(x @ weights["beta.weight"].T)
    gate = torch.sigmoid(2 + x @ weights["gate.weight"].T)
    return q, k, v, beta[..., 0], gate[..., 0]


def _recur(module: ReferenceModule, x: Tensor, step: Callable[..., Tensor], before: bool = False) -> Tensor:
    """Run M ← step(M, k, v, b, a) over each sequence from zero, reading M q after (or before) the update."""
    q, k, v, b, a = _projections(module, x)
    rows = []
    for i in range(len(x)):
        m, outputs = torch.zeros(D, D, dtype=torch.float64), []
        for t in range(x.shape[1]):
            moved = step(m, k[i, t], v[i, t], b[i, t], a[i, t])
            outputs.append((m if before else moved) @ q[i, t])
            m = moved
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def _unit_length(x: Tensor) -> Tensor:
    return x / x.norm()


RECURRENCES = {
    "linear attention": (
        "learn k(x) -> v(x); minimize dot; by gd(lr = 1); every 1 token; reads running; init zeros",
        lambda m, k, v, b, a: m + torch.outer(v, k),
    ),
    "retnet": (
        "learn k(x) -> v(x); minimize dot; by gd(lr = 1, retain = 0.9); every 1 token; reads running; init zeros",
        lambda m, k, v, b, a: 0.9 * m + torch.outer(v, k),
    ),
    "delta rule": (
        "learn normalize(k(x)) -> v(x); minimize l2; by gd(lr = b); every 1 token; reads running; init zeros",
        lambda m, k, v, b, a: m - b * torch.outer(m @ _unit_length(k) - v, _unit_length(k)),
    ),
    "delta rule by dgd": (
        "learn normalize(k(x)) -> v(x); minimize dot; by dgd(lr = b); every 1 token; reads running; init zeros",
        lambda m, k, v, b, a: m - b * torch.outer(m @ _unit_length(k) - v, _unit_length(k)),
    ),
    "gated delta rule": (
        "learn normalize(k(x)) -> v(x); minimize dot; by dgd(lr = b, retain = a, erase = a * b); every 1 token; "
        "reads running; init zeros",
        lambda m, k, v, b, a: (
            a * m @ (torch.eye(D, dtype=torch.float64) - b * torch.outer(_unit_length(k), _unit_length(k)))
            + b * torch.outer(v, _unit_length(k))
        ),
    ),
    "oja": (
        "learn normalize(k(x)) -> normalize(v(x)); minimize -dot(self(key), value) + 0.5 * sum((self.T(value))^2); "
        "by gd(lr = 0.1); every 1 token; reads running; init zeros",
        lambda m, k, v, b, a: m + 0.1 * torch.outer(_unit_length(v), _unit_length(k) - m.T @ _unit_length(v)),
    ),
    "l3": (
        "learn k(x) -> v(x); minimize lp(3); by gd(lr = 0.05); every 1 token; reads running; init zeros",
        lambda m, k, v, b, a: m - 0.05 * torch.outer((m @ k - v).sign() * (m @ k - v).abs() ** 2, k),
    ),
    "huber": (
        "learn k(x) -> v(x); minimize huber(0.5); by gd(lr = 0.1); every 1 token; reads running; init zeros",
        lambda m, k, v, b, a: m - 0.1 * torch.outer((m @ k - v).clamp(-0.5, 0.5), k),
    ),
    "pseudo huber": (
        "learn k(x) -> v(x); minimize pseudo_huber(2); by gd(lr = 0.1); every 1 token; reads running; init zeros",
        lambda m, k, v, b, a: m - 0.1 * torch.outer((m @ k - v) / (1 + (m @ k - v).square().sum() / 4).sqrt(), k),
    ),
    "pseudo huber without bound": (
        "learn k(x) -> v(x); minimize pseudo_huber(inf); by gd(lr = 0.1); every 1 token; reads running; init zeros",
        lambda m, k, v, b, a: m - 0.1 * torch.outer(m @ k - v, k),
    ),
    "proximal step": (
        "learn k(x) -> v(x); minimize dot; by safe_dgd(lr = b, retain = a); every 1 token; reads running; init zeros",
        lambda m, k, v, b, a: (
            m @ (a * torch.eye(D, dtype=torch.float64) - b / (1 + b * k @ k) * torch.outer(k, k))
            + b / (1 + b * k @ k) * torch.outer(v, k)
        ),
    ),
}


@pytest.mark.parametrize("name", RECURRENCES)
@pytest.mark.parametrize("reads", ["running", "boundary"])
def test_recurrence(build: Build, random: Random, name: str, reads: str) -> None:
    clauses, step = RECURRENCES[name]
    module, x, y = _run(build, random, clauses.replace("reads running", f"reads {reads}"))
    expected = _recur(module, x, step, before=reads == "boundary")
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(y.detach(), expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_a_recurrence(build: Build, random: Random) -> None:
    """The outer gradient through the delta rule equals autograd's through the plain loop."""
    clauses, _ = RECURRENCES["delta rule"]
    module, x, y = _run(build, random, clauses)
    y.square().sum().backward()
    copies = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    total = torch.zeros((), dtype=torch.float64)
    for i in range(2):
        m = torch.zeros(D, D, dtype=torch.float64)
        for t in range(T):
            q, k, v = (copies[f"{n}.weight"] @ x[i, t] for n in "qkv")
            b, k = torch.sigmoid(copies["beta.weight"] @ x[i, t]), k / k.norm()
            m = m - b * torch.outer(m @ k - v, k)
            total = total + (m @ q).square().sum()
    total.backward()
    for name in ("q.weight", "k.weight", "v.weight", "beta.weight"):
        theirs = copies[name].grad
        assert theirs is not None
        torch.testing.assert_close(module.get_parameter(name).grad, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_chunks_take_gradients_at_the_boundary(build: Build, random: Random, chunk: int) -> None:
    """M_t = a M_{t-1} − b (M_B k − v) kᵀ, M_B the state after the last multiple of the chunk (eq. 90)."""
    module, x, y = _run(
        build, random, f"learn k(x) -> v(x); minimize l2; by gd(lr = 0.2 * b, retain = a); every {chunk} tokens; init q"
    )
    q, k, v, b, a = _projections(module, x)
    for i in range(2):
        boundary = running = module.get_parameter("q.weight").detach()
        for t in range(T):
            torch.testing.assert_close(y[i, t].detach(), boundary @ q[i, t], rtol=1e-12, atol=1e-12)
            error = boundary @ k[i, t] - v[i, t]
            running = a[i, t] * running - 0.2 * b[i, t] * torch.outer(error, k[i, t])
            if (t + 1) % chunk == 0:
                boundary = running


@pytest.mark.parametrize("reads", ["running", "boundary"])
def test_summed_moves_once_a_chunk(build: Build, random: Random, reads: str) -> None:
    module, x, y = _run(
        build,
        random,
        f"learn k(x) -> v(x); minimize l2; by gd(lr = 0.1, retain = 0.5); every 3 tokens summed; reads {reads}; "
        "init zeros",
    )
    q, k, v, _, _ = _projections(module, x)
    for i in range(2):
        m, sums = torch.zeros(D, D, dtype=torch.float64), torch.zeros(D, D, dtype=torch.float64)
        for t in range(T):
            sums = sums + torch.outer(m @ k[i, t] - v[i, t], k[i, t])
            moved = 0.5 * m - 0.1 * sums if (t + 1) % 3 == 0 else m
            shown = moved if reads == "running" else m
            torch.testing.assert_close(y[i, t].detach(), shown @ q[i, t], rtol=1e-12, atol=1e-12)
            if (t + 1) % 3 == 0:
                m, sums = moved, torch.zeros_like(sums)


def test_momentum_folds_over_the_chunk(build: Build, random: Random) -> None:
    """Titans: S ← θS − η∇, M ← αM + S, gradients at the chunk's start."""
    module, x, y = _run(
        build,
        random,
        "learn k(x) -> v(x); minimize l2; by momentum(lr = 0.1 * b, beta = 0.8, retain = a); every 2 tokens; "
        "init zeros",
    )
    q, k, v, b, a = _projections(module, x)
    for i in range(2):
        boundary = running = surprise = torch.zeros(D, D, dtype=torch.float64)
        for t in range(T):
            torch.testing.assert_close(y[i, t].detach(), boundary @ q[i, t], rtol=1e-12, atol=1e-12)
            gradient = torch.outer(boundary @ k[i, t] - v[i, t], k[i, t])
            surprise = 0.8 * surprise - 0.1 * b[i, t] * gradient
            running = a[i, t] * running + surprise
            if (t + 1) % 2 == 0:
                boundary = running


def test_omega_window_crosses_chunks(build: Build, random: Random) -> None:
    """The loss at t sums the last 3 tokens as they were stored; gradients at the current boundary (eq. 68)."""
    module, x, y = _run(
        build,
        random,
        "learn k(x) -> v(x) over last 3 tokens; minimize l2; by gd(lr = 0.05); every 2 tokens; init zeros",
    )
    q, k, v, _, _ = _projections(module, x)
    for i in range(2):
        boundary = running = torch.zeros(D, D, dtype=torch.float64)
        for t in range(T):
            torch.testing.assert_close(y[i, t].detach(), boundary @ q[i, t], rtol=1e-12, atol=1e-12)
            for s in range(max(0, t - 2), t + 1):
                running = running - 0.05 * torch.outer(boundary @ k[i, s] - v[i, s], k[i, s])
            if (t + 1) % 2 == 0:
                boundary = running


ATTENTION = """
system s() {{
  input x: [8]
  memory q : linear(8 -> 8)
  memory k, v : linear(8 -> {kv})
  memory attn : attention({options}) {{ learn k(x) -> v(x) }}
  output attn(q(x))
}}
"""


@pytest.mark.parametrize(
    ("options", "heads", "groups", "window"),
    [("heads = 4", 4, 4, None), ("heads = 4, kv_heads = 2", 4, 2, None), ("heads = 2, window = 3", 2, 2, 3)],
)
def test_attention_is_sdpa(
    build: Build, random: Random, options: str, heads: int, groups: int, window: int | None
) -> None:
    module = ReferenceModule(build(ATTENTION.format(options=options, kv=8 * groups // heads)))
    x = random(2, 6, 8)
    y, _ = module(x)
    q, k, v = (x @ module.get_parameter(f"{n}.weight").detach().T for n in "qkv")
    split = [z.unflatten(-1, (h, 8 // heads)).transpose(1, 2) for z, h in ((q, heads), (k, groups), (v, groups))]
    distance = torch.arange(6)[:, None] - torch.arange(6)[None, :]
    mask = (distance >= 0) & (distance < (window or 6))
    expected = torch.nn.functional.scaled_dot_product_attention(*split, attn_mask=mask, enable_gqa=groups != heads)
    torch.testing.assert_close(y.detach(), expected.transpose(1, 2).flatten(-2), rtol=1e-12, atol=1e-12)


def test_heads_are_independent_matrices(build: Build, random: Random) -> None:
    text = """
    system s() {
      input x: [6]
      memory rate : linear(6 -> 3)
      memory m : linear(6 -> 6, heads = 3) {
        learn x -> x; minimize l2; by gd(lr = sigmoid(rate(x))); every 1 token; reads running; init learned
      }
      output m(x)
    }"""
    module = ReferenceModule(build(text))
    x = random(1, 5, 6)
    y, _ = module(x)
    start, rates = module.get_parameter("m.weight").detach(), module.get_parameter("rate.weight").detach()
    for h in range(3):
        m, part = start[h], x[0, :, 2 * h : 2 * h + 2]
        for t in range(5):
            m = m - torch.sigmoid(rates[h] @ x[0, t]) * torch.outer(m @ part[t] - part[t], part[t])
            torch.testing.assert_close(y[0, t, 2 * h : 2 * h + 2].detach(), m @ part[t], rtol=1e-12, atol=1e-12)


DEEP = """
system s() {{
  input x: [4]
  memory start : mlp(4 -> 6 -> 4, act = {act}, gated, bias, residual)
  memory m : mlp(4 -> 6 -> 4, act = {act}, gated, bias, residual) {{
    learn x -> 0.5 * x; minimize sum((self(key) - value)^4); by {rule}; every 1 token; init start
  }}
  output m(x)
}}
"""
OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "gd(lr = 0.002)": lambda p: torch.optim.SGD(p, lr=0.002),
    "momentum(lr = 0.002, beta = 0.7)": lambda p: torch.optim.SGD(p, lr=0.002, momentum=0.7),
    "adamw(lr = 0.05, decay = 0.1)": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
}


@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize("act", ["gelu", "tanh", "softplus"])
def test_a_deep_memory_is_trained_by_the_same_optimizer(build: Build, random: Random, rule: str, act: str) -> None:
    """Online, a memory inside the sequence is a network that torch.optim trains token by token (TTT-MLP)."""
    module = ReferenceModule(build(DEEP.format(act=act, rule=rule)), torch.Generator().manual_seed(0))
    x = random(1, 6, 4)
    y, _ = module(x)
    w = {name[6:]: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    optimizer = OPTIMIZERS[rule](list(w.values()))
    activate = torch.tanh if act == "tanh" else getattr(torch.nn.functional, act)
    for t, row in enumerate(x[0]):
        out = row + w["w2"] @ (activate(w["g1"] @ row) * (w["w1"] @ row + w["b1"])) + w["b2"]
        torch.testing.assert_close(y[0, t].detach(), out.detach(), rtol=1e-10, atol=1e-11)
        optimizer.zero_grad()
        (out - 0.5 * row).pow(4).sum().backward()
        optimizer.step()
