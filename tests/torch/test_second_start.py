"""A second start of the same program takes its compiled code from the disk, and computes the same gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nsam.backends.torch.runtime import kept

PROGRAM = """nsam 1
use std.rules (dgd)
system s(dim: int = 8) {
  input x : [dim]
  memory k : linear(dim -> dim)
  memory r : linear(dim -> 1)
  memory m : linear(dim -> dim) {
    learn normalize(k(x)) -> x; minimize l2; by dgd(lr = 0.2, retain = sigmoid(4 + r(x))); every 16 tokens
  }
  output m(normalize(k(x)))
}
"""
"""A triangle, whose backward pass is its own, and gates that autocast leaves alone."""
SCRIPT = """
import sys
import torch
import torch._inductor.config
import nsam
from nsam.backends.torch.runtime import kept
from nsam.compiler import loops
from torch._dynamo.utils import counters

if sys.argv[2] == "torch":
    kept.VERSIONS = ()

torch.set_num_threads(1)
torch.manual_seed(0)
torch._inductor.config.cpp.simdlen = 1
torch._inductor.config.aot_inductor.debug_compile = True
loops.SEGMENT_TOKENS = loops.LONG_TOKENS = 32
program = nsam.loads(sys.argv[1])
module = nsam.compile(program, "s").double()
plain = nsam.compile(program, "s", compiled=False).double()
plain.load_state_dict(module.state_dict())
x = torch.randn(2, 32, 8, dtype=torch.float64)
for coarse in (False, True):
    counters.clear()
    module.zero_grad()
    plain.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=coarse):
        found, wanted = module(x)[0].double(), plain(x)[0].double()
    found.square().sum().backward()
    wanted.square().sum().backward()
    gaps = [float((p.grad - q.grad).norm() / q.grad.norm()) for p, q in zip(module.parameters(), plain.parameters())]
    seen, graphs = counters["aot_autograd"], counters["stats"]["unique_graphs"]
    print(max(gaps), graphs, seen["autograd_cache_miss"], seen["autograd_cache_bypass"], seen["autograd_cache_hit"])
"""
"""One chunk in float64, and again under autocast; what each took from a cache is a line. Kernels need not be fast."""


def two_starts(folder: Path, cache: str) -> list[list[list[float]]]:
    """What the script prints in each of two processes that share a cache."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder)}
    starts = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, PROGRAM, cache],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "not kept" not in done.stderr
        starts.append([[float(word) for word in line.split()] for line in done.stdout.splitlines()])
    return starts


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not kept.keepable(), reason="this torch stores no compiled functions, or caches are off")
def test_second_start_traces_nothing(tmp_path: Path) -> None:
    for first, second, tolerance in zip(*two_starts(tmp_path, "nsam"), (1e-11, 0.05), strict=True):
        assert first[1] > 0
        assert second[1] == 0
        assert first[0] < tolerance
        assert second[0] < tolerance


@pytest.mark.slow
@pytest.mark.long
def test_without_kept_functions_it_compiles_nothing(tmp_path: Path) -> None:
    """Where torch cannot store compiled functions, its own cache still has the graphs."""
    for first, second, tolerance in zip(*two_starts(tmp_path, "torch"), (1e-11, 0.05), strict=True):
        (first_gap, _, first_misses, bypassed, _), (second_gap, traced, second_misses, _, hits) = first, second
        assert first_misses > 0
        assert bypassed == 0
        assert traced > 0
        assert second_misses == 0
        assert hits > 0
        assert first_gap < tolerance
        assert second_gap < tolerance
