"""Which rule moves which parameters of an optimizer, and what it can move at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

from nsam.backends.torch.runtime.modules import is_sharded
from nsam.compiler.rule_plan import GRAM, WEIGHT, RulePlan
from nsam.dsl.diagnostics import fail

Role: TypeAlias = Literal["matrices", "others", "all", "named"]


@dataclass(frozen=True)
class OuterRule:
    """A rule with the values of its parameters and the parameters of the model that it is for."""

    label: str
    plan: RulePlan
    values: Mapping[str, float]
    role: Role = "all"

    @property
    def keyed(self) -> bool:
        """Whether the rule needs the inputs of layers."""
        return GRAM in self.plan.inputs or self.by_token

    @property
    def by_token(self) -> bool:
        """Whether the rule needs input and error of each token."""
        return WEIGHT in self.plan.inputs


def rule_for(rules: Sequence[OuterRule], matrix: bool, name: str | None = None) -> OuterRule:
    """Return the rule for matrices, or for the others; ProgramError, naming the parameter, when there is none."""
    wanted = "matrices" if matrix else "others"
    for rule in rules:
        if rule.role in (wanted, "all"):
            return rule
    what = "one of the tensors" if name is None else f"parameter `{name}`"
    raise fail("N0480", f"no rule moves {what}", help=f"give a rule `for {wanted}`")


def require_whole(parameter: Any) -> None:
    """Check that a parameter is a whole tensor, not a process's part of one; N0480 otherwise."""
    tensor = unnamed(parameter)
    if isinstance(tensor, Tensor) and is_sharded(tensor):
        raise fail(
            "N0480",
            "a rule moves whole tensors, and a DTensor (of fully_shard, for example) is spread over processes",
            help="keep the weights whole, with DistributedDataParallel, and spread the optimizer's states: "
            "`nsam.optimizer(…, sharded=True)`; or move DTensors by an optimizer of torch.optim",
        )


def unnamed(parameter: Any) -> Any:
    """What torch takes for a parameter, without the name that may be given with it."""
    return parameter[1] if isinstance(parameter, tuple) and len(parameter) == 2 else parameter
