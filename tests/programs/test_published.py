"""More shipped programs against published recurrences, written out token by token in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from oracles import DIM, Weights, agrees, unit
from torch import Tensor
from torch.nn import functional as F

Net = Callable[[list[Tensor], Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def qkv(w: Weights, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (w[f"{n}.weight"] @ x for n in "qkv")
    return q, k, v


def zeros(xs: Tensor) -> Tensor:
    return torch.zeros(DIM, DIM, dtype=xs.dtype)


# --- matrices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("system", "gamma"), [("linear_attention", 1.0), ("retnet", 0.97)])
def test_linear_attention_and_retention(system: str, gamma: float, example: Any, pair: Any) -> None:
    """In parallel form: Σ gamma^(t − s) ⟨q_t, k_s⟩ v_s."""

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        q, k, v = (xs @ w[f"{n}.weight"].T for n in "qkv")
        steps = torch.arange(len(xs), dtype=xs.dtype)
        decay = (gamma ** (steps[:, None] - steps[None]).clamp_min(0)).tril()
        return ((q @ k.T) * decay) @ v

    agrees(pair(example("zoo"), system, dim=DIM), oracle)


def test_gated_deltanet(example: Any, pair: Any) -> None:
    def oracle(w: Weights, xs: Tensor) -> Tensor:
        m, ys = zeros(xs), []
        for x in xs:
            q, k, v = qkv(w, x)
            q, k = unit(q), unit(k)
            a, b = torch.sigmoid(6 + w["gate.weight"] @ x), torch.sigmoid(w["beta.weight"] @ x)
            m = a * m @ (torch.eye(DIM, dtype=x.dtype) - b * torch.outer(k, k)) + b * torch.outer(v, k)
            ys.append(m @ q)
        return torch.stack(ys)

    agrees(pair(example("zoo"), "gated_deltanet", dim=DIM), oracle)


def test_oja(example: Any, pair: Any) -> None:
    """M <- M + eta v (k − M' v)'."""

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        m, ys = zeros(xs), []
        for x in xs:
            q, k, v = qkv(w, x)
            k, v = unit(k), unit(v)
            m = m + 0.1 * torch.outer(v, k - m.T @ v)
            ys.append(m @ q)
        return torch.stack(ys)

    agrees(pair(example("zoo"), "oja", dim=DIM), oracle)


def test_ttt_linear(example: Any, pair: Any) -> None:
    """Gradients at the mini-batch's start, each token's own step taken before it reads, per head."""

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        start = [w["m.weight"][h] * 1 for h in range(2)]
        now, ys = list(start), []
        for t, x in enumerate(xs):
            rate = torch.sigmoid(w["gate.weight"] @ x) / DIM
            q, k, v = (part.chunk(2) for part in qkv(w, x))
            now = [now[h] - rate[h] * torch.outer(start[h] @ k[h] - v[h], k[h]) for h in range(2)]
            ys.append(w["rate.weight"] @ torch.cat([now[h] @ q[h] for h in range(2)]))
            if (t + 1) % 4 == 0:
                start = list(now)
        return torch.stack(ys)

    agrees(pair(example("linear_memories"), "ttt_linear", dim=DIM), oracle)


# --- networks: the inner gradient by autograd -------------------------------------------------------


def slopes_of(net: Net, loss: Loss, weights: Sequence[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The gradient of the summed losses of (key, value) pairs, itself differentiable."""
    at = list(weights)
    total = sum(loss(net(at, k), v) for k, v in pairs)
    return list(torch.autograd.grad(total, at, create_graph=True))  # type: ignore[arg-type]


def squares(y: Tensor, v: Tensor) -> Tensor:
    return 0.5 * (y - v).square().sum()


def residual(act: Callable[[Tensor], Tensor]) -> Net:
    return lambda ws, x: x + ws[1] @ act(ws[0] @ x)


def newton_schulz(m: Tensor) -> Tensor:
    """Five quintic steps in the matrix's own precision."""
    x = m.T if m.shape[0] > m.shape[1] else m
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if m.shape[0] > m.shape[1] else x


def test_miras_lp(example: Any, pair: Any) -> None:
    def lp(y: Tensor, v: Tensor) -> Tensor:
        return (y - v).abs().pow(3).sum() / 3

    net = residual(F.gelu)

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        start = [w["m.w1"] * 1, w["m.w2"] * 1]
        now, ys = list(start), []
        for t, x in enumerate(xs):
            q, k, v = qkv(w, x)
            ys.append(net(start, q))
            grads = slopes_of(net, lp, start, [(unit(k), unit(v))])
            now = [0.999 * m - 0.02 * g for m, g in zip(now, grads, strict=True)]
            if (t + 1) % 16 == 0:
                start = list(now)
        return torch.stack(ys)

    agrees(pair(example("zoo"), "miras_lp", dim=DIM), oracle, time=19)


def test_miras_huber(example: Any, pair: Any) -> None:
    def net(ws: list[Tensor], x: Tensor) -> Tensor:
        return x + ws[1] @ (F.gelu(ws[2] @ x) * (ws[0] @ x))

    def huber(y: Tensor, v: Tensor) -> Tensor:
        return F.huber_loss(y, v, reduction="sum", delta=0.5)

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        start = [w[f"m.{n}"] * 1 for n in ("w1", "w2", "g1")]
        now, ys = list(start), []
        for t, x in enumerate(xs):
            q, k, v = qkv(w, x)
            keep = torch.sigmoid(10 + w["keep.weight"] @ x)
            ys.append(net(start, unit(q)))
            grads = slopes_of(net, huber, start, [(unit(k), unit(v))])
            now = [keep * m - 0.1 * g for m, g in zip(now, grads, strict=True)]
            if (t + 1) % 4 == 0:
                start = list(now)
        return torch.stack(ys)

    agrees(pair(example("deep_memories"), "miras_huber", dim=DIM), oracle)


def test_titans_memory(example: Any, pair: Any) -> None:
    """S <- eta S − theta grad, M <- alpha M + S."""
    net = residual(F.silu)

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        start = [w["m.w1"] * 1, w["m.w2"] * 1]
        now, trace, ys = list(start), [torch.zeros_like(m) for m in start], []
        for t, x in enumerate(xs):
            q, k, v = (unit(z) for z in qkv(w, x))
            eta, theta = torch.sigmoid(w["eta.weight"] @ x), 0.02 * torch.sigmoid(w["theta.weight"] @ x)
            alpha = torch.sigmoid(7 + w["alpha.weight"] @ x)
            ys.append(net(start, q))
            grads = slopes_of(net, squares, start, [(k, v)])
            trace = [eta * s - theta * g for s, g in zip(trace, grads, strict=True)]
            now = [alpha * m + s for m, s in zip(now, trace, strict=True)]
            if (t + 1) % 16 == 0:
                start = list(now)
        return torch.stack(ys)

    agrees(pair(example("zoo"), "titans_memory", dim=DIM), oracle, time=19)


def test_atlas_once_a_chunk(example: Any, pair: Any) -> None:
    """Each token's loss is the sum over its last 8; Muon moves by the chunk's sum."""
    net = residual(F.gelu)

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        now = [w["m.w1"] * 1, w["m.w2"] * 1]
        trace, total, ys, pairs = [torch.zeros_like(m) for m in now], [torch.zeros_like(m) for m in now], [], []
        for t, x in enumerate(xs):
            q, k, v = qkv(w, x)
            ys.append(net(now, q))
            pairs = [*pairs, (unit(k), unit(v))][-8:]
            total = [s + g for s, g in zip(total, slopes_of(net, squares, now, pairs), strict=True)]
            if (t + 1) % 16 == 0:
                trace = [0.95 * s + g for s, g in zip(trace, total, strict=True)]
                now = [
                    m - 0.1 * max(1, m.shape[0] / m.shape[1]) ** 0.5 * newton_schulz(g + 0.95 * s)
                    for m, s, g in zip(now, trace, total, strict=True)
                ]
                total = [torch.zeros_like(m) for m in now]
        return torch.stack(ys)

    agrees(pair(example("zoo"), "atlas", dim=DIM), oracle, time=19, tolerance=1e-8)


def test_atlas_online(example: Any, pair: Any) -> None:
    """Omega window of three, quadratic keys, Muon at each token; gradients at the chunk's start."""

    def net(ws: list[Tensor], x: Tensor) -> Tensor:
        return ws[1] @ F.gelu(ws[0] @ x)

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        start = [w["m.w1"] * 1, w["m.w2"] * 1]
        now, trace, ys, pairs = list(start), [torch.zeros_like(m) for m in start], [], []
        for t, x in enumerate(xs):
            q, k, v = qkv(w, x)
            q, k = unit(q), unit(k)
            ys.append(net(start, torch.cat([q, q**2])))
            pairs = [*pairs, (torch.cat([k, k**2]), v)][-3:]
            grads = slopes_of(net, squares, start, pairs)
            trace = [0.95 * s + g for s, g in zip(trace, grads, strict=True)]
            now = [
                (1 - 0.05 * 0.01) * m - 0.05 * max(1, m.shape[0] / m.shape[1]) ** 0.5 * newton_schulz(g + 0.95 * s)
                for m, s, g in zip(now, trace, grads, strict=True)
            ]
            if (t + 1) % 4 == 0:
                start = list(now)
        return torch.stack(ys)

    agrees(pair(example("deep_memories"), "atlas_online", dim=DIM), oracle, tolerance=1e-8)
