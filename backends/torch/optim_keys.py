"""What rules that use `key` learn of a step: for each weight the mean outer product of its layer's inputs, or the rows
of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from nsam.backends.torch.optim_models import Place
from nsam.backends.torch.runtime.rows import Rows
from nsam.backends.torch.token_rows import outer_products
from nsam.compiler.step_keys import refusal, way_out, whole_model
from nsam.dsl.checked import RuleUse, Unit
from nsam.dsl.diagnostics import ProgramError, fail
from nsam.dsl.rule_keys import wanted

if TYPE_CHECKING:
    from nsam.backends.torch.optim_groups import OuterRule

COMPILE = "compile the module so that it sums up what its layers read: `nsam.compile(…, keys=True)`"
BY_TOKEN = 'compile the module so that it keeps what its layers read: `nsam.compile(…, keys="tokens")`'


class StepKeys:
    """The models whose backward passes bring what rules need of the layers' inputs, and where each parameter is.

    That is E[x xᵀ], or the rows of each token for the parameters in `by_token`. Like gradients they add up over the
    places that read a parameter and over backward passes, rows one after the other, until the optimizer's step, or
    `zero_grad`, forgets them.
    """

    def __init__(self, places: Mapping[Tensor, Sequence[Place]], by_token: frozenset[Tensor] = frozenset()) -> None:
        self.places, self.by_token = dict(places), by_token

    def now(self) -> dict[Tensor, Tensor]:
        """Return what has come since the last step, [.., in, in] or [.., n, in + 1 + out] for [.., out, in]."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise _not_averaged()
        found: dict[Tensor, Tensor] = {}
        for p, known in self._known():
            seen = known.grad
            if seen is not None:
                sums = isinstance(known, Rows) and p not in self.by_token
                seen = outer_products(seen, p.shape[-1]) if sums else seen
                if p not in found:
                    found[p] = seen
                else:
                    found[p] = torch.cat((found[p], seen), -2) if p in self.by_token else found[p] + seen
        return found

    def _known(self) -> Iterator[tuple[Tensor, Tensor | Rows]]:
        """Each parameter with what has the inputs of its layers as its gradient, one for each unit that reads it."""
        models: dict[torch.nn.Module, dict[str, Tensor | Rows]] = {}
        for parameter, places in self.places.items():
            for model in {model: None for model, _ in places}:
                if model not in models:
                    models[model] = {**model.nsam_grams, **model.nsam_rows}  # type: ignore[dict-item]
            # A unit that has several places itself sums up for all of them.
            known = {id(one): one for one in (models[model][name] for model, name in places)}
            yield from ((parameter, one) for one in known.values())

    def unscale(self, scale: Tensor) -> None:
        """Divide the errors of tokens by what the loss was multiplied by."""
        for p, known in self._known():
            if p in self.by_token and known.grad is not None:
                known.grad[..., p.shape[-1] + 1 :].div_(scale.to(p.device))

    def clear(self) -> None:
        """Forget it."""
        for _, known in self._known():
            known.grad = None

    def missing(self, parameter: Tensor) -> RuntimeError:
        """Return what to raise for a parameter that has a gradient and no inputs."""
        name = self.places[parameter][0][1] if parameter in self.places else "?"
        return RuntimeError(
            f"parameter `{name}` has a gradient, but its layer's inputs did not come with it: since the last step no "
            "backward pass went through what the compiled module returns"
        )


def require_served(rule: OuterRule, use: RuleUse, module: torch.nn.Module, name: str) -> None:
    """Check that the module tells of the inputs of the layer of parameter `name`; N0226 otherwise."""
    unit: Unit | None = getattr(module, "nsam_unit", None)
    why = None if unit is None else whole_model(unit).get(name)
    if why is not None:
        raise fail(*refusal(use, name, why), help=way_out(rule.role == "named", why))
    rows, sums = getattr(module, "nsam_rows", {}), getattr(module, "nsam_grams", {})
    if name in rows or (name in sums and not rule.by_token):
        return
    each = " of each token" if rule.by_token else ""
    raise fail(
        "N0226",
        f"rule `{use.rule.name}` needs {wanted(use.rule)}{each}, and this module does not tell that of `{name}`",
        help=BY_TOKEN if rule.by_token else COMPILE,
    )


def without_module(rule: OuterRule, use: RuleUse) -> ProgramError:
    """Return the refusal of tensors whose layers are not known."""
    return fail(
        "N0226",
        f"rule `{use.rule.name}` needs {wanted(use.rule)}, and tensors alone do not say what is read of them",
        help=f"give the module itself, and {BY_TOKEN if rule.by_token else COMPILE}",
    )


def require_one_process(rules: tuple[OuterRule, ...]) -> None:
    """Check that no rule needs what several processes would have to average; N0226 otherwise."""
    if any(rule.keyed for rule in rules):
        raise _not_averaged()


def _not_averaged() -> ProgramError:
    return fail(
        "N0226",
        "a rule that uses `key` or `err` serves one process: the inputs of layers are not averaged over several",
        help="train in one process, or choose a rule of the gradient alone, such as gd, muon or adamw",
    )
