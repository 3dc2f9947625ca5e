"""One stream over three processes: each loads the state that the last one saved, and the stream is as if never cut."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nsam

DIM = 8
TEXT = """nsam 1
use std.rules (gd, dgd, momentum)
system stream(dim: int) {
  input x: [dim]
  memory k, v : linear(dim -> dim)
  memory taps : conv(dim, width = 3)
  memory near : attention(heads = 2, window = 4) { learn rope(k(x), 2) -> v(x) }
  let key = normalize(k(taps(x)))
  memory years : mlp(dim -> 2*dim -> dim, residual) {
    learn key -> normalize(v(x)); minimize l2; by momentum(lr = 0.05, retain = 0.999); every 4 tokens; reset never
  }
  memory sums : mlp(dim -> dim -> dim, act = gelu) {
    learn key -> v(x) over last 2 tokens; minimize huber(1); by gd(lr = 0.05); every 6 tokens summed; reset never
  }
  memory today : linear(dim -> dim, heads = 2) {
    learn key -> v(x); minimize l2; by dgd(lr = 0.3, retain = 0.99); every 1 token; reads running; init zeros
  }
  memory hours : linear(dim -> dim) {
    learn key -> v(x) - years(key); minimize l2; by gd(lr = 0.1); every 3 tokens; reset every 6 tokens; init learned
  }
  output years(key) + sums(key) + today(key) + hours(key) + near(rope(x, 2))
}
"""
PIECE = """
import sys, torch, nsam
torch.set_num_threads(1)
program, weights, before, inputs, after, outputs, again = sys.argv[1:]
module = nsam.compile(nsam.load(program), "stream", dim=8, compiled=False).double()
module.load_state_dict(torch.load(weights, weights_only=True))
state = nsam.load_state(before, module) if before else None
if again == "new":
    state = nsam.new_sequence(state)
with torch.no_grad():
    y, state = module(torch.load(inputs, weights_only=True), state)
nsam.save_state(state, after)
torch.save(y, outputs)
kept = torch.load(weights, weights_only=True)
assert all(torch.equal(kept[name], now) for name, now in module.state_dict().items())
"""


@pytest.fixture(scope="module")
def module() -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return nsam.compile(nsam.loads(TEXT), "stream", dim=DIM, compiled=False).double()


def tensors(state: Any, path: str = "") -> Iterator[tuple[str, Tensor | float]]:
    """Every tensor and number of a state, by path."""
    if isinstance(state, dict):
        for name, value in sorted(state.items()):
            yield from tensors(value, f"{path}.{name}")
    elif isinstance(state, list | tuple):
        for i, value in enumerate(state):
            yield from tensors(value, f"{path}.{i}")
    elif state is not None:
        yield path, state


def equal(found: Any, wanted: Any) -> bool:
    one, other = dict(tensors(found)), dict(tensors(wanted))
    assert one.keys() == other.keys()
    assert sum(isinstance(value, Tensor) for value in one.values()) > 8
    return all(bool((torch.as_tensor(one[name]) == torch.as_tensor(other[name])).all()) for name in one)


def apart(found: Any, wanted: Any) -> float:
    pairs = zip(tensors(found), tensors(wanted), strict=True)
    return max(
        (
            float((torch.as_tensor(a) - torch.as_tensor(b)).abs().max())
            for (_, a), (_, b) in pairs
            if torch.as_tensor(a).numel()
        ),
        default=0.0,
    )


CUTS = (5, 12, 17)
"""Where pieces end: in the middle of periods of 3, 4 and 6 tokens, which go on in the next process."""


def stream() -> Tensor:
    return torch.randn(2, CUTS[-1], DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def piece(folder: Path, i: int, before: str, again: str = "") -> tuple[Tensor, str]:
    """Piece `i` of the stream in a process of its own, after the state in a file: output, and the file of its state."""
    inputs, after, outputs = (folder / f"{name}{i}{again}" for name in ("x", "state", "y"))
    torch.save(stream()[:, (0, *CUTS)[i] : CUTS[i]].clone(), inputs)
    files = (folder / "stream.nsam", folder / "weights.pt", before, inputs, after, outputs)
    subprocess.run([sys.executable, "-c", PIECE, *map(str, files), again], check=True, timeout=120)
    return torch.load(outputs, weights_only=True), str(after)


@pytest.fixture(scope="module")
def two_pieces(module: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensor], str]:
    """The first two processes, which both ways to go on share: their folder, their outputs, the state they leave."""
    folder, before, found = tmp_path_factory.mktemp("pieces"), "", []
    (folder / "stream.nsam").write_text(TEXT)
    torch.save(module.state_dict(), folder / "weights.pt")
    for i in (0, 1):
        y, before = piece(folder, i, before)
        found.append(y)
    return folder, found, before


@pytest.mark.slow
@pytest.mark.parametrize("again", ["", "new"], ids=["one sequence", "a new sequence in the third"])
def test_three_processes_are_one(module: Any, two_pieces: tuple[Path, list[Tensor], str], again: str) -> None:
    x, (folder, begun, before) = stream(), two_pieces
    third, after = piece(folder, 2, before, again)
    found, last = [*begun, third], nsam.load_state(after, module)
    state, wanted = None, []
    for i, (start, stop) in enumerate(zip((0, *CUTS), CUTS, strict=False)):
        with torch.no_grad():
            y, state = module(x[:, start:stop], nsam.new_sequence(state) if again and i == 2 else state)
        wanted.append(y)

    assert torch.equal(torch.cat(found, 1), torch.cat(wanted, 1))
    assert equal(last, state)
    with torch.no_grad():
        whole, end = module(x)
    far = float((torch.cat(found, 1) - whole).abs().max())
    if again:
        assert far > 1e-3  # `today`, `hours` and `near` began anew, so that this test can fail
    else:
        assert max(far, apart(last, end)) < 1e-14


def test_levels_learn_on_without_an_optimizer_and_slower_ones_stay(module: Any) -> None:
    """The weights that training moved are the same bits before and after; what is never reset has moved."""
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    x = torch.randn(1, 24, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        first, state = module(x)
        second, later = module(x, nsam.new_sequence(state))
    assert all(torch.equal(before[name], weight) for name, weight in module.state_dict().items())
    assert not torch.equal(first, second)
    moved = {name for name in state["kept"] if not torch.equal(state["kept"][name], later["kept"][name])}
    assert {"years.w1", "years.w2", "sums.w1", "sums.w2"} <= moved
    assert not any(name.startswith(("today", "hours", "near", "taps")) for name in state["kept"])
