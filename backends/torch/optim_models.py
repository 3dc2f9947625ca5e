"""What compiled models, which may be parts of a larger module, say of their parameters to an optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from nsam.dsl.checked import RuleUse

_TOLD = ("nsam_matrices", "nsam_periods", "nsam_rules")


class Told(NamedTuple):
    """What is known of one parameter."""

    name: str
    """In the whole module."""
    parameter: Tensor
    model: torch.nn.Module
    """The model that it is of: the outermost one that says something, or the whole module."""
    own_name: str
    """In that model."""
    matrix: bool
    period: float | None
    """Steps between two updates, inf where it never moves; None where nothing is said."""
    rule: RuleUse | None
    """The rule that its memory has of its own."""


def told(module: torch.nn.Module) -> Iterator[Told]:
    """Yield each parameter with what its model says, whatever that model is wrapped in or is a part of."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    places: dict[Tensor, tuple[torch.nn.Module, str]] = {}
    for model in _models(module):
        for own_name, parameter in model.named_parameters():
            places.setdefault(parameter, (model, own_name))
    for parameter, name in names.items():
        model, own_name = places.get(parameter, (module, name))
        matrices: set[str] | None = getattr(model, "nsam_matrices", None) if parameter in places else None
        periods: Mapping[str, float] = getattr(model, "nsam_periods", {})
        rules: Mapping[str, RuleUse] = getattr(model, "nsam_rules", {})
        matrix = parameter.ndim >= 2 if matrices is None else own_name in matrices
        yield Told(name, parameter, model, own_name, matrix, periods.get(own_name), rules.get(own_name))


def _models(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The outermost modules that say something themselves; what torch.compile wraps answers for what is inside."""
    if any(name in module.__dict__ or hasattr(type(module), name) for name in _TOLD):
        yield module
    else:
        for child in module.children():
            yield from _models(child)
