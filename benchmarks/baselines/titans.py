"""A Titans memory from general tools: gradients by vmap of grad, momentum and retention by associative scans."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from benchmarks.case import compile_if
from benchmarks.settings import Build

Weights = tuple[Tensor, Tensor]


def unit(x: Tensor) -> Tensor:
    """x divided by its length."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def associative_scan(a: Tensor, b: Tensor) -> Tensor:
    """All states of s_t = a_t s_{t-1} + b_t from s_0 = 0, time on axis 1, in log2(T) doublings (Hillis and Steele)."""
    reach, time = 1, b.shape[1]
    while reach < time:
        b = torch.cat([b[:, :reach], b[:, reach:] + a[:, reach:] * b[:, :-reach]], 1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], 1)
        reach *= 2
    return b


def linear_recurrence(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """All states of s_t = a_t s_{t-1} + b_t. a [B, C, 1, 1], b [B, C, m, n], start [B, m, n]."""
    b = torch.cat([b[:, :1] + a[:, :1] * start.unsqueeze(1), b[:, 1:]], 1)
    return associative_scan(a, b)


def token_loss(w1: Tensor, w2: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Half the squared error of key + w2 silu(w1 key)."""
    error = key + F.silu(key @ w1.mT) @ w2.mT - value
    return 0.5 * error.square().sum()


per_token = vmap(vmap(grad(token_loss, argnums=(0, 1)), in_dims=(None, None, 0, 0)))


def chunk_step(
    w: Weights, s: Weights, q: Tensor, k: Tensor, v: Tensor, lr: Tensor, beta: Tensor, keep: Tensor
) -> tuple[Weights, Weights, Tensor]:
    """Read a chunk at its first state, then move weights and momentum over it. Gates [B, C, 1, 1]."""
    y = q + F.silu(q @ w[0].mT) @ w[1].mT
    moved, surprise = [], []
    for weight, trace, gradient in zip(w, s, per_token(*w, k, v), strict=True):
        traces = linear_recurrence(beta, -lr * gradient, trace)
        weights = linear_recurrence(keep, traces, weight)
        surprise.append(traces[:, -1])
        moved.append(weights[:, -1])
    return (moved[0], moved[1]), (surprise[0], surprise[1]), y


class TwoLayers(nn.Module):
    """The weights of an MLP without biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(hidden, dim))
        self.w2 = nn.Parameter(torch.empty(dim, hidden))


class TitansMemory(nn.Module):
    """The system `titans_memory` of examples/zoo, with the same parameter names."""

    def __init__(self, dim: int, build: Build, chunk: int = 16) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.eta, self.theta, self.alpha = (nn.Linear(dim, 1, bias=False) for _ in range(3))
        self.m = TwoLayers(dim, 4 * dim)
        self.chunk = chunk
        self.step = compile_if(build, chunk_step)

    def forward(self, x: Tensor) -> Tensor:
        """Input and output [B, T, dim]."""
        q, k, v = unit(self.q(x)), unit(self.k(x)), unit(self.v(x))
        lr = 0.02 * torch.sigmoid(self.theta(x).to(x.dtype))
        beta = torch.sigmoid(self.eta(x).to(x.dtype))
        keep = torch.sigmoid(7 + self.alpha(x).to(x.dtype))
        batch = x.shape[0]
        w = (self.m.w1.expand(batch, -1, -1), self.m.w2.expand(batch, -1, -1))
        s = (torch.zeros_like(w[0], requires_grad=True), torch.zeros_like(w[1], requires_grad=True))
        outputs = []
        chunks = [z.split(self.chunk, 1) for z in (q, k, v, *(g.unsqueeze(-1) for g in (lr, beta, keep)))]
        for qc, kc, vc, lc, bc, ac in zip(*chunks, strict=True):
            w, s, y = self.step(w, s, qc, kc, vc, lc, bc, ac)
            outputs.append(y)
        return torch.cat(outputs, 1)
