"""A training step as one CUDA graph: the loop over chunks, its backward pass and all between them in a single launch.

A step launches thousands of small kernels, and a GPU runs them faster than Python can name them. They are the same from
step to step, because no step asks for a tensor's value, so they are recorded once and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nsam.backends.torch.runtime.rows import Slot, listed

WARM_UP = 3
"""Runs before recording: torch.compile, cuBLAS and the allocator do at first what a graph cannot hold."""

Run: TypeAlias = Callable[[], Sequence[Tensor]]
Loss: TypeAlias = Callable[..., "tuple[Tensor, Any]"]


class Recorder(Protocol):
    """Records work on tensors that stay where they are."""

    def warm_up(self, run: Run) -> None:
        """Run the work until it does the same every time."""

    def record(self, run: Run) -> Callable[[], None]:
        """Record the work; what is returned does it again, into the tensors that `run` returned."""


class CudaRecorder:
    """Records with torch.cuda.graph, on the device where the work is."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kept: list[Sequence[Tensor]] = []

    def warm_up(self, run: Run) -> None:
        """Run on a stream of its own, as recording does."""
        with torch.cuda.device(self.device):
            here, stream = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    run()
            here.wait_stream(stream)

    def record(self, run: Run) -> Callable[[], None]:
        """Record once; the graph's tensors are kept as long as this recorder."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph):
            self.kept.append(run())
        replay: Callable[[], None] = graph.replay
        return replay


@dataclass(frozen=True)
class _Recorded:
    inputs: tuple[Tensor, ...]
    loss: Tensor
    gradients: tuple[Tensor | None, ...]
    rest: Any
    slots: tuple[tuple[Slot, Tensor], ...]
    replay: Callable[[], None]


class GraphedStep:
    """`loss, rest = step(*inputs)`: the loss, with its gradients added to `.grad` of the module's parameters.

    `function(*inputs)` returns a loss and anything else with tensors in it; inputs are tensors, and every combination
    of their shapes is recorded once. What comes back is overwritten by the next call, gradients that are still in
    `.grad` then are not.
    """

    def __init__(self, module: nn.Module, function: Loss, recorder: Recorder | None = None) -> None:
        beside: Mapping[str, Tensor] = getattr(module, "nsam_grams", {})
        self.parameters = [p for p in (*module.parameters(), *beside.values()) if p.requires_grad]
        self.function = function
        self.recorder = recorder or CudaRecorder(self.parameters[0].device)
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Any]:
        """Copy the inputs to where the graph reads them, replay, and hand over the gradients."""
        kind = tuple((x.shape, x.dtype, x.device) for x in inputs)
        if kind not in self._recorded:
            self._recorded[kind] = self._record(inputs)
        step = self._recorded[kind]
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

    def _record(self, inputs: Sequence[Tensor]) -> _Recorded:
        mine = tuple(x.detach().clone() for x in inputs)
        found: list[tuple[Tensor, tuple[Tensor | None, ...], Any, tuple[tuple[Slot, Tensor], ...]]] = []

        def run() -> list[Tensor]:
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
        replay = self.recorder.record(run)
        return _Recorded(mine, *found[0], replay)
