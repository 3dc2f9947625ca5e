"""The recorded step against autograd, with a recorder that needs no GPU; on a GPU with the real one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nsam
from nsam.backends.torch.cuda_graph import CudaRecorder, GraphedStep, _recording_stream
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


class Pretended:
    """torch.cuda as far as a recording uses it: which stream is the current one, and recordings that may be broken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream, self.broken, self.recorded = "default", False, list[str]()
        for name, value in {
            "CUDAGraph": object,
            "Stream": lambda device: f"recording on {device}",
            "current_stream": lambda: self.stream,
            "device": lambda device: nullcontext(),
            "stream": self.on,
            "graph": lambda graph, stream: _Recording(self, stream),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def on(self, stream: str) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before


class _Recording:
    """As torch.cuda.graph: where the recording cannot be ended, that is said, and its stream stays the current one."""

    def __init__(self, cuda: Pretended, stream: str) -> None:
        self.cuda, self.stream, self.before = cuda, stream, cuda.stream

    def __enter__(self) -> None:
        self.cuda.stream = self.stream
        self.cuda.recorded.append(self.stream)

    def __exit__(self, *error: object) -> None:
        if self.cuda.broken:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.cuda.stream = self.before


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("kind", [RuntimeError, torch.OutOfMemoryError, KeyboardInterrupt])
def test_what_broke_a_recording_is_told_and_lets_go_of_it(
    broken: bool, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, held, told = Pretended(monkeypatch), list[weakref.ref[Tensor]](), list[str]()

    def run() -> list[Tensor]:
        cuda.broken = broken
        activations = torch.ones(3)
        held.append(weakref.ref(activations))
        raise kind("the cause")

    gc.disable()  # nothing waits for the collector of cycles
    try:
        try:
            CudaRecorder(torch.device("cuda", 1)).record(run)
        except BaseException as error:
            told.append(str(error))
        assert held[0]() is None
    finally:
        gc.enable()
    assert told == ["the cause"]
    assert cuda.stream == "default"


def test_each_device_records_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Pretended(monkeypatch)
    _recording_stream.cache_clear()
    for index in (0, 1, 0):
        CudaRecorder(torch.device("cuda", index)).record(list)
    _recording_stream.cache_clear()
    assert cuda.recorded == ["recording on cuda:0", "recording on cuda:1", "recording on cuda:0"]


@pytest.mark.gpu
def test_a_recording_that_fails_on_a_gpu_leaves_it_as_it_was() -> None:
    recorder, x, here = CudaRecorder(torch.device("cuda", 0)), torch.ones(3, device="cuda"), torch.cuda.current_stream()

    def asks() -> list[Tensor]:
        return [x * x.sum().item()]

    def works() -> list[Tensor]:
        return [x * 2.0]

    for _ in range(2):
        with pytest.raises(RuntimeError, match="captur"):
            recorder.record(asks)
        assert torch.cuda.current_stream() == here
        recorder.warm_up(works)
        recorder.record(works)()
        torch.testing.assert_close(x * 2.0, torch.full_like(x, 2.0))


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
