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


VALUES = """nsam 1
use std.rules (gd)
system s() {
  input x: [4]
  memory k, v : linear(4 -> 4)
  memory m : STRUCTURE { learn CONTEXT; minimize OBJECTIVE; by gd(lr = 0.1); every PERIOD; init learned normal(0.5) }
  output READ
}
"""


def values(structure: str, context: str, objective: str, period: str, read: str) -> nsam.Program:
    text = VALUES.replace("STRUCTURE", structure).replace("CONTEXT", context).replace("OBJECTIVE", objective)
    return nsam.loads(text.replace("PERIOD", period).replace("READ", read))


@pytest.mark.parametrize("structure", ["linear(4 -> 4)", "mlp(4 -> 6 -> 4)"])
@pytest.mark.parametrize("objective", ["sum(self(key) - value)", "sum(abs(value) + norm(self(key)))"])
def test_a_value_that_only_the_loss_asks_for(objective: str, structure: str) -> None:
    program = values(structure, "k(x) -> v(x)", objective, "6 tokens", "m(x)")
    torch.manual_seed(0)
    module, still = nsam.compile(program, "s", compiled=False), nsam.compile(program, "s", compiled=False)
    still.load_state_dict(module.state_dict())
    x = torch.randn(1, 6, 4)
    module.observe = True
    key, value = (x @ module.get_parameter(f"{name}.weight").T for name in "kv")
    read, _ = still(key)
    wanted = (
        (read - value).sum(-1) if "abs" not in objective else (value.abs() + read.norm(dim=-1, keepdim=True)).sum(-1)
    )
    _, state = module(x)
    torch.testing.assert_close(state["losses"]["m"], wanted.mean().detach(), rtol=1e-5, atol=1e-5)


def test_a_loss_of_the_state_alone_is_that_of_each_token() -> None:
    program = values("vector(4)", "x", "sum(self)", "6 tokens", "m")
    module = nsam.compile(program, "s", compiled=False)
    module.observe = True
    _, state = module(torch.randn(1, 6, 4))
    torch.testing.assert_close(state["losses"]["m"], module.get_parameter("m.weight").sum().detach())
