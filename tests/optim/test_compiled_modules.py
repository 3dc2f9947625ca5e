"""From a program's levels on the step clock to parameters that move when the program says."""

from __future__ import annotations

from typing import Any

import torch

from nsam.backends.torch.build import build
from nsam.backends.torch.optim import optimizer
from nsam.dsl.program import Program

TEXT = """nsam 1
use std.rules (gd, momentum)
system levels(dim: int = 4) {
  input x: [dim]
  memory n : rmsnorm(dim)
  memory level[p in [1, 2, 3]] : mlp(dim -> 2*dim -> dim, act = gelu, residual) { minimize task; every p steps }
  memory own : linear(dim -> dim) { minimize task; by gd(lr = 0.5); every 2 steps }
  output own(chain(level, n(x)))
}
"""


def test_levels_move_at_their_own_period_with_their_own_rule(std: Any) -> None:
    torch.manual_seed(0)
    module = build(Program.loads(TEXT).instantiate("levels", {}), compiled=False)
    made = optimizer([(std("momentum", lr=0.1), "matrices"), (std("adamw", lr=0.1), "others")], module)
    rule_of = {p: (g["nsam.rule"], g["nsam.every"]) for g in made.param_groups for p in g["params"]}
    names = dict(module.named_parameters())
    assert rule_of[names["n.weight"]] == ("adamw", 1)
    assert rule_of[names["level.1.w1"]] == ("momentum", 2)
    assert rule_of[names["own.weight"]] == ("gd", 2)
    moved: dict[str, list[int]] = {name: [] for name in names}
    for t in range(1, 7):
        before = {name: p.detach().clone() for name, p in names.items()}
        made.zero_grad()
        output, _ = module(torch.randn(2, 5, 4))
        output.square().mean().backward()
        made.step()
        for name, p in names.items():
            if not torch.equal(p.detach(), before[name]):
                moved[name].append(t)
    assert moved["level.0.w1"] == moved["n.weight"] == [1, 2, 3, 4, 5, 6]
    assert moved["level.1.w2"] == moved["own.weight"] == [2, 4, 6]
    assert moved["level.2.w1"] == [3, 6]
