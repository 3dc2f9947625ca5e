from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from nsam.cli.app import application

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


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Finished]


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
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run `nsam` in this process (torch loads once), in the test's own folder, on one thread."""
    import torch

    monkeypatch.chdir(tmp_path)
    for name, value in (("COLUMNS", "100"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NSAM_DEBUG", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def call(*arguments: object) -> Finished:
        given = [str(argument) for argument in arguments]
        found = CliRunner().invoke(application(given[0] if given else None), given, prog_name="nsam")
        return Finished(found.exit_code, found.stdout, found.stderr)

    yield call
    torch.set_num_threads(threads)
