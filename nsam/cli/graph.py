"""`nsam graph`: the picture of the levels."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from nsam.cli.command import command
from nsam.cli.options import PATH, parse_pairs, with_file, with_parameters, with_system
from nsam.cli.request import resolve

ENDINGS = ("svg", "png", "pdf", "dot", "html", "mmd", "json")


@command("graph", short=True)
@with_file
@with_system
@click.option("--out", "-o", type=PATH, metavar="OUT", required=True, help=f"The picture: {', '.join(ENDINGS)}.")
@with_parameters
def main(file: Path, system: str | None, out: Path, param: tuple[str, ...]) -> None:
    """Draw the level graph: every memory a node, every transfer of knowledge an edge.

    The ending of OUT chooses the format; svg, png and pdf need Graphviz's `dot`.

    \b
    [dim]nsam graph hope.nsam -o hope.svg
    nsam graph hope.nsam titans -p dim=64 -o titans.html[/]
    """
    if out.suffix.removeprefix(".") not in ENDINGS:
        raise click.BadParameter(f"{out} should end in one of: {', '.join(ENDINGS)}", param_hint="--out")
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
    click.echo(
        f"{out}: {memories} memor{'ies' if memories != 1 else 'y'} on {levels} level{'s' if levels != 1 else ''}, "
        f"{drawn.number_of_edges()} transfer{'s' if drawn.number_of_edges() != 1 else ''}"
    )
