"""Blocks and passes that are computed again in the backward pass: the same numbers, and less kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import nsam
from nsam.backends.torch.budget import kept
from nsam.backends.torch.build import build
from nsam.backends.torch.runtime.replay import Plan, Schedule
from nsam.backends.torch.runtime.saved import Meter
from nsam.backends.torch.runtime.system import System
from nsam.dsl.checked import Unit

KEPT = Plan(Schedule())
TOKENS = 100
SCHEDULES = [
    Schedule(group=1),
    Schedule(group=3),
    Schedule(group=2, kept=1),
    Schedule(passes=1),
    Schedule(passes=9, group=2),
    Schedule(passes=9, group=1, kept=2),
]
SYSTEMS = [
    ("hope", "hope", {"dim": 8, "vocab": 16}),
    ("hope", "titans", {"dim": 8, "slow": 16, "chunk": 4}),
    ("zoo", "titans_memory", {"dim": 8}),
    ("zoo", "gated_deltanet", {"dim": 8}),
    ("zoo", "atlas", {"dim": 8}),
    ("zoo", "transformer_block", {"dim": 8}),
]


def module_of(shipped: Callable[..., Unit], name: str, system: str, **parameters: Any) -> System:
    torch.manual_seed(0)
    return build(shipped(name, system, **parameters), compiled=False).double()


def inputs_of(module: System, random: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    unit: Unit = module.nsam_unit  # type: ignore[assignment]
    draw = torch.Generator().manual_seed(1)
    found = []
    for item in unit.inputs:
        vocab = item.type.vocab
        shape = (2, TOKENS, *map(int, item.type.shape))
        found.append(random(*shape) if vocab is None else torch.randint(0, int(vocab), shape, generator=draw))
    return found


def gradients(module: System, inputs: list[torch.Tensor], plan: Plan, **options: Any) -> dict[str, torch.Tensor]:
    """Output and gradients of a loss that weighs every output differently."""
    module.zero_grad()
    with plan.in_force():
        y, _ = module(*inputs)
    outputs = y if isinstance(y, tuple) else (y,)
    loss = sum((x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum() for x in outputs)
    assert isinstance(loss, torch.Tensor)
    loss.backward(**options)  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return found | {f"output {i}": x.detach() for i, x in enumerate(outputs)}


@pytest.mark.parametrize(("name", "system", "parameters"), SYSTEMS, ids=[s for _, s, _ in SYSTEMS])
def test_gradients_are_the_same_bit_for_bit(
    name: str, system: str, parameters: dict[str, int], shipped: Any, random: Any
) -> None:
    module = module_of(shipped, name, system, **parameters)
    inputs = inputs_of(module, random)
    expected = gradients(module, inputs, KEPT)
    for schedule in SCHEDULES:
        found = gradients(module, inputs, Plan(schedule))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), (schedule, key)


def test_a_measured_call_has_the_same_gradients_and_counts_every_byte(shipped: Any, random: Any) -> None:
    module = module_of(shipped, "hope", "hope", dim=8, vocab=16, layers=3)
    inputs = [torch.arange(256).view(2, 128) % 16]
    meter = Meter(module.parameters())
    with meter.counting():
        found = gradients(module, inputs, Plan(Schedule(), meter))
    whole = Meter(module.parameters())
    with whole.counting():
        expected = gradients(module, inputs, KEPT)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert kept(meter.root, Schedule()) == pytest.approx(whole.root.own, rel=0.05)


def test_what_is_kept_is_what_was_foreseen(shipped: Any, random: Any) -> None:
    """What autograd is handed under a schedule, against the estimate from the measured call."""
    module = module_of(shipped, "hope", "hope", dim=8, vocab=16, layers=3)
    inputs = [torch.arange(512).view(2, 256) % 16]
    meter = Meter(module.parameters())
    with meter.counting():
        gradients(module, inputs, Plan(Schedule(), meter))
    for schedule in (Schedule(group=2), Schedule(group=1, kept=2), Schedule(passes=2), Schedule(passes=3, group=1)):
        handed = Meter(module.parameters())
        with handed.counting():
            gradients(module, inputs, Plan(schedule))
        assert kept(meter.root, schedule) == pytest.approx(handed.root.own, rel=0.2), schedule


def test_a_graph_can_be_walked_twice(shipped: Any, random: Any) -> None:
    module = module_of(shipped, "hope", "titans", dim=8, slow=16, chunk=4)
    inputs = inputs_of(module, random)
    with Plan(Schedule(group=2)).in_force():
        y, _ = module(*inputs)
    first = torch.autograd.grad(y.sum(), list(module.parameters()), retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(y.sum(), list(module.parameters()), allow_unused=True)
    assert all(a is b or torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None)


def test_states_are_carried_over_and_precision_is_kept(shipped: Any) -> None:
    """Two calls, the second from the first one's state, products in bfloat16."""
    torch.manual_seed(0)
    module = build(shipped("hope", "hope", dim=8, vocab=16), compiled=False)
    tokens = torch.randint(0, 16, (2, 80))

    def run(schedule: Schedule) -> list[torch.Tensor]:
        module.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16), Plan(schedule).in_force():
            first, state = module(tokens[:, :40])
            second, _ = module(tokens[:, 40:], state=state)
        (first.square().sum() + second.square().sum()).backward()
        return [p.grad.clone() for p in module.parameters() if p.grad is not None]

    expected, found = run(Schedule()), run(Schedule(passes=1, group=1))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


REPEATED = """nsam 1
use std.rules (dgd)
system repeated(dim: int = 4) {
  input x: [dim]
  let h = x
  repeat 2 {
    memory k, v : linear(dim -> dim)
    memory m : linear(dim -> dim) { learn k(h) -> v(h); minimize l2; by dgd(lr = 0.1); every 4 tokens; init zeros }
    h = h + m(k(h))
  }
  output h
}
"""


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(passes=2), Schedule(group=1), Schedule(passes=1, group=2)])
@pytest.mark.parametrize("written", ["input", "weights", "state"])
def test_what_is_written_in_place_before_the_backward_pass_is_an_error(
    schedule: Schedule, written: str, random: Any
) -> None:
    """As it is where everything is kept; else the block would be computed again from other numbers."""
    module = nsam.compile(nsam.loads(REPEATED), "repeated", compiled=False).double()
    x = random(2, 16, 4)
    with torch.no_grad():
        _, state = module(x)
    with Plan(schedule).in_force():
        y, _ = module(x, state)
    within = state["children"]["repeat"][0]["sequence"]["m.weight"]
    with torch.no_grad():
        for tensor in {"input": [x], "weights": module.parameters(), "state": [within]}[written]:
            tensor.mul_(1.5)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.* is at version .; expected version"):
        y.sum().backward()


def test_nothing_is_computed_again_without_gradients(shipped: Any, random: Any) -> None:
    module = module_of(shipped, "hope", "titans", dim=8, slow=16, chunk=4)
    inputs = inputs_of(module, random)
    with torch.no_grad(), Plan(Schedule(group=2)).in_force():
        y, _ = module(*inputs)
    assert not y.requires_grad


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
@pytest.mark.usefixtures("short_calls", "quick_kernels")
def test_compiled_blocks_are_computed_again_too(shipped: Any, random: Any) -> None:
    module = module_of(shipped, "zoo", "gated_deltanet", dim=8)
    for part in module.modules():
        part.compiled = True  # type: ignore[assignment]
    inputs = [random(2, 256, 8)]
    expected = gradients(module, inputs, KEPT)
    for schedule in (Schedule(group=1), Schedule(group=2, kept=1)):
        found = gradients(module, inputs, Plan(schedule))
        assert all(torch.equal(found[key], value) for key, value in expected.items())
