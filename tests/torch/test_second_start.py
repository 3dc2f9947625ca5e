"""A second start of the same program takes its compiled code from the cache, and computes the same gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "zoo" / "zoo.nsam"
SCRIPT = """
import sys
import torch
import nsam
from torch._dynamo.utils import counters

torch.set_num_threads(1)
torch.manual_seed(0)
program = nsam.load(sys.argv[1])
module = nsam.compile(program, "gated_deltanet", dim=8).double()
plain = nsam.compile(program, "gated_deltanet", dim=8, compiled=False).double()
plain.load_state_dict(module.state_dict())
x = torch.randn(2, 64, 8, dtype=torch.float64)
with torch.autocast("cpu", dtype=torch.bfloat16, enabled=sys.argv[2] == "bfloat16"):
    found, wanted = module(x)[0].double(), plain(x)[0].double()
found.square().sum().backward()
wanted.square().sum().backward()
gaps = [float((p.grad - q.grad).norm() / q.grad.norm()) for p, q in zip(module.parameters(), plain.parameters())]
print(max(gaps), counters["aot_autograd"]["autograd_cache_miss"], counters["aot_autograd"]["autograd_cache_bypass"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-11), ("bfloat16", 0.05)])
def test_second_start_compiles_nothing(tmp_path: Path, precision: str, tolerance: float) -> None:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, str(EXAMPLE), precision]
    printed = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        printed.append([float(word) for word in done.stdout.split()])
    (first_gap, first_misses, bypassed), (second_gap, second_misses, _) = printed
    assert first_misses > 0
    assert bypassed == 0
    assert second_misses == 0
    assert first_gap < tolerance
    assert second_gap < tolerance
