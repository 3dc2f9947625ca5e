"""Every system on torch's device without numbers, where a value that Python asks for and a tensor elsewhere are errors.

A step that passes takes no decision from a tensor's value and mixes no devices: on an accelerator the host never waits
inside it, and its kernels are the same from step to step.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_examples import SYSTEMS
from torch import Tensor, nn

from nsam import api
from nsam.dsl.checked import Unit

META = torch.device("meta")


def inputs(unit: Unit, batch: int, time: int) -> list[Tensor]:
    found = []
    for given in unit.inputs:
        lead = (batch, time) if given.type.per == "token" else (batch,)
        if given.type.vocab is not None:
            found.append(torch.zeros(lead, dtype=torch.long, device=META))
        else:
            found.append(torch.zeros(*lead, *(int(n) for n in given.type.shape), device=META))
    return found


def test_asking_for_a_value_is_an_error_there() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.zeros(1, device=META))


@pytest.mark.parametrize(
    ("folder", "system", "parameters", "time"), SYSTEMS, ids=[f"{f}-{s}" for f, s, _, _ in SYSTEMS]
)
def test_no_step_asks_for_a_value(
    folder: str, system: str, parameters: dict[str, Any], time: int, example: Any
) -> None:
    unit = example(folder).instantiate(system, parameters)
    module = api.compile_unit(unit, compiled=False, observe=True).to(META)
    y, state = module(*inputs(unit, 2, time))
    y.sum().backward()
    assert y.device == META
    assert {p.grad is not None and p.grad.device == META for p in module.parameters()} <= {True}
    again, _ = module(*inputs(unit, 2, time), state)
    assert again.shape == y.shape


@pytest.mark.parametrize("memory", [None, 20 * 10**6], ids=["as it is", "under a budget"])
def test_no_training_step_asks_for_a_value(memory: int | None, example: Any) -> None:
    train = example("hope").train("hope_bytes")
    module: nn.Module = api.compile_unit(train.model, compiled=False).to(META)
    optimizer = api.train_optimizer(train, module)
    if memory is not None:
        api.set_memory(module, memory)
    for _ in range(2):
        rows = torch.zeros(2, 129, dtype=torch.long, device=META)
        scores, _ = module(rows[:, :-1])
        nn.functional.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    held = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert held
    assert {value.device for value in held} == {META}


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize(
    ("folder", "system", "parameters", "time"), SYSTEMS, ids=[f"{f}-{s}" for f, s, _, _ in SYSTEMS]
)
def test_a_gpu_computes_the_same_without_waiting(
    folder: str, system: str, parameters: dict[str, Any], time: int, example: Any, pair: Any
) -> None:
    both = pair(example(folder), system, **parameters)
    given = both.inputs(2, time)

    def step(device: str) -> list[Tensor | None]:
        module = both.compiled.to(device)
        module.zero_grad()
        moved = [x.to(device) for x in given]
        try:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            y, _ = module(*moved)
            y.square().sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return [y.detach().cpu(), *(None if p.grad is None else p.grad.cpu() for p in module.parameters())]

    for found, wanted in zip(step("cuda"), step("cpu"), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
