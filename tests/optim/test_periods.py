"""Levels on the step clock: gradients add up over a parameter's own period, and it moves once a period (eq. 71)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import nsam
from nsam import api
from nsam.backends.torch.optim import optimizer

PERIODS = {"fast": 1, "middle": 3, "slow": 4, "frozen": float("inf")}


class Levels(torch.nn.Module):
    """One weight a level."""

    def __init__(self) -> None:
        super().__init__()
        for i, name in enumerate(PERIODS):
            setattr(self, name, torch.nn.Parameter(torch.full((2, 3), float(i + 1))))
        self.nsam_periods = PERIODS
        self.nsam_matrices = set(PERIODS)


def feed(made: Any, module: Any, steps: Any, gradient: Any) -> None:
    for t in steps:
        for parameter in module.parameters():
            parameter.grad = gradient(t)
        made.step()


@pytest.mark.parametrize("name", ["gd", "m3"])
def test_each_level_moves_at_multiples_of_its_period_by_the_sum(name: str, std: Any) -> None:
    torch.manual_seed(0)
    gradients = {t: torch.randn(2, 3) for t in range(1, 13)}
    module = Levels()
    made = optimizer(std(name, lr=0.1), module)
    for level, period in list(PERIODS.items())[:3]:
        alone = torch.nn.Parameter(getattr(module, level).detach().clone())
        reference = optimizer(std(name, lr=0.1), [alone])
        setattr(module, f"_{level}", (alone, reference, period))
    start = {level: getattr(module, level).detach().clone() for level in PERIODS}
    for t in range(1, 13):
        before = {level: getattr(module, level).detach().clone() for level in PERIODS}
        feed(made, module, [t], lambda t: gradients[t].clone())
        for level, period in list(PERIODS.items())[:3]:
            now = getattr(module, level).detach()
            if t % period:
                assert torch.equal(now, before[level])
                continue
            alone, reference, _ = getattr(module, f"_{level}")
            alone.grad = sum(gradients[s] for s in range(t - period + 1, t + 1))
            reference.step()
            torch.testing.assert_close(now, alone.detach())
    assert torch.equal(module.frozen.detach(), start["frozen"])


def test_a_partial_period_is_saved(std: Any) -> None:
    whole, first, second = Levels(), Levels(), Levels()
    gradient = lambda t: torch.full((2, 3), float(t))  # noqa: E731
    feed(optimizer(std("momentum", lr=0.1), whole), whole, range(1, 13), gradient)
    before = optimizer(std("momentum", lr=0.1), first)
    feed(before, first, range(1, 7), gradient)
    after = optimizer(std("momentum", lr=0.1), second)
    after.load_state_dict(before.state_dict())
    second.load_state_dict(first.state_dict())
    feed(before, first, range(7, 8), gradient)
    feed(after, second, range(7, 13), gradient)
    for level in PERIODS:
        assert torch.equal(getattr(second, level), getattr(whole, level))


@pytest.mark.parametrize("stop", [1, 3, 4, 6, 8])
@pytest.mark.parametrize("name", ["adamw", "m3"])
def test_a_state_that_has_sums_only_within_periods_goes_on(name: str, stop: int, std: Any) -> None:
    """As they were saved before: no sum at a boundary, no states of the rule before the first one."""
    whole, first, second = Levels(), Levels(), Levels()
    gradient = lambda t: torch.full((2, 3), float(t)) + torch.eye(2, 3) / t  # noqa: E731
    feed(optimizer(std(name, lr=0.1), whole), whole, range(1, 13), gradient)
    before = optimizer(std(name, lr=0.1), first)
    feed(before, first, range(1, stop + 1), gradient)
    saved = before.state_dict()
    for state in saved["state"].values():
        summed, any_came = state.pop("nsam.gradient", None), state.pop("nsam.summed", 0) > 0
        if state.get("nsam.count") == 0:
            state.clear()
        if any_came:
            state["nsam.gradient"] = summed
    after = optimizer(std(name, lr=0.1), second)
    after.load_state_dict(saved)
    second.load_state_dict(first.state_dict())
    feed(after, second, range(stop + 1, 13), gradient)
    for level in PERIODS:
        assert torch.equal(getattr(second, level), getattr(whole, level))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop", [2, 4, 5])
@pytest.mark.parametrize("name", ["adamw", "m3"])
def test_a_distributed_checkpoint_has_all_states_in_every_phase(name: str, stop: int, std: Any, tmp_path: Path) -> None:
    """It saves and loads by a pattern of the states, which is made by one step with gradients of zeros."""
    gradient = lambda t: torch.full((2, 3), float(t)) + torch.eye(2, 3) / t  # noqa: E731
    first, second = Levels(), Levels()
    before, after = (optimizer(std(name, lr=0.1), module) for module in (first, second))
    feed(before, first, range(1, stop + 1), gradient)
    model, states = get_state_dict(first, before)
    checkpoint.save({"model": model, "states": states}, checkpoint_id=tmp_path)
    model, states = get_state_dict(second, after)
    found = {"model": model, "states": states}
    checkpoint.load(found, checkpoint_id=tmp_path)
    set_state_dict(second, after, model_state_dict=found["model"], optim_state_dict=found["states"])
    for level in PERIODS:
        assert before.state[getattr(first, level)].keys() == after.state[getattr(second, level)].keys()
    feed(before, first, range(stop + 1, 13), gradient)
    feed(after, second, range(stop + 1, 13), gradient)
    for level in PERIODS:
        assert torch.equal(getattr(second, level), getattr(first, level))


def test_a_period_without_gradients_moves_nothing(std: Any) -> None:
    """A sum of zeros because none came is not a gradient of zeros, by which momentum would move."""
    weight = torch.nn.Parameter(torch.zeros(1, 2))
    module = torch.nn.Module()
    module.weight, module.nsam_periods = weight, {"weight": 2}
    made = optimizer(std("momentum", lr=1.0), module)
    seen = []
    for gradient in (1.0, 1.0, None, None, None, 0.0):
        weight.grad = None if gradient is None else torch.full((1, 2), gradient)
        made.step()
        seen.append(weight.tolist()[0][0])
    assert seen[1] == seen[3] == seen[4] != seen[5]


def test_a_gradient_missing_in_part_of_a_period_adds_nothing(std: Any) -> None:
    weight = torch.nn.Parameter(torch.zeros(1, 2))
    module = torch.nn.Module()
    module.weight, module.nsam_periods = weight, {"weight": 3}
    made = optimizer(std("gd", lr=1.0), module)
    for gradient in (1.0, None, 2.0, None, None, None, 5.0):
        weight.grad = None if gradient is None else torch.full((1, 2), gradient)
        made.step()
    assert weight.tolist() == [[-3.0, -3.0]]


def test_a_memory_may_have_a_rule_of_its_own(std: Any) -> None:
    module = Levels()
    module.nsam_rules = {"slow": std("gd", lr=0.5), "fast": std("gd", lr=0.25)}
    made = optimizer(std("gd", lr=0.125), module)
    feed(made, module, range(1, 5), lambda t: torch.ones(2, 3))
    moved = {level: getattr(module, level).tolist()[0][0] for level in PERIODS}
    assert moved == {"fast": 1 - 4 * 0.25, "middle": 2 - 3 * 0.125, "slow": 3 - 4 * 0.5, "frozen": 4.0}


STEPS = """nsam 1
use std.rules (gd)
system net(dim: int = 4) {
  input tokens: token(8)
  memory embed : table(8, dim)
  memory slow : linear(dim -> dim) { minimize task; every 4 steps }
  memory frozen : linear(dim -> dim) { minimize task; every inf steps }
  output embed.T(slow(embed(tokens)) + frozen(embed(tokens)))
}
train run {
  model    net()
  data     text(context = 8, batch = 2)
  minimize cross_entropy(model(tokens), next(tokens))
  by       gd(lr = 0.1)
  every    2 steps
  steps    8
}
"""


@pytest.mark.parametrize("every", [3, 8])
def test_a_move_between_those_of_the_optimizer_is_refused(every: int) -> None:
    train = nsam.loads(STEPS).train("run", {"every": every})
    with pytest.raises(nsam.ProgramError) as caught:
        api.train_optimizer(train, api.compile_unit(train.model, compiled=False))
    assert caught.value.diagnostics[0].code == "N0311"
    with pytest.raises(nsam.ProgramError) as caught:
        nsam.graph(nsam.loads(STEPS), "run", every=every)
    assert caught.value.diagnostics[0].code == "N0311"


def test_memories_and_the_level_that_trains_them_count_the_same_steps() -> None:
    """A level that moves every 2 steps and a memory in it every 4: the memory moves at every second of its moves."""
    train = nsam.loads(STEPS).train("run", {})
    module = api.compile_unit(train.model, compiled=False).double()
    made = api.train_optimizer(train, module)
    draw = torch.Generator().manual_seed(0)
    total = torch.zeros(4, 4, dtype=torch.float64)
    for step in range(1, 9):
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        loss = module(torch.randint(0, 8, (2, 8), generator=draw))[0].square().mean()
        total += torch.autograd.grad(loss, module.get_parameter("slow.weight"), retain_graph=True)[0]
        loss.backward()
        if step % 2 == 0:
            made.step()
            made.zero_grad()
        moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
        assert moved == ({"embed.weight"} if step % 2 == 0 else set()) | ({"slow.weight"} if step % 4 == 0 else set())
        if step % 4 == 0:
            wanted = before["slow.weight"] - 0.1 * total
            torch.testing.assert_close(module.get_parameter("slow.weight").detach(), wanted)
            total.zero_()
