"""Inner losses that a module records: of memories whose context is made in a faster memory's loop."""

from __future__ import annotations

import pytest
import torch

import nsam

PROGRAM = """nsam 1
use std.rules (dgd)
system s() {
  input x: [2]
  memory slow : linear(2 -> 2) { learn x -> fast(x); minimize dot; by dgd(lr = 0.1); PERIOD }
  memory fast : linear(2 -> 2) { learn x -> x; minimize sum(self(key)); by dgd(lr = 0.2); every 1 token; reads running }
  output READ(x)
}
"""


@pytest.mark.parametrize("period", ["every 4 tokens", "every 4..4 tokens when surprise > inf"])
def test_a_loss_on_a_faster_memory_s_answers(period: str) -> None:
    """The answers themselves are in no other use: what the update needs is their negative."""
    torch.manual_seed(0)
    text = PROGRAM.replace("PERIOD", period)
    module, fast = (nsam.compile(nsam.loads(text.replace("READ", r)), "s", compiled=False) for r in ("slow", "fast"))
    fast.load_state_dict(module.state_dict())
    module.observe = True
    x = torch.randn(3, 4, 2)
    said, state = module(x)
    wanted = -(said * fast(x)[0]).sum(-1).mean()
    torch.testing.assert_close(state["losses"]["slow"], wanted.detach(), rtol=1e-5, atol=1e-6)
