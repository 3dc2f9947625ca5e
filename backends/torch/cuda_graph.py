"""A training step as one CUDA graph: the loop over chunks, its backward pass and all between them in a single launch.

A step launches thousands of small kernels, and a GPU runs them faster than Python can name them. They are the same from
step to step, because no step asks for a tensor's value, so they are recorded once and replayed.

A graph may do what does not depend on each other at the same time. A repeat of layers is recorded one layer after the
other and as a wavefront (`runtime/wavefront.py`), and what takes less time is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nsam.backends.torch.runtime.rows import Slot, listed
from nsam.backends.torch.runtime.wavefront import CudaStreams, OneQueue, Streams, Wavefront

WARM_UP = 3
"""Runs before recording: torch.compile, cuBLAS and the allocator do at first what a graph cannot hold."""

TIMED = 5
"""Replays that are timed, after as many that are not."""

Run: TypeAlias = Callable[[], Sequence[Tensor]]
Replay: TypeAlias = Callable[[], None]
Loss: TypeAlias = Callable[..., "tuple[Tensor, Any]"]


class Recorder(Protocol):
    """Records work on tensors that stay where they are."""

    def warm_up(self, run: Run) -> None:
        """Run the work until it does the same every time."""

    def record(self, run: Run) -> Replay:
        """Record the work; what is returned does it again, into the tensors that `run` returned."""

    def time(self, replay: Replay) -> float:
        """Milliseconds that recorded work takes."""

    def streams(self) -> Streams:
        """Where work may be issued that does not depend on each other; the same streams every time."""


class CudaRecorder:
    """Records with torch.cuda.graph, on the device where the work is."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._streams = CudaStreams(device)

    def warm_up(self, run: Run) -> None:
        """Run on a stream of its own, as recording does."""
        with torch.cuda.device(self.device):
            here, stream = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    run()
            here.wait_stream(stream)

    def record(self, run: Run) -> Replay:
        """Record once; the graph's memory lives as long as what is returned.

        Raises what `run` raises. torch then fails to end the recording as well, with an error of its own that says
        nothing of the cause, and leaves the stream of the recording the current one.
        """
        graph = torch.cuda.CUDAGraph()
        first: BaseException | None = None
        with torch.cuda.device(self.device), torch.cuda.stream(torch.cuda.current_stream()):
            try:
                try:
                    with torch.cuda.graph(graph, stream=_recording_stream(self.device)):
                        try:
                            kept = run()
                        except BaseException as error:
                            first = error
                            raise
                except Exception:
                    if first is None:
                        raise
                if first is not None:  # raised here, it does not take torch's error along
                    raise first
            finally:
                del first  # an error and a frame that names it would keep each other, and all tensors of the step
        return _Graph(graph, kept)

    def time(self, replay: Replay) -> float:
        """Mean of a few replays, by the device's own clock."""
        with torch.cuda.device(self.device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            for _ in range(TIMED):
                replay()
            begin.record()
            for _ in range(TIMED):
                replay()
            end.record()
            end.synchronize()
        elapsed: float = begin.elapsed_time(end)
        return elapsed / TIMED

    def streams(self) -> Streams:
        """CUDA streams of this recorder."""
        return self._streams


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream a device, as libraries keep memory for each; torch's own belongs to the device that was first."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Graph:
    """A recorded graph, and the tensors that it writes to."""

    graph: torch.cuda.CUDAGraph
    kept: Sequence[Tensor]

    def __call__(self) -> None:
        """Do the work again."""
        self.graph.replay()


@dataclass(frozen=True, slots=True)
class Choice:
    """How the layers of a step were recorded: in `segments` of the sequence as a wavefront, or (1) one after the other.

    `plain` and `wave` are the milliseconds of a replay, of what was recorded and timed; `reason` says why one way was
    not tried. `tried` are the segments of the wavefront that was.
    """

    segments: int = 1
    tried: int = 1
    plain: float | None = None
    wave: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        """In words, with the time of the other way."""
        names = "one layer after the other", f"a wavefront of {self.tried} segments"
        times = self.plain, self.wave
        told = [name + (f", {ms:.3g} ms" if ms is not None else "") for name, ms in zip(names, times, strict=True)]
        kept, other = reversed(told) if self.segments > 1 else told
        if self.reason:
            return f"{kept}: {self.reason}"
        return f"{kept} a step ({other})" if self.plain is not None and self.wave is not None else kept


@dataclass(frozen=True)
class _Recorded:
    inputs: tuple[Tensor, ...]
    loss: Tensor
    gradients: tuple[Tensor | None, ...]
    rest: Any
    slots: tuple[tuple[Slot, Tensor], ...]
    replay: Replay


class GraphedStep:
    """`loss, rest = step(*inputs)`: the loss, with its gradients added to `.grad` of the module's parameters.

    `function(*inputs)` returns a loss and anything else with tensors in it; inputs are tensors, and every combination
    of their shapes is recorded once. What comes back is overwritten by the next call, gradients that are still in
    `.grad` then are not.

    `wavefront` says how layers are recorded: None one after the other, a number (2 or more) as a wavefront over so many
    segments, "auto" both ways, to keep the faster. `chosen` tells it of the latest call, None before the first. Only
    one recording is held at a time. Raises ValueError for a number below 2, and in the first call if a number is given
    and the layers have to run one after the other.
    """

    def __init__(
        self,
        module: nn.Module,
        function: Loss,
        recorder: Recorder | None = None,
        *,
        wavefront: int | Literal["auto"] | None = "auto",
    ) -> None:
        if isinstance(wavefront, int) and wavefront < 2:
            raise ValueError(f"a wavefront has at least 2 segments, got {wavefront}; None for none")
        beside: Mapping[str, Tensor] = getattr(module, "nsam_grams", {})
        self.parameters = [p for p in (*module.parameters(), *beside.values()) if p.requires_grad]
        self.function = function
        self.recorder = recorder or CudaRecorder(self.parameters[0].device)
        self.wavefront = wavefront
        self.chosen: Choice | None = None
        self._recorded: dict[tuple[Any, ...], tuple[_Recorded, Choice]] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Any]:
        """Copy the inputs to where the graph reads them, replay, and hand over the gradients."""
        kind = tuple((x.shape, x.dtype, x.device) for x in inputs)
        if kind not in self._recorded:
            self._recorded[kind] = self._record(tuple(x.detach().clone() for x in inputs))
        step, self.chosen = self._recorded[kind]
        for mine, given in zip(step.inputs, inputs, strict=True):
            mine.copy_(given)
        for parameter, gradient in zip(self.parameters, step.gradients, strict=True):
            if gradient is not None and parameter.grad is gradient:
                parameter.grad = gradient.clone()
        step.replay()
        for parameter, gradient in zip(self.parameters, step.gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        for slot, gradient in step.slots:
            slot.take(gradient)
        return step.loss, step.rest

    def _record(self, mine: tuple[Tensor, ...]) -> tuple[_Recorded, Choice]:
        """Record the step, the way that is asked for or the faster one."""
        if self.wavefront is None:
            return self._take(mine), Choice(reason="a wavefront is not asked for")
        if self.wavefront != "auto":
            forced = Wavefront(self.recorder.streams(), self.wavefront)
            return self._take(mine, forced), Choice(forced.segments, forced.segments)
        asking = Wavefront(OneQueue(), asks=True)
        step = self._take(mine, asking)
        if not asking.segments:
            return step, Choice(reason=_why(asking))
        plain, tried = self.recorder.time(step.replay), asking.segments
        del step
        try:
            other = self._take(mine, Wavefront(self.recorder.streams()))
        except torch.OutOfMemoryError:
            other = None
        # Outside of the block: its error holds the frames of what failed, and all tensors in them.
        if other is None:
            return self._take(mine), Choice(1, tried, plain, reason="there is no memory for a wavefront")
        wave = self.recorder.time(other.replay)
        if wave < plain:
            return other, Choice(tried, tried, plain, wave)
        del other
        return self._take(mine), Choice(1, tried, plain, wave)

    def _take(self, mine: tuple[Tensor, ...], wave: Wavefront | None = None) -> _Recorded:
        """Warm up and record the step, its repeats as `wave` says.

        Raises ValueError if that is to cut them into segments and cannot.
        """
        found: list[tuple[Tensor, tuple[Tensor | None, ...], Any, tuple[tuple[Slot, Tensor], ...]]] = []

        def run() -> list[Tensor]:
            with nullcontext() if wave is None else wave.in_force():
                with listed() as slots:
                    loss, rest = self.function(*mine)
                wanted = [*self.parameters, *(slot.leaf for slot in slots)]
                gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            own, told = gradients[: len(self.parameters)], gradients[len(self.parameters) :]
            rest = pytree.tree_map_only(Tensor, Tensor.detach, rest)
            rows = tuple((slot, g) for slot, g in zip(slots, told, strict=True) if g is not None)
            found[:] = [(loss.detach(), own, rest, rows)]
            tensors = [x for x in pytree.tree_leaves(rest) if isinstance(x, Tensor)]
            return [loss.detach(), *(g for g in gradients if g is not None), *tensors]

        self.recorder.warm_up(run)
        if wave is not None and not wave.asks and not wave.segments:
            raise ValueError(f"the layers cannot be recorded as a wavefront: {_why(wave)}")
        replay = self.recorder.record(run)
        return _Recorded(mine, *found[0], replay)


def _why(wave: Wavefront) -> str:
    return "; ".join(wave.reasons) or "there is no repeat of layers"
