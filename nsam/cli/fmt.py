"""`nsam fmt`: one layout for all programs."""

from __future__ import annotations

from pathlib import Path

import rich_click as click
from click.exceptions import Exit

from nsam.cli.command import command
from nsam.cli.guard import DIAGNOSTICS
from nsam.cli.options import PATH
from nsam.cli.output import show
from nsam.dsl.diagnostics import Diagnostic, ProgramError


@command("fmt", short=True)
@click.argument("files", metavar="FILE...", type=PATH, nargs=-1, required=True, help="Programs to format.")
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if a file is not formatted.")
def main(files: tuple[Path, ...], check: bool) -> None:
    """Rewrite programs in the standard layout. Comments and meaning stay.

    \b
    [dim]nsam fmt hope.nsam zoo.nsam
    nsam fmt --check *.nsam[/]
    """
    found: list[Diagnostic] = []
    changed = 0
    for file in files:
        try:
            changed += _format(file, check)
        except ProgramError as error:
            found.extend(error.diagnostics)
    show(found)
    if found or (check and changed):
        raise Exit(DIAGNOSTICS)


def _format(file: Path, check: bool) -> bool:
    """Format one file; return whether it was not in the standard layout."""
    from nsam.dsl.format import format_source
    from nsam.dsl.imports import read_source

    text = read_source(file).text
    formatted = format_source(text, str(file))
    if formatted == text:
        return False
    if check:
        click.echo(f"{file}: not formatted")
    else:
        from nsam.runs.atomic import write_atomic

        write_atomic(file, formatted)
        click.echo(f"{file}: formatted")
    return True
