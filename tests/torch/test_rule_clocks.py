"""A rule's memory moves in a compiled module when the schedule says, token by token."""

import pytest
import torch

import nsam
from nsam.compiler.timeline import timeline

TEXT = """nsam 1
use std.rules (gd)
rule mine(lr) {
  memory slow : like(self) { learn grad; minimize dot; by within(lr = 0.5); every 3 updates summed }
  memory fold : like(self) { learn grad; minimize dot; by within(lr = 0.5); every 3 updates }
  state trace = zeros
  trace <- 0.9 * trace + grad
  self <- self - lr * (trace + slow + fold)
}
rule within(lr) {
  memory deep : like(self) { learn grad; minimize dot; by gd(lr = 0.5); every 2 updates summed }
  self <- self - lr * (grad + deep)
}
system s(dim: int) {
  input x: [dim]
  memory m : linear(dim -> dim) { learn x -> x; minimize l2; by mine(lr = 0.1); EVERY }
  output m(x)
}
"""
TOKENS = 24


@pytest.mark.parametrize(
    "every",
    [
        "every 4 tokens",
        "every 4 tokens summed",
        "every 4..8 tokens when surprise > 9",
        "every 4 tokens; reset every 8 tokens",
    ],
)
def test_states_of_a_rule_move_as_scheduled(every: str) -> None:
    program = nsam.loads(TEXT.replace("EVERY", every))
    module = nsam.compile(program, "s", compiled=False, dim=2)
    schedule = timeline(program.instantiate("s", {"dim": 2}), tokens=TOKENS)
    x = torch.randn(1, TOKENS, 2, generator=torch.Generator().manual_seed(0))
    names = ("slow", "fold", "trace", "slow.deep", "fold.deep")
    state, moved, before = None, {name: set() for name in names}, {name: torch.zeros(1, 2, 2) for name in names}
    for token in range(1, TOKENS + 1):
        with torch.no_grad():
            _, state = module(x[:, token - 1 : token], state)
        held = state["sequence"]
        for name in names:
            path = f"m.weight.{name}"
            now = held.get(f"{path}.run", held[path])  # inside an open period of the host
            if not torch.equal(now.reshape(1, 2, 2), before[name]):
                moved[name].add(token)
            before[name] = now.reshape(1, 2, 2).clone()
    for name in names:
        row = next(row for row in schedule.rows if f"m.{name}" in row.names)
        resets = {token for token in row.resets if token <= TOKENS}
        assert moved[name] - resets == set(row.moves) - resets, name
