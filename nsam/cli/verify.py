"""`nsam verify`: the compiled module against the reference, and the six invariants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click
from click.exceptions import Exit

from nsam.cli.command import command
from nsam.cli.guard import DIAGNOSTICS
from nsam.cli.options import Value, parse_pairs, with_file, with_parameters, with_passes, with_system
from nsam.cli.request import unknown

if TYPE_CHECKING:
    from nsam.dsl.program import Program

SMALL = 8
"""Default for `dim` here: equality does not depend on the size, and the reference is slow."""


@command("verify")
@with_file
@with_system
@with_parameters
@with_passes
def main(file: Path, system: str | None, param: tuple[str, ...], without: tuple[str, ...]) -> None:
    """Compare compiled systems with the token-by-token reference: values, gradients and the six invariants.

    Without SYSTEM every system of the file is verified; `dim` is 8 unless given.

    \b
    [dim]nsam verify hope.nsam
    nsam verify hope.nsam titans -p dim=8 -p chunk=4 -p slow=8
    nsam verify hope.nsam titans --without all[/]
    """
    params = parse_pairs(param, "--param")
    from nsam.cli.programs import load

    program = load(file)
    if system is not None and system not in program.systems:
        raise unknown(program, system)
    from nsam import api

    failed = []
    for name in [system] if system is not None else list(program.systems):
        given = _small(program, name, params, every=system is None)
        click.echo(f"{name}({', '.join(f'{key} = {value}' for key, value in given.items())})")
        report = api.verify(program, name, without=without, **given)
        click.echo(report.text.split("\n", 1)[1])  # the first line is the name again
        if not report.ok:
            failed.append(name)
    if failed:
        click.echo(f"checks failed: {', '.join(failed)}", err=True)
        raise Exit(DIAGNOSTICS)


def _small(program: Program, name: str, params: Mapping[str, Value], every: bool) -> dict[str, Value]:
    """Return the parameters for one system: those given (`every`: only those that it declares), and a small `dim`."""
    declared = {parameter.name for parameter in program.parameters(name)}
    given = {key: value for key, value in params.items() if key in declared or not every}
    return ({"dim": SMALL} if "dim" in declared else {}) | given
