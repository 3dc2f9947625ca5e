"""The Transformer of programs/transformer.nsam by hand, with scaled_dot_product_attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines.hope import TwoLayers, Weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, half-split; x [B, H, T, n], cos and sin [T, n / 2]."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):
    """Attention and MLP, each after a norm, each with a residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.n1, self.n2 = Weight(dim), Weight(dim)
        self.ffn = TwoLayers(dim=dim, hidden=4 * dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, T, dim] to the same."""
        normed = F.rms_norm(x, self.n1.weight.shape, self.n1.weight, 1e-6)
        q, k, v = (p(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        h = x + self.o(mixed.transpose(1, 2).flatten(2))
        normed = F.rms_norm(h, self.n2.weight.shape, self.n2.weight, 1e-6)
        return h + F.linear(F.gelu(F.linear(normed, self.ffn.w1)), self.ffn.w2)


class Pass(nn.Module):
    """A pass of the repeat: gives the block the name that nsam gives it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.block = Block(dim, heads)


class Transformer(nn.Module):
    """A language model with the parameter names of the program."""

    def __init__(self, vocab: int, dim: int, layers: int, heads: int) -> None:
        super().__init__()
        self.width = dim // heads
        self.embed, self.nf = Weight(vocab, dim), Weight(dim)
        self.repeat = nn.ModuleList(Pass(dim, heads) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T]; returns scores [B, T, vocab]."""
        weight = self.embed.weight
        rate = 10000.0 ** (-torch.arange(0, self.width // 2, device=tokens.device, dtype=weight.dtype) * 2 / self.width)
        angle = torch.arange(tokens.shape[1], device=tokens.device, dtype=weight.dtype)[:, None] * rate
        cos, sin = angle.cos(), angle.sin()
        h = F.embedding(tokens, weight)
        for one in self.repeat:
            h = one.block(h, cos, sin)  # type: ignore[operator]
        return F.linear(F.rms_norm(h, self.nf.weight.shape, self.nf.weight, 1e-6), weight)
