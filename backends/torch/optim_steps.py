"""The functions of one rule that an optimizer calls: emitted once, specialised for what closes at an update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nsam.backends.torch.rule_source import elementwise, emit_initial, emit_step, load, scalar_keyword
from nsam.compiler.rule_plan import GRAM, WEIGHT, RulePlan

COUNT = "nsam.count"
"""Key of a parameter's state: updates so far, an int."""


class Steps:
    """A rule's step on batches. With `compiled` the step goes through torch.compile, once a shape.

    `products`: the precision of the matrix products that orthogonalise, where it is not that of the weights.
    """

    def __init__(self, plan: RulePlan, compiled: bool = False, products: torch.dtype | None = None) -> None:
        self.plan = plan
        self.compiled = compiled
        self.products = products
        self.names = tuple(state.name for state in plan.states)
        self._functions: dict[tuple[object, ...], Callable[..., Any]] = {}

    @cached_property
    def elementwise(self) -> bool:
        """Whether entries move on their own."""
        return elementwise(self.plan) and not self.keyed

    @property
    def keyed(self) -> bool:
        """Whether the step needs the inputs of layers."""
        return GRAM in self.plan.inputs or self.by_token

    @property
    def by_token(self) -> bool:
        """Whether the step needs input and error of each token."""
        return WEIGHT in self.plan.inputs

    @cached_property
    def _initial(self) -> Callable[..., Any]:
        return load(emit_initial(self.plan), "initial")

    def initial(self, batch: Tensor, scalars: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Return the states before the first update, in the order of `names`."""
        found: tuple[Tensor, ...] = self._initial(batch, **scalars)
        return found

    def __call__(
        self,
        batch: Tensor,
        states: tuple[Tensor, ...],
        grad: Tensor,
        scalars: Mapping[str, Any],
        count: int,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the batch and its states after update number `count`.

        `keys` are the sums of outer products of layers' inputs, [matrices, in, in], or where the rule is `by_token`
        the rows of tokens, [matrices, n, in + 1 + out]: input, weight and error.
        """
        function = self._function(self.plan.due(count), batch, keys.shape[-2] if keys is not None else 0)
        number = torch.tensor(float(count), dtype=torch.float64) if self.compiled else count
        result: tuple[Tensor, tuple[Tensor, ...]] = function(
            batch, states, grad, *self._of_layers(batch, keys), **scalars, count=number
        )
        return result

    def _of_layers(self, batch: Tensor, keys: Tensor | None) -> tuple[Tensor | None, ...]:
        """The step's arguments for what is known of layers."""
        if keys is None or not self.by_token:
            return keys, None
        width = batch.shape[-1]
        return keys[..., :width], keys[..., width + 1 :], keys[..., width : width + 1]

    def _function(self, due: frozenset[int], batch: Tensor, tokens: int) -> Callable[..., Any]:
        """Return the straight-line step; compiled, one a shape, as torch gives up on a function of many shapes."""
        key = (due, batch.shape, tokens, batch.dtype, batch.device) if self.compiled else (due,)
        if key not in self._functions:
            function = load(emit_step(self.plan, due=due), "step", self.products)
            self._functions[key] = torch.compile(function, dynamic=False) if self.compiled else function
        return self._functions[key]

    def scalars(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the rule's parameters as they stand in a parameter group now, by the step's keywords."""
        found = {scalar_keyword(name): group[name] for name in self.plan.parameters}
        if self.compiled:  # numbers would be compiled into the step, and a schedule would compile it again each time
            return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in found.items()}
        return found
