"""`nsam schedule`: which memory moves when."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Annotated

import typer

from nsam.cli.options import File, Parameters, System, parse_pairs
from nsam.cli.request import resolve

if TYPE_CHECKING:
    from nsam.dsl.checked import Train, Unit

TOKENS = 128
"""How many tokens are laid out unless said otherwise."""


def schedule(
    file: File,
    system: System = None,
    param: Parameters = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, max=1_000_000, help="How many tokens to lay out.")] = TOKENS,
) -> None:
    """Show which memory moves when, the hyperperiod, and how stale every transfer is.

    [dim]nsam schedule hope.nsam titans -p dim=64 --tokens 128[/]
    """
    params = parse_pairs(param, "--param")
    from nsam.cli.programs import load

    program = load(file)
    unit, train = resolve(program, system, params)
    typer.echo(schedule_of(unit, train, tokens), nl=False)


def schedule_of(unit: Unit, train: Train | None, tokens: int = TOKENS) -> str:
    """Return the schedule as text, as wide as the terminal."""
    from nsam.compiler.timeline import timeline
    from nsam.compiler.timeline_text import timeline_text

    return timeline_text(timeline(unit, train, tokens), shutil.get_terminal_size((100, 24)).columns)
