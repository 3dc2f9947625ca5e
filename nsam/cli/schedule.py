"""`nsam schedule`: which memory moves when."""

from __future__ import annotations

from typing import Annotated

import typer

from nsam.cli.options import File, Parameters, System, parse_pairs
from nsam.cli.output import show_warnings
from nsam.cli.request import resolve


def schedule(
    file: File,
    system: System = None,
    param: Parameters = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, max=1_000_000, help="How many tokens to lay out.")] = 128,
) -> None:
    """Show which memory moves when, the hyperperiod, and how stale every transfer is.

    [dim]nsam schedule hope.nsam titans -p dim=64 --tokens 128[/]
    """
    params = parse_pairs(param, "--param")
    from nsam.dsl.program import load

    program = load(file)
    show_warnings(program.warnings)
    unit, train = resolve(program, system, params)
    from nsam.compiler.timeline import schedule_text

    typer.echo(schedule_text(unit, train, tokens))
