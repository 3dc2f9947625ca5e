"""What a unit knows of its memories that move by the model's own loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nsam.backends.torch.runtime.blocks import At
from nsam.backends.torch.runtime.folds import Step, as_row

Values = dict[str, Tensor]


class Task(NamedTuple):
    """One memory: how its tensors move at every multiple of `period` tokens.

    `step` is its rule, `states` what the rule keeps for each tensor, `vectors` the tensors kept as columns, `arguments`
    those of the rule that are made of weights. With `reset` it starts over by `restart(weights, states, at)` at every
    multiple of that many tokens.
    """

    period: int
    tensors: tuple[str, ...]
    step: Step
    states: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    arguments: Callable[[Values], Values] | None = None
    reset: int = 0
    restart: Callable[[Values, Values, At], Values] | None = None

    def starts_over(self, end: int) -> bool:
        """Whether the memory is reset after token `end` (counted from 1)."""
        return self.reset > 0 and end % self.reset == 0

    def moved(self, w: Values, s: Mapping[str, Tensor], path: str, tensor: str, end: int) -> Values:
        """One tensor's new state, its rule's states and its empty sum, at a boundary after token `end`."""
        row = as_row(tensor in self.vectors)
        old = tuple(row(s[f"{path}.{state}"]) for state in self.states)
        since = (end - 1) % self.reset + 1 if self.reset else end
        total = s[f"{path}.sum"]
        given = {} if self.arguments is None else self.arguments(w)
        new, after = self.step(row(s[path]), old, row(total), None, None, **given, count=since // self.period)
        width = s[path].dtype  # under autocast a rule's product is narrower
        found = {path: row(new).to(width), f"{path}.sum": torch.zeros_like(total)}
        return found | {f"{path}.{state}": row(x).to(width) for state, x in zip(self.states, after, strict=True)}


Tasks = Mapping[str, Task]


def paths(tasks: Tasks) -> list[str]:
    """Keys of the states that move: `level.0.w1`."""
    return [f"{name}.{tensor}" for name, task in tasks.items() for tensor in task.tensors]


def separate(tasks: Tasks, s: Mapping[str, Tensor]) -> Values:
    """The states that move, each as a tensor of its own in the graph.

    A gradient with respect to it is about the reads of this piece alone, not about whatever else was made from the same
    state; the outer gradient still flows through it.
    """
    if not torch.is_grad_enabled():
        return {}
    return {key: s[key].view_as(s[key]) if s[key].requires_grad else leaf(s[key]) for key in paths(tasks)}


def leaf(x: Tensor) -> Any:
    """A tensor that a gradient can be taken at."""
    return x.detach().requires_grad_(True)
