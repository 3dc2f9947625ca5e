"""Self-modifying Titans, Hope and their kin (eq. 70, 86-91, 94-97) against token loops, inner gradients by autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

DIM, HEADS = 4, 2
Weights = dict[str, Tensor]
Layers = list[Tensor]


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def by_head(x: Tensor, heads: int = HEADS) -> Tensor:
    """Each head's slice at length 1."""
    return torch.cat([unit(part) for part in x.chunk(heads, -1)], -1)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def compare(both: Any, oracle: Callable[[Weights, Tensor], Tensor], time: int, batch: int = 2) -> None:
    """Outputs and gradients of all parameters, each sequence on its own in the oracle."""
    (x,) = both.inputs(batch, time)
    y, _ = both.compiled(x)
    weights = {name: p.detach().clone().requires_grad_() for name, p in both.weights.items()}
    wanted = torch.stack([oracle(weights, row) for row in x])
    assert float((y - wanted).detach().abs().max()) < 1e-9
    mine = torch.autograd.grad(y.sin().sum(), list(both.weights.values()), allow_unused=True)
    theirs = torch.autograd.grad(wanted.sin().sum(), list(weights.values()), allow_unused=True)
    for name, a, b in zip(weights, mine, theirs, strict=True):
        assert a is not None, name
        assert b is not None, name
        assert float(b.abs().max()) > 0, name
        assert float((a - b).abs().max()) < 1e-8 * max(1.0, float(b.abs().max())), name


def read(ws: Layers, x: Tensor) -> Tensor:
    return x + ws[1] @ F.silu(ws[0] @ x)


def inputs(ws: Layers, x: Tensor) -> Layers:
    """Each layer's own input when the memory is read at x."""
    return [x, F.silu(ws[0] @ x)]


def inner(ws: Layers, k: Tensor, v: Tensor, bound: float) -> Layers:
    """The gradient with key and value held; l2, or the bounded error of pseudo_huber."""
    # Copies, so that the gradient is not taken through a key or value that the same weights made.
    copies = [w * 1 for w in ws]
    miss = read(copies, k) - v
    loss = 0.5 * miss.square().sum()
    if bound < float("inf"):
        loss = bound**2 * ((1 + miss.square().sum() / bound**2).sqrt() - 1)
    return list(torch.autograd.grad(loss, copies, create_graph=True))


@dataclass
class Memory:
    """One memory, one entry a head: what reads see, what moves, the momentum."""

    shown: list[Layers]
    moving: list[Layers]
    trace: list[Layers]

    @staticmethod
    def of(w: Weights, name: str, heads: int) -> Memory:
        start = [[w[f"{name}.w1"][h], w[f"{name}.w2"][h]] for h in range(heads)]
        return Memory(start, [list(s) for s in start], [[torch.zeros_like(m) for m in s] for s in start])

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([read(ws, part) for ws, part in zip(self.shown, x.chunk(len(self.shown)), strict=True)])


@dataclass(frozen=True)
class Kind:
    """A variant: which memories there are, their periods, the rule and the loss."""

    slow: int
    chunk: int
    learners: tuple[str, ...] = ("k", "v", "eta", "alpha")
    momentum: str = ""
    bounded_step: bool = False
    bound: float = float("inf")
    heads: int = HEADS

    def move(self, memory: Memory, key: Tensor, target: Tensor, rate: Tensor, keep: Tensor, theta: Tensor) -> None:
        pairs = zip(key.chunk(self.heads), target.chunk(self.heads), strict=True)
        for h, (k, v) in enumerate(pairs):
            at = memory.shown[h]
            for i, (x, grad) in enumerate(zip(inputs(at, k), inner(at, k, v, self.bound), strict=True)):
                w, s = memory.moving[h][i], memory.trace[h][i]
                lr = rate[h] / (1 + rate[h] * x @ x) if self.bounded_step else rate[h]
                erased = torch.outer(w @ x, x)
                if self.momentum == "inside":
                    s = theta[h] * s - lr * (erased + grad)
                    w = keep[h] * w + s
                elif self.momentum == "outside":
                    s = theta[h] * s - lr * grad
                    w = keep[h] * w - lr * erased + s
                else:
                    w = keep[h] * w - lr * erased - lr * grad
                memory.moving[h][i], memory.trace[h][i] = w, s

    def run(self, w: Weights, xs: Tensor) -> Tensor:
        """Every read, key, rate, target and gradient at the last boundary; the rule folds token by token."""
        memories = {name: Memory.of(w, name, self.heads) for name in (*self.learners, "mem")}
        padded, ys = torch.cat([torch.zeros(3, xs.shape[1], dtype=xs.dtype), xs]), []
        for t, x in enumerate(xs):
            tap = {n: (padded[t : t + 4].T * w[f"taps_{n}.weight"]).sum(1) for n in "qkv"}
            query = memories["q"](tap["q"]) if "q" in memories else w["q.weight"] @ tap["q"]
            key, value = by_head(memories["k"](tap["k"]), self.heads), by_head(memories["v"](tap["v"]), self.heads)
            rate = torch.sigmoid(w["rate_of.weight"] @ memories["eta"](x)) / 4
            alpha = memories["alpha"](x)
            keep = torch.sigmoid(10 + w["keep_of.weight"] @ alpha)
            theta = torch.sigmoid(w["trace_of.weight"] @ alpha) if self.momentum else rate
            ys.append(w["o.weight"] @ memories["mem"](by_head(query, self.heads)))
            targets = {name: memory(value) for name, memory in memories.items()}
            for name, memory in memories.items():
                self.move(memory, key, targets[name], rate, keep, theta)
            for name, memory in memories.items():
                if (t + 1) % (self.chunk if name == "mem" else self.slow) == 0:
                    memory.shown = [list(s) for s in memory.moving]
        return torch.stack(ys)


ALL = ("q", "k", "v", "eta", "alpha")
VARIANTS = {
    "self_modifying_q": Kind(4, 2, ALL),
    "self_modifying_online": Kind(1, 1),
    "self_modifying_momentum": Kind(4, 2, momentum="outside"),
    "self_modifying_momentum_inside": Kind(4, 2, momentum="inside"),
}


@pytest.mark.parametrize("system", VARIANTS)
def test_self_modifying_titans(system: str, example: Any, pair: Any) -> None:
    compare(pair(example("deep_memories"), system, dim=DIM), VARIANTS[system].run, 9)


@pytest.mark.parametrize("bound", [1.0, float("inf")])
def test_titans_of_hope(bound: float, example: Any, pair: Any) -> None:
    kind = Kind(4, 2, bounded_step=True, bound=bound)
    compare(pair(example("hope"), "titans", dim=DIM, heads=2, chunk=2, slow=4, bound=bound), kind.run, 9)


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_titans_that_erase(where: str, example: Any, pair: Any) -> None:
    """Momentum and delta gradient descent on both layers of one memory, keys and values from fixed projections."""

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        kind = Kind(1, 4, momentum=where, heads=1)
        start = [[w["m.w1"], w["m.w2"]]]
        m = Memory(start, [list(start[0])], [[torch.zeros_like(p) for p in start[0]]])
        ys = []
        for t, x in enumerate(xs):
            q, k, v = (unit(w[f"{n}.weight"] @ x) for n in "qkv")
            rate, theta = torch.sigmoid(w["eta.weight"] @ x) / 10, torch.sigmoid(w["theta.weight"] @ x)
            ys.append(m(q))
            kind.move(m, k, v, rate, torch.sigmoid(7 + w["alpha.weight"] @ x), theta)
            if (t + 1) % 4 == 0:
                m.shown = [list(m.moving[0])]
        return torch.stack(ys)

    compare(pair(example("deep_memories"), f"titans_erase_{where}", dim=DIM), oracle, 10)


# --- models ----------------------------------------------------------------------------------------


def below(w: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}


def continuum(w: Weights, h: Tensor) -> Tensor:
    """Eq. 70: blocks one after the other, inside one step ordinary networks."""
    for i in range(3):
        h = h + F.gelu(h @ w[f"cms.level.{i}.w1"].T) @ w[f"cms.level.{i}.w2"].T
    return h


def attention(w: Weights, n: Tensor, heads: int) -> Tensor:
    """Causal, with rotary positions, by torch's own; [T, dim]."""
    time, size = n.shape[0], n.shape[1] // heads
    q, k, v = ((n @ w[f"{name}.weight"].T).reshape(time, heads, size).transpose(0, 1) for name in "qkv")
    angle = torch.arange(time, dtype=n.dtype)[:, None] * 10000 ** (-torch.arange(0, size, 2, dtype=n.dtype) / size)

    def turned(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    y = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
    return y.transpose(0, 1).reshape(time, -1) @ w["o.weight"].T


@pytest.mark.slow
def test_hope(example: Any, pair: Any) -> None:
    """Eq. 94-97 with the periods of the program: of 20 tokens, the main memory moves after 16, the others later."""

    def oracle(w: Weights, tokens: Tensor) -> Tensor:
        h = w["embed.weight"][tokens]
        kind = Kind(64, 16, bounded_step=True, bound=1.0, heads=4)
        for i in range(2):
            p = below(w, f"repeat.{i}.")
            h = h + kind.run(below(p, "titans."), rms(h, p["n1.weight"]))
            h = h + continuum(p, rms(h, p["n2.weight"]))
        return rms(h, w["nf.weight"]) @ w["embed.weight"].T

    both = pair(example("hope"), "hope", vocab=11, dim=8, layers=2)
    x = both.inputs(1, 20)[0]
    y, _ = both.compiled(x)
    weights = {name: p.detach().clone().requires_grad_() for name, p in both.weights.items()}
    wanted = oracle(weights, x[0])[None]
    assert float((y - wanted).detach().abs().max()) < 1e-9
    names = list(weights)
    mine = torch.autograd.grad(y.sin().sum(), [both.weights[n] for n in names], allow_unused=True)
    theirs = torch.autograd.grad(wanted.sin().sum(), [weights[n] for n in names], allow_unused=True)
    for name, a, b in zip(names, mine, theirs, strict=True):
        small = torch.zeros_like(weights[name])
        a, b = small if a is None else a, small if b is None else b
        assert float((a - b).abs().max()) < 1e-8 * max(1.0, float(b.abs().max())), name


def test_hope_attention(example: Any, pair: Any) -> None:
    def oracle(w: Weights, tokens: Tensor) -> Tensor:
        h = w["embed.weight"][tokens]
        for i in range(2):
            p = below(w, f"repeat.{i}.")
            h = h + attention(p, rms(h, p["n1.weight"]), 2)
            h = h + continuum(p, rms(h, p["n2.weight"]))
        return rms(h, w["nf.weight"]) @ w["embed.weight"].T

    compare(pair(example("attention"), "hope_attention", vocab=11, dim=DIM, heads=2, layers=2), oracle, 7)


def test_ada_transformer(example: Any, pair: Any) -> None:
    """Section 3.2: the feed-forward matrix is a delta rule with retention, read after each token's step."""

    def oracle(w: Weights, tokens: Tensor) -> Tensor:
        h = w["embed.weight"][tokens]
        for i in range(2):
            p = below(w, f"repeat.{i}.")
            n = rms(h, p["n1.weight"])
            m, states = p["ffn.weight"], []
            for x in n:
                k, v = unit(p["k.weight"] @ x), p["v.weight"] @ x
                m = 0.999 * m - 0.1 * torch.outer(m @ k - v, k)
                states.append(m)
            h = h + attention(p, n, 2)
            h = h + torch.stack([m @ x for m, x in zip(states, rms(h, p["n2.weight"]), strict=True)])
        return rms(h, w["nf.weight"]) @ w["embed.weight"].T

    compare(pair(example("attention"), "ada_transformer", vocab=11, dim=DIM, heads=2, layers=2), oracle, 7)


def test_memory_as_context(example: Any, pair: Any) -> None:
    """A hybrid: what a memory recalls gates what attention returns."""

    def oracle(w: Weights, xs: Tensor) -> Tensor:
        seen = attention(w | {"o.weight": torch.eye(DIM, dtype=xs.dtype)}, xs, 2)
        shown = moving = [w["m.w1"], w["m.w2"]]
        gates = []
        for t, x in enumerate(xs):
            q, k, v = (unit(w[f"{n}.weight"] @ x) for n in "qkv")
            gates.append(torch.sigmoid(w["gate.weight"] @ read(shown, q)))
            moving = [m - 0.1 * g for m, g in zip(moving, inner(shown, k, v, float("inf")), strict=True)]
            if (t + 1) % 4 == 0:
                shown = moving
        return (seen * torch.stack(gates)) @ w["o.weight"].T

    compare(pair(example("attention"), "gated_memory", dim=DIM), oracle, 10)
