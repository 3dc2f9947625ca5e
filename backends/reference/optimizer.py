"""A rule as an optimizer, in NumPy float64: one update of every tensor a step, gradients given."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nsam.backends.reference.numpy_arrays import NumpyArrays
from nsam.backends.reference.rules import Host, RuleRecord, apply_rule, new_rule_record
from nsam.backends.reference.scope import InternalError
from nsam.dsl.checked import Constant, RuleUse

Tensors = Mapping[str, NDArray[np.float64]]


class ReferenceOptimizer:
    """Applies `by rule(arguments)` to named tensors, each with a state of its own.

    Tensors of three or more axes are batches of matrices (the last two axes), and the rule acts on each matrix.
    """

    def __init__(self, use: RuleUse) -> None:
        needs = use.rule.needs & {"key", "err"}
        if needs:
            raise InternalError(
                f"{use.rule.name} needs {', '.join(sorted(needs))}, which a gradient does not come with"
            )
        self.use = use
        self.records: dict[str, list[RuleRecord]] = {}

    def step(self, parameters: Tensors, gradients: Tensors) -> dict[str, NDArray[np.float64]]:
        """Return the parameters after one update with these gradients; tensors without a gradient stay."""
        moved = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
        for name, gradient in gradients.items():
            moved[name] = self._move(name, moved[name], np.asarray(gradient, dtype=np.float64))
        return moved

    def _move(self, name: str, tensor: NDArray[np.float64], gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        matrices = tensor.reshape(-1, *tensor.shape[-2:]) if tensor.ndim > 2 else tensor[None]
        slopes = gradient.reshape(matrices.shape)
        records = self.records.setdefault(name, [new_rule_record() for _ in matrices])
        moved = []
        with np.errstate(all="ignore"):
            for i, (matrix, slope) in enumerate(zip(matrices, slopes, strict=True)):
                host = Host(matrix, slope)
                result, records[i] = apply_rule(NumpyArrays(), self.use, self._arguments(), host, records[i])
                moved.append(result)
        return np.stack(moved).reshape(tensor.shape)

    def _arguments(self) -> dict[str, NDArray[np.float64]]:
        found = {}
        for name, expr in self.use.arguments:
            if not isinstance(expr, Constant):
                raise InternalError(f"{name} of the optimizer {self.use.rule.name} is not a number")
            found[name] = np.asarray(float(expr.value))
        return found
