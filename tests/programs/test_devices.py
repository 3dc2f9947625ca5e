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

import nsam
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


@pytest.fixture
def nothing_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of Python that are copied to a device are errors: the copy waits, and cannot be recorded."""

    def refused(*arguments: object, **options: object) -> Tensor:
        raise AssertionError("a number of Python is copied to the device")

    make = torch.as_tensor
    monkeypatch.setattr(torch.Tensor, "new_tensor", refused)
    monkeypatch.setattr(torch, "tensor", refused)
    monkeypatch.setattr(torch, "as_tensor", lambda x, **how: make(x, **how) if torch.is_tensor(x) else refused())


UPDATES = {
    "window": "learn k(x) -> v(x) over last 3 tokens; minimize l2; by gd(lr = 0.1); every 4 tokens summed",
    "rule": "learn k(x) -> v(x); minimize l2; by measured(lr = 0.1); every 4 tokens",
    "rule, summed": "learn k(x) -> v(x); minimize l2; by measured(lr = 0.1); every 4 tokens summed",
}
RULE = "rule measured(lr) { self <- self - lr * exp(-lr) * max(lr, norm(grad)) * sign(grad) }"


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("time", [6, 8])
def test_no_number_is_copied_to_the_device(update: str, time: int, nothing_from_the_host: None) -> None:
    program = nsam.loads(
        f"""nsam 1
use std.rules (gd)
{RULE}
system s(dim: int = 4) {{
  input x: [dim]
  memory k, v : linear(dim -> dim)
  memory m : linear(dim -> dim) {{ {UPDATES[update]}; init zeros }}
  output m(x)
}}"""
    )
    module = nsam.compile(program, "s", compiled=False).to(META)
    y, _ = module(torch.zeros(2, time, 4, device=META))
    y.sum().backward()
    assert y.device == META


def test_a_number_from_outside_of_a_repeat_has_a_channel_and_the_device(pair: Any) -> None:
    program = nsam.loads(
        """nsam 1
use std.rules (gd)
system s(dim: int = 4) {
  input x: [dim]
  let h = x
  let g = 0.25
  repeat 2 {
    memory k, v : linear(dim -> dim)
    memory m : linear(dim -> dim) { learn k(h) -> v(h); minimize l2; by gd(lr = g); every 4 tokens; init zeros }
    h = inner(h + g * m(h), g)
  }
  output h
}
system inner(dim: int = 4) {
  input x: [dim]
  input g: []
  memory m : linear(dim -> dim)
  output x + g * m(x)
}"""
    )
    assert pair(program, "s").apart(10) < 1e-9
    module = nsam.compile(program, "s", compiled=False).to(META)
    assert module(torch.zeros(2, 10, 4, device=META))[0].device == META


def test_asking_for_a_value_is_an_error_there() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.zeros(1, device=META))


@pytest.mark.parametrize(
    ("folder", "system", "parameters", "time"), SYSTEMS, ids=[f"{f}-{s}" for f, s, _, _ in SYSTEMS]
)
def test_no_step_asks_for_a_value(
    folder: str, system: str, parameters: dict[str, Any], time: int, example: Any, nothing_from_the_host: None
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
