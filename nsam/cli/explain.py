"""`nsam explain`: what the compiler derived, or what a diagnostic code means."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from nsam.cli.options import Format, OutputFormat, Parameters, System, Without, parse_pairs
from nsam.cli.request import resolve

_CODE = re.compile(r"[Nn][0-9]{4}\Z")


def explain(
    subject: Annotated[
        str, typer.Argument(metavar="FILE|CODE", help="A program, or a diagnostic code.", show_default=False)
    ],
    system: System = None,
    param: Parameters = None,
    without: Without = None,
    output: OutputFormat = Format.text,
    cost: Annotated[
        bool, typer.Option("--cost", help="Operations, parameters, state and activations of each memory.")
    ] = False,
    tokens: Annotated[int, typer.Option(min=1, help="Length of the sequences for --cost.")] = 512,
) -> None:
    """Explain a system: its update equations, the algorithms chosen, the passes that acted. Or a diagnostic code.

    [dim]nsam explain hope.nsam titans -p dim=64
    nsam explain hope.nsam titans -p dim=64 --cost
    nsam explain N0214[/]
    """
    if _CODE.match(subject):
        typer.echo(_code_page(subject.upper()))
        return
    params = parse_pairs(param, "--param")
    from nsam.cli.programs import load
    from nsam.compiler.passes import passes_without

    passes = passes_without(without or ())

    program = load(Path(subject))
    unit, train = resolve(program, system, params)
    if cost:
        from nsam.compiler.cost import cost as cost_of
        from nsam.compiler.explain_cost import cost_text

        typer.echo(cost_text(cost_of(unit, tokens, passes)))
        return
    from nsam.compiler.explain import explain as explain_unit
    from nsam.compiler.explain import explain_json

    typer.echo((explain_unit if output is Format.text else explain_json)(unit, passes, train))


def _code_page(code: str) -> str:
    from nsam.dsl.codes import CODES
    from nsam.dsl.rendering import explain_code

    if code not in CODES:
        close = get_close_matches(code, CODES, 3)
        hint = f"; near it: {', '.join(close)}" if close else ""
        raise typer.BadParameter(f"there is no diagnostic {code}{hint}", param_hint="CODE")
    return explain_code(code)
