"""What goes on in a resumed run whose program may have changed: states do, the arguments of rules are the program's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from nsam import api
from nsam.backends.torch.optim_rules import CLOCK, EVERY, RULE
from nsam.dsl.checked import Train
from nsam.dsl.diagnostics import fail

Names: TypeAlias = "Sequence[Sequence[str]]"
"""Which parameters each group of an optimizer moves."""


def moved_by(optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> list[list[str]]:
    """Return the names of the parameters that each group of the optimizer moves, in its order."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def go_on(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], before: Names, names: Names, clock: int
) -> tuple[str, ...]:
    """Give `optimizer` the saved states, by the names of parameters; return which arguments are not those of before.

    `before` and `names` are `moved_by` of then and now (a checkpoint without it has the groups of now), `clock` the
    steps of the optimizer so far. Raises ValueError or KeyError when states of one rule would go to another.
    """
    places = _places(saved["param_groups"], before or names)
    changes: dict[str, None] = {}
    groups: list[dict[str, Any]] = []
    states: dict[int, Any] = {}
    number = 0
    for group, listed in zip(optimizer.param_groups, names, strict=True):
        values = {key: value for key, value in group.items() if key != "params"}
        groups.append(values | {"params": list(range(number, number + len(listed)))})
        if CLOCK in values:
            groups[-1][CLOCK] = clock
        for name in listed:
            then, place = places[name]
            if then.get(RULE) != values.get(RULE):
                raise ValueError(f"`{name}` was moved by the rule {then.get(RULE)} and is by {values.get(RULE)}")
            if place in saved["state"]:
                states[number] = saved["state"][place]
            changes |= dict.fromkeys(_differences(then, values))
            number += 1
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    return tuple(changes)


def _places(groups: Sequence[Mapping[str, Any]], names: Names) -> dict[str, tuple[Mapping[str, Any], int]]:
    """Return each parameter's saved group and its number there."""
    if [len(group["params"]) for group in groups] != [len(listed) for listed in names]:
        raise ValueError("it moves other numbers of parameters")
    return {
        name: (group, number)
        for group, listed in zip(groups, names, strict=True)
        for name, number in zip(listed, group["params"], strict=True)
    }


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What a saved group says otherwise than the program's: `adamw.lr 0.01 -> 0.002`."""
    for key, value in now.items():
        if key not in (CLOCK, RULE) and then.get(key) != value:
            name = "every" if key == EVERY else key
            yield f"{now.get(RULE, 'optimizer')}.{name} {then.get(key)} -> {value}"


def require_same_memories(train: Train, found: Any, checkpoint: Path) -> None:
    """Check that memories that go on from a checkpoint are those of the program; N0507 names the first difference."""
    module = api.compile_unit(train.model, compiled=False)
    with torch.no_grad():
        state = api.new_sequence(module(torch.zeros(1, 1, dtype=torch.int64))[1])
    here, there = dict(_memories(state, "")), dict(_memories(found, ""))
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            sizes = f"{there.get(name, 'absent')} there and {here.get(name, 'absent')} here"
            raise fail(
                "N0507",
                f"the memories in {checkpoint} do not belong to this program: `{name}` is {sizes}",
                help="use the program that the run was started with; the run folder keeps a copy in `program/`",
            )


def _memories(state: Any, path: str) -> Iterator[tuple[str, list[int]]]:
    """Yield name and sizes of each tensor that goes on, of one sequence; a period under way is there or not."""
    for name, tensor in state["kept"].items():
        if not name.endswith(".run"):
            yield path + name, list(tensor.shape[1:])
    for name, child in state["children"].items():
        several = child if isinstance(child, list) else [child]
        for i, one in enumerate(several):
            yield from _memories(one, f"{path}{name}.{i}." if isinstance(child, list) else f"{path}{name}.")
