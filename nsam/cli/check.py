"""`nsam check`: names, shapes, clauses and levels, without compiling."""

from __future__ import annotations

from pathlib import Path

import rich_click as click
from click.exceptions import Exit

from nsam.cli.command import command
from nsam.cli.options import Format, with_file, with_format
from nsam.cli.output import show
from nsam.dsl.diagnostics import ProgramError


@command("check", short=True)
@with_file
@with_format
def main(file: Path, format: Format) -> None:
    """Check a program and report everything that is wrong with it.

    Exit code 0: clean (warnings alone are clean), 1: errors, 2: wrong usage.

    \b
    [dim]nsam check hope.nsam
    nsam check hope.nsam --format json[/]
    """
    from nsam.cli.programs import load_checked

    try:
        program, warnings = load_checked(file)
    except ProgramError as error:
        show(error.diagnostics, format)
        raise Exit(1) from None
    show(warnings, format)
    if format is Format.text:
        counts = ", ".join(
            f"{len(names)} {kind}{'' if len(names) == 1 else 's'}"
            for kind, names in (("system", program.systems), ("rule", program.rules), ("train", program.trains))
            if names
        )
        click.echo(f"{file}: no errors ({counts or 'empty'})")
