"""A model tells the optimizer of its levels and rules whatever it is wrapped in or is a part of."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nsam

PROGRAM = """
nsam 1
use std.rules (gd)
system s(dim: int = 3) {
  input x: [dim]
  memory a : linear(dim -> dim)
  memory level[p in [1, 4]] : mlp(dim -> dim -> dim, residual) { minimize task; every p steps }
  memory frozen : linear(dim -> dim) { minimize task; every inf steps }
  memory own : linear(dim -> dim) { minimize task; by gd(lr = 0); every 1 step }
  output frozen(chain(level, a(x))) + own(x)
}
"""


class Part(nn.Module):
    """A model with a head of another kind."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core, self.head = core, nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.core(x)[0])  # type: ignore[no-any-return]


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "itself": lambda module: module,
    "a part": Part,
    "two parts": lambda module: nn.ModuleList([Part(module), nn.Linear(3, 3)]),
    "torch.compile": lambda module: torch.compile(module, backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_levels_are_known_in_any_wrapper(wrapper: str) -> None:
    core = nsam.compile(nsam.loads(PROGRAM), "s", compiled=False)
    made = nsam.optimizer("std.rules", "gd", WRAPPERS[wrapper](core), lr=0.1)
    moved = []
    for _ in range(4):
        before = {name: p.detach().clone() for name, p in core.named_parameters()}
        core(torch.ones(1, 4, 3))[0].square().mean().backward()
        made.step()
        made.zero_grad()
        moved.append({name.rpartition(".")[0] for name, p in core.named_parameters() if not p.equal(before[name])})
    assert moved == [{"a", "level.0"}] * 3 + [{"a", "level.0", "level.1"}]


def test_keys_come_from_each_model() -> None:
    """Two models in one, each with a rule that needs its layers' inputs."""
    program = nsam.loads(PROGRAM.replace("own : linear", "last : linear").replace("own(x)", "last(x)"))
    results = []
    for together in (True, False):
        torch.manual_seed(0)
        models = [nsam.compile(program, "s", compiled=False, keys=True) for _ in range(2)]
        given = [nn.ModuleList(models)] if together else models
        optimizers = [nsam.optimizer("std.rules", "dgd", module, lr=0.1) for module in given]
        for model in models:
            model(torch.ones(1, 4, 3))[0].square().mean().backward()
        for made in optimizers:
            made.step()
        results.append([p.detach().clone() for model in models for p in model.parameters()])
    torch.testing.assert_close(*results)


WHOLE = """
system whole(dim: int = 3) { input x: [dim]; output s(x, dim) }
"""


def test_a_part_of_a_model_keeps_its_memories_rules() -> None:
    whole = nsam.compile(nsam.loads(PROGRAM + WHOLE), "whole", compiled=False)
    made = nsam.optimizer("std.rules", "adamw", whole.s, lr=0.1)  # type: ignore[arg-type]
    rules = {group["nsam.rule"]: len(group["params"]) for group in made.param_groups if group["nsam.rule"] == "gd"}
    assert rules == {"gd": 1}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_written_source_does_not_hold_the_rules_of_memories(wrapper: str, tmp_path: Path) -> None:
    """A file says which memories have one, and to lose it without a word would train another model."""
    file = tmp_path / "written.py"
    file.write_text(nsam.source(nsam.loads(PROGRAM + WHOLE), "whole"))
    alone: Any = runpy.run_path(str(file))["Whole"]()
    with pytest.raises(nsam.ProgramError, match=r"N0480.*`.*own\.weight` has a rule of its own") as caught:
        nsam.optimizer("std.rules", "adamw", WRAPPERS[wrapper](alone), lr=0.1)
    assert "nsam.compile" in (caught.value.diagnostics[0].help or "")
