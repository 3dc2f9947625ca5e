"""A model tells the optimizer of its levels and rules whatever it is wrapped in or is a part of."""

from __future__ import annotations

import copy
import math
import pickle
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nsam
from nsam.backends.torch.optim_models import told

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


def groups(made: torch.optim.Optimizer) -> list[tuple[str, float, int]]:
    return [(group["nsam.rule"], group["nsam.every"], len(group["params"])) for group in made.param_groups]


WITH_TAPS = PROGRAM.replace("chain(level, a(x))", "chain(level, a(taps(x)))").replace(
    "memory a ", "memory taps : conv(dim, width = 4)\n  memory a "
)
WAYS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda module: module,
    "a copy": copy.deepcopy,
    "from a pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "called by another": lambda module: module,
    "wrapped": lambda module: nn.Sequential(torch.compile(module, backend="eager")._orig_mod)[0],  # type: ignore[union-attr]
}


@pytest.mark.parametrize("way", WAYS)
def test_memories_alone_are_what_they_are_in_their_system(way: str) -> None:
    program = nsam.loads(WITH_TAPS + WHOLE)
    made = nsam.compile(program, "whole" if way == "called by another" else "s", compiled=False)
    core = WAYS[way](made)
    core = core.s if way == "called by another" else core
    if way != "as it is":
        del made  # so that no other system has a memory of this one
    alone = {name: groups(nsam.optimizer("std.rules", "adamw", part, lr=0.1)) for name, part in core.named_children()}
    assert alone == {
        "taps": [("adamw", 1, 1)],
        "a": [("adamw", 1, 1)],
        "level": [("adamw", 1, 2), ("adamw", 4, 2)],
        "frozen": [("adamw", math.inf, 1)],
        "own": [("gd", 1, 1)],
    }
    several = nn.ModuleList([core.level[1], Part(core.own), nn.Linear(3, 3)])
    assert groups(nsam.optimizer("std.rules", "adamw", several, lr=0.1)) == [
        ("adamw", 4, 2),
        ("gd", 1, 1),
        ("adamw", 1, 4),
    ]
    assert [one.matrix for part in (core.taps, core.a) for one in told(part)] == [False, True]


def test_a_memory_that_was_put_elsewhere_is_part_of_where_it_is() -> None:
    program = nsam.loads(PROGRAM)
    core, other = (nsam.compile(program, "s", compiled=False) for _ in range(2))
    core.a = other.frozen
    del other
    assert groups(nsam.optimizer("std.rules", "gd", core.a, lr=0.1)) == [("gd", 1, 1)]  # type: ignore[arg-type]
    nn.utils.parametrize.register_parametrization(core.frozen, "weight", nn.Tanh())  # type: ignore[arg-type]
    own = copy.deepcopy(core.frozen)  # part of no system
    del core.own
    assert groups(nsam.optimizer("std.rules", "gd", own, lr=0.1)) == [("gd", 1, 1)]  # type: ignore[arg-type]


def test_memories_alone_have_the_inputs_of_their_layers() -> None:
    program, results = nsam.loads(PROGRAM), []
    for alone in (True, False):
        torch.manual_seed(0)
        core: Any = nsam.compile(program, "s", compiled=False, keys=True)
        for memory in () if alone else (core.a, core.frozen, core.own):
            memory.requires_grad_(False)
        made = nsam.optimizer("std.rules", "dgd", core.level if alone else core, lr=0.1)
        for _ in range(5):
            core(torch.ones(1, 4, 3))[0].square().mean().backward()
            made.step()
            made.zero_grad()
        results.append([p.detach().clone() for p in core.parameters()])
    torch.testing.assert_close(*results)
    without = nsam.compile(program, "s", compiled=False)
    with pytest.raises(nsam.ProgramError, match=r"N0226.*`level\.0\.w1`") as caught:
        nsam.optimizer("std.rules", "dgd", without.level, lr=0.1)  # type: ignore[arg-type]
    assert "keys=True" in (caught.value.diagnostics[0].help or "")


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
    with pytest.raises(nsam.ProgramError, match=r"N0480.*`weight` has a rule of its own"):
        nsam.optimizer("std.rules", "adamw", alone.s.own, lr=0.1)
    assert groups(nsam.optimizer("std.rules", "adamw", alone.s.level, lr=0.1)) == [("adamw", 1, 2), ("adamw", 4, 2)]
    assert "nsam.compile" in (caught.value.diagnostics[0].help or "")
