"""What a command is asked about: a system with its parameters, or a train declaration."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

from nsam.cli.options import Value
from nsam.compiler.checks import require_levels
from nsam.dsl.diagnostics import fail

if TYPE_CHECKING:
    from nsam.dsl.checked import Train, Unit
    from nsam.dsl.program import Program


def resolve(program: Program, name: str | None, params: Mapping[str, Value]) -> tuple[Unit, Train | None]:
    """Return the unit called `name` (a system, or the model of a train declaration), with its train declaration.

    Without a name: the only train declaration, else the only system; N0515 where that is not clear. `params` of a
    train declaration are its overrides. Levels are checked with them: `ProgramError` where they do not fit.
    """
    name = name or _only(program)
    if name not in program.trains and name not in program.systems:
        raise unknown(program, name)
    train = program.train(name, params) if name in program.trains else None
    unit = program.instantiate(name, params) if train is None else train.model
    if params:  # without them it was checked as the file says it
        require_levels(unit, train)
    return unit, train


def unknown(program: Program, name: str) -> Exception:
    """Return the diagnostic for a name that the program does not declare, or not as what is needed."""
    for names, found, needed in (
        (program.systems, "a system", "a train declaration"),
        (program.trains, "a train declaration", "a system"),
    ):
        if name in names:
            return fail("N0515", f"`{name}` is {found}: {needed} is needed here", help=_listing(program))
    known = [*program.systems, *program.trains]
    close = get_close_matches(name, known, 1)
    return fail(
        "N0515",
        f"the program declares no system or train called `{name}`",
        help=f"did you mean `{close[0]}`?" if close else _listing(program),
    )


def _only(program: Program) -> str:
    for names in (list(program.trains), list(program.systems)):
        if len(names) == 1:
            return names[0]
        if names:
            raise fail("N0515", "the program declares several: say which", help=_listing(program))
    raise fail("N0515", "the program declares no system and no train")


def _listing(program: Program) -> str:
    parts = [
        f"{kind}: {', '.join(names)}"
        for kind, names in (("systems", program.systems), ("trains", program.trains))
        if names
    ]
    return "; ".join(parts) or "it declares rules only"


def train_name(program: Program, name: str | None) -> str:
    """Return the train declaration asked for, the only one when none is; N0515 otherwise."""
    if name is None:
        if len(program.trains) == 1:
            return next(iter(program.trains))
        what = "has no train declaration" if not program.trains else "has several train declarations: say which"
        raise fail("N0515", f"the program {what}", help=_listing(program))
    if name not in program.trains:
        raise unknown(program, name)
    return name


def system_name(program: Program, name: str | None) -> str:
    """Return the system asked for, the only one when none is; N0515 otherwise."""
    if name is None:
        if len(program.systems) == 1:
            return next(iter(program.systems))
        what = "declares no system" if not program.systems else "declares several systems: say which"
        raise fail("N0515", f"the program {what}", help=_listing(program))
    if name not in program.systems:
        raise unknown(program, name)
    return name
