"""An optimizer spread over processes takes the steps that one process would take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import nsam
from nsam.dsl.diagnostics import ProgramError

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
"""torch's own, when it loads its distributed optimizers."""

STEPS = 20
SHAPES = [(6, 4), (6, 4), (4, 6), (5, 5), (7,), (2, 3, 4), (3,)]
RULES = {"m3": {"lr": 0.02}, "muon": {"lr": 0.02}, "adamw": {"lr": 0.02}}


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator)) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        optimizer.step()


def numbers(optimizer: torch.optim.Optimizer) -> int:
    tensors = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
    return sum(x.numel() for x in tensors)


def one_process(rank: int, processes: int, folder: str) -> None:
    """What each process does with each rule: half of the steps, a saved state, the other half."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    for rule, arguments in RULES.items():
        parameters = weights()
        optimizer: Any = nsam.optimizer("std.rules", rule, parameters, sharded=True, **arguments)
        steps(optimizer, parameters, 0, STEPS // 2)
        optimizer.consolidate_state_dict(to=0)
        saved = optimizer.state_dict() if rank == 0 else None
        steps(optimizer, parameters, STEPS // 2, STEPS)
        seen = {"weights": [p.detach() for p in parameters], "kept": numbers(optimizer.optim), "saved": saved}
        torch.save(seen, f"{folder}/{rule}{rank}.pt")
    # A group of one parameter: one of the processes has nothing of it.
    parameters = weights()
    optimizer = nsam.optimizer("std.rules", "adamw", parameters[:-1], sharded=True, lr=0.02)
    optimizer.add_param_group({"params": parameters[-1:], "lr": 0.3})
    steps(optimizer, parameters, 0, STEPS)
    torch.save([p.detach() for p in parameters], f"{folder}/added{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads now and then abort a process that takes them down in order


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_process, (2, str(tmp_path)), nprocs=2)
    for rule in RULES:
        check([torch.load(tmp_path / f"{rule}{rank}.pt", weights_only=True) for rank in (0, 1)], rule)
    alone = weights()
    optimizer = nsam.optimizer("std.rules", "adamw", alone[:-1], lr=0.02)
    optimizer.add_param_group({"params": alone[-1:], "lr": 0.3})
    steps(optimizer, alone, 0, STEPS)
    for rank in (0, 1):
        for mine, wanted in zip(torch.load(tmp_path / f"added{rank}.pt", weights_only=True), alone, strict=True):
            torch.testing.assert_close(mine, wanted.detach(), rtol=1e-12, atol=1e-12)


def check(seen: list[dict[str, Any]], rule: str) -> None:
    """What two processes saw is what one sees that takes all steps, or half of them and then the saved state."""
    alone = weights()
    optimizer = nsam.optimizer("std.rules", rule, alone, **RULES[rule])
    steps(optimizer, alone, 0, STEPS)
    for found in seen:
        for mine, wanted in zip(found["weights"], alone, strict=True):
            torch.testing.assert_close(mine, wanted.detach(), rtol=1e-12, atol=1e-12)
    shares = [found["kept"] for found in seen]
    assert sum(shares) == numbers(optimizer)
    assert max(shares) < 0.6 * sum(shares)

    resumed = weights()
    half = nsam.optimizer("std.rules", rule, resumed, **RULES[rule])
    steps(half, resumed, 0, STEPS // 2)
    fresh = nsam.optimizer("std.rules", rule, resumed, **RULES[rule])
    fresh.load_state_dict(seen[0]["saved"])
    steps(fresh, resumed, STEPS // 2, STEPS)
    for mine, wanted in zip(resumed, alone, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)


def test_without_processes_there_is_nothing_to_share() -> None:
    with pytest.raises(ProgramError) as error:
        nsam.optimizer("std.rules", "adamw", weights(), sharded=True, lr=0.1)
    assert error.value.diagnostics[0].code == "N0404"
    assert "torchrun" in str(error.value.diagnostics[0].help)
