"""`nsam schedule`: which memory moves when."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from nsam.cli.command import command
from nsam.cli.options import parse_pairs, with_file, with_parameters, with_system
from nsam.cli.request import resolve

if TYPE_CHECKING:
    from nsam.dsl.checked import Train, Unit

TOKENS = 128
"""How many tokens are laid out unless said otherwise."""


@command("schedule", short=True)
@with_file
@with_system
@with_parameters
@click.option(
    "--tokens",
    type=click.IntRange(1, 1_000_000),
    metavar="COUNT",
    default=TOKENS,
    show_default=True,
    help="How many tokens to lay out.",
)
def main(file: Path, system: str | None, param: tuple[str, ...], tokens: int) -> None:
    """Show which memory moves when, the hyperperiod, and how stale every transfer is.

    \b
    [dim]nsam schedule hope.nsam titans -p dim=64 --tokens 128[/]
    """
    params = parse_pairs(param, "--param")
    from nsam.cli.programs import load

    program = load(file)
    unit, train = resolve(program, system, params)
    click.echo(schedule_of(unit, train, tokens), nl=False)


def schedule_of(unit: Unit, train: Train | None, tokens: int = TOKENS) -> str:
    """Return the schedule as text, as wide as the terminal."""
    from nsam.compiler.timeline import timeline
    from nsam.compiler.timeline_text import timeline_text

    return timeline_text(timeline(unit, train, tokens), shutil.get_terminal_size((100, 24)).columns)
