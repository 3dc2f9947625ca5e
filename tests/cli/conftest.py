from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TINY = """nsam 1

use std.rules (dgd, adamw)

# A model small enough to train in a test: an embedding, and one memory that learns in context.
system tiny(vocab: int = 256, dim: int = 8, chunk: int = 4) {
  input tokens: token(vocab)
  memory embed : table(vocab, dim)
  memory k, v, q : linear(dim -> dim)
  let x = embed(tokens)
  memory m : linear(dim -> dim) {
    learn    normalize(k(x)) -> v(x)
    minimize l2
    by       dgd(lr = 0.5)
    every    chunk tokens
  }
  output embed.T(x + m(normalize(q(x))))
}

train tiny_bytes {
  model    tiny(dim = 8)
  data     text(context = 16, batch = 2)
  minimize cross_entropy(model(tokens), next(tokens))
  by       adamw(lr = 1e-2)
  every    1 step
  steps    12
}
"""

WRONG = """nsam 1

system wrong(dim: int) {
  input x: [dim]
  memory a : linear(dim -> 2*dim)
  memory b : linear(dim -> dim)
  output b(a(x)) + lineer(x)
}
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.nsam"
    path.write_text(TINY)
    return path


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.nsam"
    path.write_text(WRONG)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"line {i}: {'abcdefghij'[i % 10] * (i % 7 + 1)} end" for i in range(200)))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `nsam` as its users do: another process, its own folder, one thread."""

    def call(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "nsam", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1", **env},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call
