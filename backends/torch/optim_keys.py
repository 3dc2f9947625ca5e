"""What rules that use `key` learn of a step: for each weight the mean outer product of its layer's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from nsam.compiler.step_keys import refusal, way_out, whole_model
from nsam.dsl.checked import RuleUse, Unit
from nsam.dsl.diagnostics import ProgramError, fail

if TYPE_CHECKING:
    from nsam.backends.torch.optim_rules import OuterRule

COMPILE = "compile the module so that it sums up what its layers read: `nsam.compile(…, keys=True)`"


class StepKeys:
    """The module whose backward passes bring E[x xᵀ] of the layers' inputs, and its parameters by name.

    Like gradients they add up over backward passes until the optimizer's step, or `zero_grad`, forgets them.
    """

    def __init__(self, module: torch.nn.Module, names: Mapping[Tensor, str]) -> None:
        self.module, self.names = module, dict(names)

    def now(self) -> dict[Tensor, Tensor]:
        """Return what has come since the last step, [.., in, in] for a parameter [.., out, in]."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise _not_averaged()
        leaves: Mapping[str, Tensor] = self.module.nsam_grams  # type: ignore[assignment]
        found = {p: leaves[name].grad for p, name in self.names.items()}
        return {p: gram for p, gram in found.items() if gram is not None}

    def clear(self) -> None:
        """Forget it."""
        leaves: Mapping[str, Tensor] = self.module.nsam_grams  # type: ignore[assignment]
        for name in self.names.values():
            leaves[name].grad = None

    def missing(self, parameter: Tensor) -> RuntimeError:
        """Return what to raise for a parameter that has a gradient and no inputs."""
        return RuntimeError(
            f"parameter `{self.names.get(parameter, '?')}` has a gradient, but its layer's inputs did not come with "
            "it: since the last step no backward pass went through what the compiled module returns"
        )


def require_served(rule: OuterRule, use: RuleUse, module: torch.nn.Module, name: str) -> None:
    """Check that the module sums up the inputs of the layer of parameter `name`; N0226 otherwise."""
    unit: Unit | None = getattr(module, "nsam_unit", None)
    why = None if unit is None else whole_model(unit).get(name)
    if why is not None:
        raise fail(*refusal(use, name, why), help=way_out(rule.role == "named", why))
    known = getattr(module, "nsam_grams", {})
    if name not in known:
        raise fail(
            "N0226",
            f"rule `{use.rule.name}` needs `key`, the input of a layer, and this module does not tell that of `{name}`",
            help=COMPILE,
        )


def without_module(use: RuleUse) -> ProgramError:
    """Return the refusal of tensors whose layers are not known."""
    return fail(
        "N0226",
        f"rule `{use.rule.name}` needs `key`, the input of a layer, and tensors alone do not say what is read of them",
        help=f"give the module itself, and {COMPILE}",
    )


def require_one_process(rules: tuple[OuterRule, ...]) -> None:
    """Check that no rule needs what several processes would have to average; N0226 otherwise."""
    if any(rule.keyed for rule in rules):
        raise _not_averaged()


def _not_averaged() -> ProgramError:
    return fail(
        "N0226",
        "a rule that uses `key` serves one process: the inputs of layers are not averaged over several",
        help="train in one process, or choose a rule of the gradient alone, such as gd, muon or adamw",
    )
