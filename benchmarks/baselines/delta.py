"""One linear memory with delta gradient descent, token by token: M <- M (keep I - rate k k') - rate (M0 k - v) k'."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.settings import Build

SEGMENT = 16
"""Tokens in one compiled piece of the loop: its compile time does not grow with the chunk."""

Fold = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def fold_tokens(state: Tensor, k: Tensor, g: Tensor, rate: Tensor, keep: Tensor) -> Tensor:
    """Fold a few tokens into state [B, d, d]; k, g [B, C, d], rate, keep [B, C, 1]."""
    for t in range(k.shape[1]):
        key, gate = k[:, t], rate[:, t]
        written = gate * ((state @ key.unsqueeze(-1)).squeeze(-1) + g[:, t])
        state = keep[:, t].unsqueeze(-1) * state - written.unsqueeze(-1) * key.unsqueeze(-2)
    return state


def fold_scan(state: Tensor, k: Tensor, g: Tensor, rate: Tensor, keep: Tensor) -> Tensor:
    """The same as a `scan` over tokens, which torch.compile keeps as a loop."""
    from torch._higher_order_ops.scan import scan

    def token(m: Tensor, x: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        key, grad, lr, retain = x
        written = lr * ((m @ key.unsqueeze(-1)).squeeze(-1) + grad)
        m = retain.unsqueeze(-1) * m - written.unsqueeze(-1) * key.unsqueeze(-2)
        return m, lr.clone()

    by_token = tuple(x.movedim(1, 0) for x in (k, g, rate, keep))
    return scan(token, state, by_token, dim=0)[0]  # type: ignore[no-any-return]


class DeltaMemory(nn.Module):
    """Reads and gradients at the chunk's start, the recurrence by `fold`, at most `piece` tokens at a time."""

    def __init__(self, dim: int, chunk: int, fold: Fold, piece: int) -> None:
        super().__init__()
        self.m = nn.Linear(dim, dim, bias=False)
        self.chunk, self.fold, self.piece = chunk, fold, min(piece, chunk)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, keep: Tensor) -> Tensor:
        """Inputs q, k, v [B, T, d] and rate, keep [B, T, 1] (keep before its sigmoid); returns [B, T, d]."""
        state = self.m.weight.expand(k.shape[0], -1, -1).contiguous()
        keep = torch.sigmoid(keep)
        outputs = []
        chunks = [x.split(self.chunk, 1) for x in (q, k, v, rate, keep)]
        for qc, kc, vc, rc, ac in zip(*chunks, strict=True):
            outputs.append(qc @ state.mT)
            g = kc @ state.mT - vc
            for piece in zip(*(x.split(self.piece, 1) for x in (kc, g, rc, ac)), strict=True):
                state = self.fold(state, *piece)
        return torch.cat(outputs, 1)


def token_loop(dim: int, chunk: int, build: Build) -> DeltaMemory:
    """The loop as one writes it first."""
    return DeltaMemory(dim, chunk, fold_tokens, SEGMENT)


def compiled_loop(dim: int, chunk: int, build: Build) -> DeltaMemory:
    """The loop with a few tokens at a time unrolled and compiled."""
    fold = torch.compile(fold_tokens, fullgraph=True, dynamic=False) if build.compiled else fold_tokens
    return DeltaMemory(dim, chunk, fold, SEGMENT)


def scan_loop(dim: int, chunk: int, build: Build) -> DeltaMemory:
    """The loop as a compiled `scan` over the chunk's tokens."""
    fold = torch.compile(fold_scan, fullgraph=True, dynamic=False) if build.compiled else fold_scan
    return DeltaMemory(dim, chunk, fold, chunk)
