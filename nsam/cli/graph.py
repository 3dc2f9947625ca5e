"""`nsam graph`: the picture of the levels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nsam.cli.options import File, Parameters, System, parse_pairs
from nsam.cli.request import resolve

ENDINGS = ("svg", "png", "pdf", "dot", "html", "mmd", "json")


def graph(
    file: File,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="OUT", help=f"The picture: {', '.join(ENDINGS)}.", show_default=False),
    ],
    system: System = None,
    param: Parameters = None,
) -> None:
    """Draw the level graph: every memory a node, every transfer of knowledge an edge.

    The ending of OUT chooses the format; svg, png and pdf need Graphviz's `dot`.

    [dim]nsam graph hope.nsam -o hope.svg
    nsam graph hope.nsam titans -p dim=64 -o titans.html[/]
    """
    if out.suffix.removeprefix(".") not in ENDINGS:
        raise typer.BadParameter(f"{out} should end in one of: {', '.join(ENDINGS)}", param_hint="--out")
    params = parse_pairs(param, "--param")
    from nsam.cli.programs import load

    program = load(file)
    unit, train = resolve(program, system, params)
    from nsam.backends.graphviz.render import render
    from nsam.compiler.graph import build_graph

    drawn = build_graph(unit, train)
    render(drawn, out)
    memories = sum(data["role"] != "training" for _, data in drawn.nodes(data=True))
    levels = len({data["level"] for _, data in drawn.nodes(data=True)})
    typer.echo(
        f"{out}: {memories} memor{'ies' if memories != 1 else 'y'} on {levels} level{'s' if levels != 1 else ''}, "
        f"{drawn.number_of_edges()} transfer{'s' if drawn.number_of_edges() != 1 else ''}"
    )
