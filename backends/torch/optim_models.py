"""What compiled models, which may be parts of a larger module, say of their parameters to an optimizer.

A memory that is given without its system is known by it as long as there is the system.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from nsam.backends.torch.runtime.system import homes
from nsam.dsl.checked import RuleUse
from nsam.dsl.diagnostics import fail

_TOLD = ("nsam_matrices", "nsam_periods", "nsam_rules")


Place: TypeAlias = "tuple[torch.nn.Module, str]"
"""A model and the name of a parameter in it."""


class Told(NamedTuple):
    """What is known of one parameter."""

    name: str
    """In the whole module."""
    parameter: Tensor
    places: tuple[Place, ...]
    """Where it is read: the models that it is of (the outermost ones that say something, the systems of a memory given
    without them, or the whole module) and its names in them; tied ones have several."""
    matrix: bool
    period: float | None
    """Steps between two updates, inf where it never moves; None where nothing is said."""
    rule: RuleUse | None
    """The rule that its memory has of its own."""


def told(module: torch.nn.Module) -> Iterator[Told]:
    """Yield each parameter with what its model says, whatever that model is wrapped in or is a part of.

    Of a parameter that has several places the first in a model says what moves it, and when. ProgramError N0480 where
    a memory has a rule of its own that is not known here.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    places: dict[Tensor, dict[Place, None]] = {}
    memories = homes()
    for path, part in _parts(module, memories):
        speaks, within = _says_something(part), memories.get(part, ())
        for own_name, parameter in part.named_parameters(recurse=speaks or part in memories, remove_duplicate=False):
            here: Place = (part, own_name) if speaks else (module, path + own_name)
            known: list[Place] = [(system, f"{memory}.{own_name}") for system, memory in within]
            places.setdefault(parameter, {}).update(dict.fromkeys(known or [here]))
    said: dict[torch.nn.Module, _Said] = {}
    for parameter, name in names.items():
        own = tuple(places[parameter])
        model, own_name = next((place for place in own if _says_something(place[0])), (module, name))
        if model not in said:
            said[model] = _Said.by(model)
        matrices, periods, rules, with_rules = said[model]
        if own_name in with_rules and own_name not in rules:
            raise fail(
                "N0480",
                f"the memory of parameter `{name}` has a rule of its own, which the written source does not hold",
                help="make the module with nsam.compile from the program, and give it these weights by load_state_dict",
            )
        matrix = parameter.ndim >= 2 if matrices is None else own_name in matrices
        yield Told(name, parameter, own, matrix, periods.get(own_name), rules.get(own_name))


class _Said(NamedTuple):
    """What a model says of its parameters, by their names in it."""

    matrices: Collection[str] | None
    periods: Mapping[str, float]
    rules: Mapping[str, RuleUse]
    with_rules: Collection[str]

    @classmethod
    def by(cls, model: torch.nn.Module) -> _Said:
        """Ask it: what it says is put together at each question."""
        about: Any = model
        return cls(
            getattr(about, "nsam_matrices", None),
            getattr(about, "nsam_periods", {}),
            getattr(about, "nsam_rules", {}),
            getattr(about, "nsam_with_rules", ()),
        )


def _parts(
    module: torch.nn.Module, memories: Collection[torch.nn.Module], path: str = ""
) -> Iterator[tuple[str, torch.nn.Module]]:
    """The outermost modules that say something themselves or are memories, those around and beside them, and where.

    What torch.compile wraps answers for what is inside.
    """
    yield path, module
    for name, child in () if _says_something(module) or module in memories else module.named_children():
        yield from _parts(child, memories, f"{path}{name}.")


def _says_something(module: torch.nn.Module) -> bool:
    return any(name in module.__dict__ or hasattr(type(module), name) for name in _TOLD)
