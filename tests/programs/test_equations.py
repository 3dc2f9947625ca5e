"""Shipped programs against the published equations, written out here token by token in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from oracles import DIM, Oracle, Weights, agrees, unit
from torch import Tensor
from torch.nn import functional as F


def heads_of(x: Tensor, heads: int) -> list[Tensor]:
    return list(x.chunk(heads, -1))


# --- matrix memories -----------------------------------------------------------------------------


def test_deltanet(example: Any, pair: Any) -> None:
    def oracle(w: Weights, xs: Tensor) -> Tensor:
        states = [torch.zeros(2, 2, dtype=xs.dtype)] * 2
        ys = []
        for x in xs:
            beta = torch.sigmoid(w["beta.weight"] @ x)
            out = []
            for h in range(2):
                q, k = (unit(heads_of(F.silu(w[f"{n}.weight"] @ x), 2)[h]) for n in "qk")
                v = heads_of(w["v.weight"] @ x, 2)[h]
                erased = states[h] @ (torch.eye(2, dtype=x.dtype) - beta[h] * torch.outer(k, k))
                states[h] = erased + beta[h] * torch.outer(v, k)
                out.append(states[h] @ q)
            ys.append(torch.cat(out))
        return torch.stack(ys)

    agrees(pair(example("linear_memories"), "deltanet", dim=DIM), oracle)
    agrees(pair(example("linear_memories"), "deltanet_by_rule", dim=DIM), oracle)


def test_longhorn(example: Any, pair: Any) -> None:
    def oracle(w: Weights, xs: Tensor) -> Tensor:
        m, ys = torch.zeros(DIM, DIM, dtype=xs.dtype), []
        for x in xs:
            q, k, v = (w[f"{n}.weight"] @ x for n in "qkv")
            b = torch.sigmoid(w["beta.weight"] @ x)
            # The minimiser of |M - M_old|² + b |M k - v|², from its normal equations.
            m = (m + b * torch.outer(v, k)) @ torch.linalg.inv(torch.eye(DIM, dtype=x.dtype) + b * torch.outer(k, k))
            ys.append(m @ q)
        return torch.stack(ys)

    agrees(pair(example("linear_memories"), "longhorn", dim=DIM), oracle)


def test_proximal_step(example: Any, pair: Any) -> None:
    """Delta gradient descent in its 1/(1 + η‖x‖²) form with a dot product: the same, by the matrix inversion lemma."""

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        m, ys = torch.zeros(DIM, DIM, dtype=xs.dtype), []
        for x in xs:
            q, k, v = (w[f"{n}.weight"] @ x for n in "qkv")
            eta = F.softplus(w["rate.weight"] @ x)
            m = (m + eta * torch.outer(v, k)) @ torch.linalg.inv(
                torch.eye(DIM, dtype=x.dtype) + eta * torch.outer(k, k)
            )
            ys.append(m @ q)
        return torch.stack(ys)

    agrees(pair(example("linear_memories"), "proximal", dim=DIM), oracle)


def test_mamba2(example: Any, pair: Any) -> None:
    def oracle(w: Weights, xs: Tensor) -> Tensor:
        states, ys = [torch.zeros(2, 2, dtype=xs.dtype)] * 2, []
        inputs = xs @ w["v.weight"].T
        padded = torch.cat([torch.zeros(3, DIM, dtype=xs.dtype), inputs])
        for t, x in enumerate(xs):
            u = F.silu((padded[t : t + 4].T * w["taps.weight"]).sum(1))
            dt = F.softplus(w["step.weight"] @ x + w["step.bias"])
            out = []
            for h in range(2):
                b, c, part = (heads_of(z, 2)[h] for z in (w["b.weight"] @ x, w["c.weight"] @ x, u))
                decay = torch.exp(-dt[h] * torch.exp(w["a.weight"][h]))
                states[h] = decay * states[h] + dt[h] * torch.outer(part, b)
                out.append(states[h] @ c)
            ys.append(torch.cat(out) + w["d.weight"] * u)
        return torch.stack(ys)

    agrees(pair(example("linear_memories"), "mamba2", dim=DIM), oracle)


def test_robust_surprise(example: Any, pair: Any) -> None:
    """Eq. 59-60: the layer learns (its input, minus the error at its output); with a dot product that is v itself."""

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        m, ys = torch.zeros(DIM, DIM, dtype=xs.dtype), []
        for x in xs:
            q, k, v = w["q.weight"] @ x, unit(w["k.weight"] @ x), w["v.weight"] @ x
            m = 0.99 * m - 0.5 * torch.outer((m @ k - v).clamp(-0.5, 0.5), k)
            ys.append(m @ q)
        return torch.stack(ys)

    agrees(pair(example("linear_memories"), "robust_surprise", dim=DIM), oracle)


def test_feature_map(example: Any, pair: Any) -> None:
    def oracle(w: Weights, xs: Tensor) -> Tensor:
        m, ys = torch.zeros(DIM, 2 * DIM, dtype=xs.dtype), []
        for x in xs:
            q, k = (unit(w[f"{n}.weight"] @ x) for n in "qk")
            q, k = torch.cat([q, q**2]), torch.cat([k, k**2])
            m = 0.99 * m - 0.5 * torch.outer(m @ k - w["v.weight"] @ x, k)
            ys.append(m @ q)
        return torch.stack(ys)

    agrees(pair(example("linear_memories"), "feature_mapped", dim=DIM), oracle)


def test_delta_rule_with_momentum(example: Any, pair: Any) -> None:
    """Erasing on the weights and inside the momentum; chunks of four, gradients at the chunk's start."""

    def oracle(inside: bool) -> Oracle:
        def run(w: Weights, xs: Tensor) -> Tensor:
            m = start = w["m.weight"]
            s, ys = torch.zeros_like(m), []
            for t, x in enumerate(xs):
                q, k = (unit(w[f"{n}.weight"] @ x) for n in "qk")
                v = w["v.weight"] @ x
                rate, theta = torch.sigmoid(w["rate.weight"] @ x) / 2, torch.sigmoid(w["trace.weight"] @ x)
                keep = torch.sigmoid(4 + w["keep.weight"] @ x)
                ys.append(start @ q)
                if inside:
                    s = theta * s - rate * (torch.outer(m @ k, k) - torch.outer(v, k))
                    m = keep * m + s
                else:
                    s = theta * s - rate * torch.outer(start @ k - v, k)
                    m = m @ (keep * torch.eye(DIM, dtype=x.dtype) - rate / 2 * torch.outer(k, k)) + s
                if (t + 1) % 4 == 0:
                    start = m
            return torch.stack(ys)

        return run

    agrees(pair(example("linear_memories"), "delta_momentum_outside", dim=DIM), oracle(inside=False))
    agrees(pair(example("linear_memories"), "delta_momentum_inside", dim=DIM), oracle(inside=True))


# --- deep memories: the inner gradient by autograd ------------------------------------------------

Net = Callable[[list[Tensor], Tensor], Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def inner(net: Net, loss: Loss, weights: list[Tensor], k: Tensor, v: Tensor) -> list[Tensor]:
    """∂ loss / ∂ weights, itself differentiable."""
    return list(torch.autograd.grad(loss(net(weights, k), k, v), weights, create_graph=True))


def squares(y: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return 0.5 * (y - v).square().sum()


def layer_norm_loss(y: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return 0.5 * (k + F.layer_norm(y, y.shape, eps=1e-6) - v).square().sum()


def ttt(net: Net, names: list[str], normalized: bool) -> Oracle:
    """f(x) = x + LN(net(x)), per head; gradients at the mini-batch's start, read after each token's own step."""

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        start = [[w[f"m.{n}"][h] * 1 for n in names] for h in range(2)]
        now, ys = [list(s) for s in start], []
        for t, x in enumerate(xs):
            rate = torch.sigmoid(w["gate.weight"] @ x) / DIM
            q, k, v = (heads_of(w[f"{n}.weight"] @ x, 2) for n in "qkv")
            if normalized:
                q, k = [unit(h) for h in q], [unit(h) for h in k]
            for h in range(2):
                slopes = inner(net, layer_norm_loss, start[h], k[h], v[h])
                now[h] = [m - rate[h] * g for m, g in zip(now[h], slopes, strict=True)]
            y = torch.cat([net(now[h], q[h]) for h in range(2)])
            ys.append(torch.cat(q) + F.layer_norm(y, (DIM,), w["norm.weight"], w["norm.bias"], 1e-6))
            if (t + 1) % 4 == 0:
                start = [list(s) for s in now]
        return torch.stack(ys)

    return oracle


def test_ttt_mlp(example: Any, pair: Any) -> None:
    def net(ws: list[Tensor], x: Tensor) -> Tensor:
        return ws[1] @ F.gelu(ws[0] @ x)

    agrees(pair(example("deep_memories"), "ttt_mlp", dim=DIM), ttt(net, ["w1", "w2"], normalized=True))


def test_ttt_linear_with_layer_norm(example: Any, pair: Any) -> None:
    def net(ws: list[Tensor], x: Tensor) -> Tensor:
        return ws[0] @ x

    agrees(pair(example("linear_memories"), "ttt_linear_norm", dim=DIM), ttt(net, ["weight"], normalized=False))


def test_titans_with_three_layers(example: Any, pair: Any) -> None:
    """S <- theta S - eta grad, M <- alpha M + S for every weight and bias."""
    names = ["w1", "w2", "w3", "b1", "b2", "b3"]

    def net(ws: list[Tensor], x: Tensor) -> Tensor:
        h = F.silu(ws[0] @ x + ws[3])
        return x + ws[2] @ F.silu(ws[1] @ h + ws[4]) + ws[5]

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        start = [w[f"m.{n}"] * 1 for n in names]
        now, trace, ys = list(start), [torch.zeros_like(m) for m in start], []
        for t, x in enumerate(xs):
            q, k, v = (unit(w[f"{n}.weight"] @ x) for n in "qkv")
            eta, theta = torch.sigmoid(w["eta.weight"] @ x) / 10, torch.sigmoid(w["theta.weight"] @ x)
            alpha = torch.sigmoid(7 + w["alpha.weight"] @ x)
            ys.append(net(start, q))
            slopes = inner(net, squares, start, k, v)
            trace = [theta * s - eta * g for s, g in zip(trace, slopes, strict=True)]
            now = [alpha * m + s for m, s in zip(now, trace, strict=True)]
            if (t + 1) % 4 == 0:
                start = list(now)
        return torch.stack(ys)

    agrees(pair(example("deep_memories"), "titans_deep", dim=DIM), oracle)


def test_miras_with_a_robust_loss(example: Any, pair: Any) -> None:
    def net(ws: list[Tensor], x: Tensor) -> Tensor:
        return ws[1] @ torch.tanh(ws[0] @ x)

    def cauchy(y: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return 0.5 * torch.log1p((y - v).square()).sum()

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        start = [w["m.w1"] * 1, w["m.w2"] * 1]
        now, ys = list(start), []
        for t, x in enumerate(xs):
            q, k = (unit(w[f"{n}.weight"] @ x) for n in "qk")
            ys.append(net(start, q))
            slopes = inner(net, cauchy, start, k, w["v.weight"] @ x)
            now = [0.999 * m - 0.1 * g for m, g in zip(now, slopes, strict=True)]
            if (t + 1) % 4 == 0:
                start = list(now)
        return torch.stack(ys)

    agrees(pair(example("deep_memories"), "miras_cauchy", dim=DIM), oracle)


def test_omega_rule(example: Any, pair: Any) -> None:
    """Eq. 68: the losses of the last three tokens, all at the state before the token."""

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        m, ys = torch.zeros(DIM, DIM, dtype=xs.dtype), []
        for t, x in enumerate(xs):
            rate = torch.sigmoid(w["rate.weight"] @ x) / 4
            total = torch.zeros_like(m)
            for past in xs[max(0, t - 2) : t + 1]:
                k, v = unit(w["k.weight"] @ past), w["v.weight"] @ past
                total = total + torch.outer(m @ k - v, k)
            m = 0.99 * m - rate * total
            ys.append(m @ unit(w["q.weight"] @ x))
        return torch.stack(ys)

    agrees(pair(example("deep_memories"), "omega_net", dim=DIM), oracle)


# --- attention -----------------------------------------------------------------------------------


def rope(x: Tensor, heads: int) -> Tensor:
    """Rotary positions from 0, half-split, base 10000; x [T, n]."""
    time, size = x.shape[0], x.shape[1] // heads
    angle = torch.arange(time, dtype=x.dtype)[:, None] * 10000 ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
    a, b = x.reshape(time, heads, size).chunk(2, -1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, window: int | None = None) -> Tensor:
    """torch's scaled_dot_product_attention, key heads shared in groups; [T, n]."""
    time, size = q.shape[0], q.shape[1] // heads
    q, k, v = (z.reshape(time, -1, size).transpose(0, 1) for z in (q, k, v))
    share = heads // k.shape[0]
    mask = torch.ones(time, time, dtype=torch.bool).tril()
    if window is not None:
        mask = mask.triu(1 - window)
    y = F.scaled_dot_product_attention(q, k.repeat_interleave(share, 0), v.repeat_interleave(share, 0), attn_mask=mask)
    return y.transpose(0, 1).reshape(time, -1)


def test_grouped_heads_window_and_rotary_positions(example: Any, pair: Any) -> None:
    def oracle(w: Weights, x: Tensor) -> Tensor:
        q, k, v = (x @ w[f"{n}.weight"].T for n in "qkv")
        return attend(rope(q, 4), rope(k, 2), v, 4, window=3) @ w["o.weight"].T

    agrees(pair(example("attention"), "grouped_window", dim=8), oracle)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis."""
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def test_transformer(example: Any, pair: Any) -> None:
    def oracle(w: Weights, tokens: Tensor) -> Tensor:
        h = w["embed.weight"][tokens]
        for i in range(2):
            p = {
                name.removeprefix(f"repeat.{i}."): value for name, value in w.items() if name.startswith(f"repeat.{i}.")
            }
            n = norm(h, p["n1.weight"])
            q, k, v = (n @ p[f"{name}.weight"].T for name in "qkv")
            h = h + attend(rope(q, 2), rope(k, 2), v, 2) @ p["o.weight"].T
            n = norm(h, p["n2.weight"])
            h = h + (F.silu(n @ p["ffn.g1"].T) * (n @ p["ffn.w1"].T)) @ p["ffn.w2"].T
        return norm(h, w["nf.weight"]) @ w["embed.weight"].T

    agrees(pair(example("attention"), "transformer", vocab=11, dim=DIM, heads=2, layers=2), oracle)


def test_transformer_block(example: Any, pair: Any) -> None:
    def oracle(w: Weights, x: Tensor) -> Tensor:
        n = norm(x, w["n1.weight"])
        q, k, v = (n @ w[f"{name}.weight"].T for name in "qkv")
        h = x + attend(rope(q, 2), rope(k, 2), v, 2) @ w["o.weight"].T
        return h + F.gelu(norm(h, w["n2.weight"]) @ w["ffn.w1"].T) @ w["ffn.w2"].T

    agrees(pair(example("zoo"), "transformer_block", dim=DIM, heads=2), oracle)


def test_ada_transformer_block(example: Any, pair: Any) -> None:
    """Section 3.2: the layer behind attention is linear attention that forgets and starts from what was learnt."""

    def oracle(w: Weights, x: Tensor) -> Tensor:
        q, k, v = (x @ w[f"{name}.weight"].T for name in "qkv")
        h = x + attend(q, k, v, 2) @ w["o.weight"].T
        m, ys = w["ffn.weight"], []
        for t, row in enumerate(norm(h, w["n1.weight"])):
            m = 0.999 * m + 0.1 * torch.outer(v[t], unit(k[t]))
            ys.append(m @ row)
        return h + torch.stack(ys)

    agrees(pair(example("zoo"), "ada_transformer_block", dim=DIM, heads=2), oracle)


def test_hybrid_is_attention_plus_a_gated_delta_rule(example: Any, pair: Any) -> None:
    def oracle(w: Weights, xs: Tensor) -> Tensor:
        q, k, v = (xs @ w[f"{n}.weight"].T for n in "qkv")
        near = attend(rope(q, 2), rope(k, 2), v, 2, window=3)
        states, far = [torch.zeros(2, 2, dtype=xs.dtype)] * 2, []
        for t, x in enumerate(xs):
            a, b = torch.sigmoid(6 + w["gate.weight"] @ x), torch.sigmoid(w["beta.weight"] @ x)
            out = []
            for h in range(2):
                qh, kh, vh = unit(heads_of(q[t], 2)[h]), unit(heads_of(k[t], 2)[h]), heads_of(v[t], 2)[h]
                erased = a[h] * states[h] @ (torch.eye(2, dtype=xs.dtype) - b[h] * torch.outer(kh, kh))
                states[h] = erased + b[h] * torch.outer(vh, kh)
                out.append(states[h] @ qh)
            far.append(torch.cat(out))
        return (near + torch.stack(far)) @ w["o.weight"].T

    agrees(pair(example("attention"), "hybrid", dim=DIM), oracle)


# --- transfers -----------------------------------------------------------------------------------


def test_maml_is_gradient_descent_through_gradient_descent(example: Any, pair: Any) -> None:
    """Eq. 28: tasks of four tokens, each from the learnt start; second derivatives by autograd."""

    def net(ws: list[Tensor], x: Tensor) -> Tensor:
        return ws[1] @ torch.tanh(ws[0] @ x)

    both = pair(example("meta"), "maml", dim=3)
    x, y = both.inputs(1, 10)
    found, _ = both.compiled(x, y)
    w = {name: p.detach().clone().requires_grad_() for name, p in both.weights.items()}
    wanted = []
    for t in range(10):
        if t % 4 == 0:
            now = [w["m.w1"] * 1, w["m.w2"] * 1]
        wanted.append(net(now, x[0, t]))
        slopes = inner(net, squares, now, x[0, t], y[0, t])
        now = [m - 0.1 * g for m, g in zip(now, slopes, strict=True)]
    expected = torch.stack(wanted)[None]
    assert float((found - expected).detach().abs().max()) < 1e-12
    mine = torch.autograd.grad((found - y).square().sum(), list(both.weights.values()))
    theirs = torch.autograd.grad((expected - y).square().sum(), list(w.values()))
    assert max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True)) < 1e-11


def test_starts_three_deep(example: Any, pair: Any) -> None:
    def oracle(w: Weights, xs: Tensor) -> Tensor:
        years = shown_years = w["years.weight"]
        days = shown_days = years
        minutes, ys = days, []
        for t, x in enumerate(xs, 1):
            k, v = unit(w["k.weight"] @ x), w["v.weight"] @ x
            minutes = minutes - 0.5 * torch.outer(minutes @ k - v, k)
            days = days - 0.1 * torch.outer(shown_days @ k - v, k)
            years = years - 0.05 * torch.outer(shown_years @ k - v, k)
            ys.append(minutes @ x)
            if t % 8 == 0:
                shown_years = days = years
            if t % 4 == 0:
                shown_days = minutes = days
        return torch.stack(ys)

    agrees(pair(example("meta"), "chain_of_starts", dim=3), oracle, time=27)
