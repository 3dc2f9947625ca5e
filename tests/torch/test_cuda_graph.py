"""The recorded step against autograd, with a recorder that needs no GPU; on a GPU with the real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nsam
from nsam.backends.torch.cuda_graph import GraphedStep
from tests.recorder import Again

HOPE = Path(__file__).resolve().parents[2] / "examples" / "hope" / "hope.nsam"


def hope(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    program = nsam.load(HOPE)
    module = nsam.compile(program, "hope", dim=16, layers=1, vocab=11, compiled=device != "cpu")
    return module.to(device, torch.float64 if device == "cpu" else torch.float32)


def rows(seed: int, time: int = 40) -> Tensor:
    return torch.randint(0, 11, (2, time), generator=torch.Generator().manual_seed(seed))


def loss_of(module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    def loss(tokens: Tensor) -> tuple[Tensor, Any]:
        scores, state = module(tokens[:, :-1])
        return nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()), state

    return loss


def plain(module: nn.Module, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    module.zero_grad()
    loss, _ = loss_of(module)(tokens)
    loss.backward()
    return loss.detach(), gradients(module)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def agree(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


def test_each_step_has_the_loss_and_gradients_of_its_own_rows() -> None:
    module, recorder = hope(), Again()
    step = GraphedStep(module, loss_of(module), recorder)
    for seed in (1, 2, 3):
        wanted, gradients_ = plain(module, rows(seed))
        module.zero_grad()
        loss, state = step(rows(seed))
        torch.testing.assert_close(loss, wanted)
        agree(gradients(module), gradients_)
        assert not any(x.requires_grad for x in state["children"]["repeat"][0]["sequence"].values())
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.sub_(0.1 * parameter.grad)
    assert recorder.recorded == 1


def test_gradients_add_up_until_they_are_cleared() -> None:
    module = hope()
    step = GraphedStep(module, loss_of(module), Again())
    apart = [plain(module, rows(seed))[1] for seed in (1, 2, 3)]
    module.zero_grad()
    for seed in (1, 2, 3):
        step(rows(seed))
    agree(gradients(module), {name: sum(g[name] for g in apart) for name in apart[0]})  # type: ignore[misc]


def test_each_length_is_recorded_once() -> None:
    module, recorder = hope(), Again()
    step = GraphedStep(module, loss_of(module), recorder)
    for time in (40, 24, 40, 24):
        wanted, _ = plain(module, rows(5, time))
        torch.testing.assert_close(step(rows(5, time))[0], wanted)
    assert recorder.recorded == 2


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
def test_on_a_gpu() -> None:
    module = hope("cuda")
    step = GraphedStep(module, loss_of(module))
    for seed in (1, 2, 3):
        wanted, gradients_ = plain(module, rows(seed, 257).cuda())
        module.zero_grad()
        loss, _ = step(rows(seed, 257).cuda())
        torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-4)
        agree(gradients(module), gradients_, 2e-3)
