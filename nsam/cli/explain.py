"""`nsam explain`: what the compiler derived, or what a diagnostic code means."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

import rich_click as click

from nsam.cli.command import command
from nsam.cli.options import Format, parse_pairs, with_format, with_parameters, with_passes, with_system
from nsam.cli.request import resolve

_CODE = re.compile(r"[Nn][0-9]{4}\Z")


@command("explain", short=True)
@click.argument("subject", metavar="FILE|CODE", help="A program, or a diagnostic code.")
@with_system
@with_parameters
@with_passes
@with_format
@click.option("--cost", is_flag=True, help="Operations, parameters, state and activations of each memory.")
@click.option(
    "--tokens",
    type=click.IntRange(1),
    metavar="COUNT",
    help="Length of the sequences for --cost: 512 where nothing is said.",
)
def main(
    subject: str,
    system: str | None,
    param: tuple[str, ...],
    without: tuple[str, ...],
    format: Format,
    cost: bool,
    tokens: int | None,
) -> None:
    """Explain a system: its update equations, the algorithms chosen, the passes that acted. Or a diagnostic code.

    \b
    [dim]nsam explain hope.nsam titans -p dim=64
    nsam explain hope.nsam titans -p dim=64 --cost
    nsam explain N0214[/]
    """
    if tokens and not cost:
        raise click.UsageError("--tokens is the length of the sequences for --cost")
    if _CODE.match(subject):
        given = [name for name, value in (("SYSTEM", system), ("-p", param), ("--without", without)) if value]
        given += ["--cost"] * cost + ["--format json"] * (format is not Format.text)
        if given:
            raise click.UsageError(f"a diagnostic code is explained alone: {given[0]} is for a program")
        click.echo(_code_page(subject.upper()))
        return
    params = parse_pairs(param, "--param")
    from nsam.cli.programs import load
    from nsam.compiler.passes import passes_without

    passes = passes_without(without)

    program = load(Path(subject))
    unit, train = resolve(program, system, params)
    if cost:
        from nsam.compiler.cost import cost as cost_of
        from nsam.compiler.explain_cost import cost_json, cost_text

        click.echo((cost_text if format is Format.text else cost_json)(cost_of(unit, tokens or 512, passes)))
        return
    from nsam.compiler.explain import explain as explain_unit
    from nsam.compiler.explain import explain_json

    click.echo((explain_unit if format is Format.text else explain_json)(unit, passes, train))


def _code_page(code: str) -> str:
    from nsam.dsl.codes import CODES
    from nsam.dsl.rendering import explain_code

    if code not in CODES:
        close = get_close_matches(code, CODES, 3)
        hint = f"; near it: {', '.join(close)}" if close else ""
        raise click.BadParameter(f"there is no diagnostic {code}{hint}", param_hint="CODE")
    return explain_code(code)
