"""Text from a trained model, byte by byte, with the memory's state carried along."""

from __future__ import annotations

import codecs
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from nsam.training.objective import BYTES


def generate_bytes(
    module: nn.Module,
    prompt: bytes,
    tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
    state: Any = None,
) -> Generator[int, None, Any]:
    """Yield `tokens` bytes that follow `prompt` (at least one byte).

    `temperature` 0 takes the likeliest byte; `top_k` keeps that many candidates. The same seed gives the same text.
    `state` is what the memories start from, of one sequence; the generator returns the state after the last byte.
    """
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    current = torch.tensor([list(prompt)], dtype=torch.int64, device=device)
    with torch.no_grad():
        for _ in range(tokens):
            scores, state = module(current, state)
            byte = pick(scores[0, -1, :BYTES].float().cpu(), temperature, top_k, generator)
            yield byte
            current = torch.tensor([[byte]], dtype=torch.int64, device=device)
        return module(current, state)[1]


def pick(scores: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """Draw one index from softmax(`scores` / `temperature`), `scores` `[n]`, among the `top_k` largest."""
    if temperature < torch.finfo(scores.dtype).tiny:  # 0 as a number of theirs
        return int(scores.argmax())
    if top_k is not None and top_k < len(scores):
        least = scores.topk(top_k).values[-1]
        scores = scores.masked_fill(scores < least, -torch.inf)
    # Relative to the largest, so that a tiny temperature overflows to -inf, never to inf - inf.
    weights = torch.softmax((scores - scores.max()) / temperature, dim=0)
    return int(torch.multinomial(weights, 1, generator=generator))


def as_text(stream: Iterable[int]) -> Iterator[str]:
    """Yield the text of a stream of UTF-8 bytes as soon as each character is complete."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for byte in stream:
        text = decoder.decode(bytes([byte]))
        if text:
            yield text
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest


def harmless(text: str) -> str:
    """Return `text` with what could steer a terminal made visible: a model may well write an escape byte."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
