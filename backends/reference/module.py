"""A unit as a torch module, token by token in float64, and the same in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from nsam.backends.reference.checks import check_supported, learns_end_to_end, require_state
from nsam.backends.reference.end_to_end import run_end_to_end
from nsam.backends.reference.numpy_arrays import NumpyArrays
from nsam.backends.reference.parameters import initial_value, parameters
from nsam.backends.reference.run import ReferenceState, run
from nsam.backends.reference.tape import plain
from nsam.backends.reference.torch_arrays import TorchArrays
from nsam.dsl.checked import Unit


class ReferenceModule(torch.nn.Module):
    """A system interpreted straight from its declarations, one token at a time.

    Inner gradients come from torch.autograd, and the outer gradient flows through every inner update. Parameters are
    float64 and named as in the compiled module. Slow on purpose: this is what the compiled module is compared with.
    """

    def __init__(self, unit: Unit, generator: torch.Generator | None = None) -> None:
        super().__init__()
        check_supported(unit)
        self.unit = unit
        self._paths: list[str] = []
        for parameter in parameters(unit):
            *path, name = parameter.path.split(".")
            owner: torch.nn.Module = self
            for part in path:
                # Not `add_module`: a memory may have the name of an attribute.
                inside = owner._modules.setdefault(part, torch.nn.Module())
                assert inside is not None
                owner = inside
            self._paths.append(parameter.path)
            owner.register_parameter(name, torch.nn.Parameter(initial_value(parameter, generator)))

    def forward(
        self, *inputs: Any, state: ReferenceState | None = None, targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ReferenceState]:
        """Return (output [batch, time, …], state).

        Inputs are [batch, time, …] (tokens: int64 [batch, time]; per sequence: [batch, …]); the state is a nested
        structure of dicts, lists and tensors that a later call continues from; it may also be the last argument.
        `targets`, integers [batch, time], are for systems with memories that move by the model's own loss.
        Raises ValueError on inputs that do not fit.
        """
        if torch.is_inference_mode_enabled():  # where no inner gradient is recorded either
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(*inputs, state=state, targets=targets)
        if len(inputs) == len(self.unit.inputs) + 1 and isinstance(inputs[-1], dict | None) and state is None:
            *inputs, state = inputs  # type: ignore[assignment]
        if len(inputs) != len(self.unit.inputs):
            raise ValueError(f"{self.unit.name} takes {len(self.unit.inputs)} inputs, found {len(inputs)}")
        # Copies: a state keeps some inputs, and the caller may write into what it gave.
        given = [
            x if wanted.type.vocab is not None else x.to(torch.float64, copy=True)
            for wanted, x in zip(self.unit.inputs, inputs, strict=True)
        ]
        require_state(self.unit, state)
        state = pytree.tree_map_only(torch.Tensor, _recordable, state)
        ops = TorchArrays(given[0].device)
        own = {path: _recordable(self._value(path)) for path in self._paths}
        used = [x for x in pytree.tree_leaves((own, given, state)) if isinstance(x, torch.Tensor)]
        # Where nothing asks for a gradient the inner ones leave no graph behind, which would grow with the state.
        outer = torch.is_grad_enabled() and any(x.requires_grad for x in used)
        if not learns_end_to_end(self.unit):
            with torch.set_grad_enabled(outer):
                return run(ops, self.unit, own, given, state)
        if targets is not None and (targets.is_floating_point() or targets.dim() != 2):
            raise ValueError(f"targets are integers [batch, time], found {targets.dtype} {list(targets.shape)}")
        answers = None if targets is None else targets.tolist()
        with torch.enable_grad():
            y, after = run_end_to_end(ops, self.unit, own, given, answers, state)
        return (y, after) if outer else pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (y, after))

    def _value(self, path: str) -> torch.Tensor:
        """What is now at the path of a parameter, whose module may have been replaced."""
        *above, name = path.split(".")
        owner: torch.nn.Module = self
        for part in above:
            owner = owner._modules[part]  # type: ignore[assignment]
        found: torch.Tensor = getattr(owner, name)
        return found


def _recordable(x: torch.Tensor) -> torch.Tensor:
    """A tensor that autograd takes: one that was made in inference mode is copied."""
    return x.clone() if x.is_inference() else x


def values(
    unit: Unit,
    parameters: Mapping[str, NDArray[np.float64]],
    inputs: Mapping[str, NDArray[Any]],
    state: ReferenceState | None = None,
    targets: NDArray[Any] | None = None,
) -> tuple[NDArray[np.float64], ReferenceState]:
    """Return (output [batch, time, …], state) in NumPy alone; inner gradients come from a run-time tape.

    `parameters` go by `state_dict` key, `inputs` by name, shapes and `targets` as for `ReferenceModule`.
    """
    check_supported(unit)
    weights = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    ordered = [
        np.array(inputs[given.name], dtype=np.float64 if given.type.vocab is None else np.int64)
        for given in unit.inputs
    ]
    # A memory that diverges has infinities and NaNs for values, as it has in torch: they are results, not accidents.
    with np.errstate(all="ignore"):
        if not learns_end_to_end(unit):
            return run(NumpyArrays(), unit, weights, ordered, state)
        answers = None if targets is None else targets.tolist()
        y, after = run_end_to_end(NumpyArrays(outer=True), unit, weights, ordered, answers, state)
        return plain(y), after
