"""`nsam compile`: PyTorch source from a system."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from nsam.cli.command import command
from nsam.cli.options import PATH, Value, parse_pairs, with_file, with_parameters, with_passes, with_system
from nsam.cli.request import resolve, system_name

if TYPE_CHECKING:
    from nsam.compiler.passes import Passes
    from nsam.dsl.program import Program


class Stage(StrEnum):
    """What the compiler can be asked to print on its way."""

    ast = "ast"
    graph = "graph"
    schedule = "schedule"
    plan = "plan"
    code = "code"


@command("compile")
@with_file
@with_system
@with_parameters
@with_passes
@click.option("--out", "-o", type=PATH, metavar="OUT.py", help="Where the source goes.")
@click.option("--dump", type=click.Choice(Stage), help="Print one stage of the compilation.")
def main(
    file: Path,
    system: str | None,
    param: tuple[str, ...],
    without: tuple[str, ...],
    out: Path | None,
    dump: Stage | None,
) -> None:
    """Write a system as standalone, readable PyTorch source; or print a stage of its compilation.

    \b
    [dim]nsam compile hope.nsam titans -p dim=64 -o titans.py
    nsam compile hope.nsam titans -p dim=64 --dump plan
    nsam compile hope.nsam titans -p dim=64 --without share,hoist -o plain.py[/]
    """
    if (out is None) == (dump is None):
        raise click.BadParameter("give either -o OUT.py or --dump STAGE", param_hint="--out")
    params = parse_pairs(param, "--param")
    from nsam.cli.programs import load
    from nsam.compiler.passes import passes_without

    passes = passes_without(without)
    program = load(file)
    if dump is not None:
        click.echo(_dump(file, (program, passes), dump, system, params).rstrip())
        return
    assert out is not None
    from nsam.runs.atomic import is_output, write_atomic

    source = _source((program, passes), system, params)
    write_atomic(out, source)
    click.echo(f"{out}: {len(source.splitlines()):,} lines", err=is_output(out))  # else it would be in the source


def _source(asked: tuple[Program, Passes], name: str | None, params: Mapping[str, Value]) -> str:
    """Return the Python source of a system; N0515 for a train declaration, whose loop is `nsam train`."""
    from nsam import api

    program, passes = asked
    system = system_name(program, name)
    return api.source(program, system, without=passes.without, keys=False, **params)


def _dump(
    file: Path, asked: tuple[Program, Passes], stage: Stage, name: str | None, params: Mapping[str, Value]
) -> str:
    """Return the text of one stage."""
    if stage is Stage.ast:
        from nsam.cli.tree import tree_text
        from nsam.dsl.imports import read_source
        from nsam.dsl.parser import parse

        return tree_text(parse(read_source(file)))
    if stage is Stage.code:
        return _source(asked, name, params)
    program, passes = asked
    unit, train = resolve(program, name, params)
    if stage is Stage.graph:
        from nsam.backends.graphviz.render import text
        from nsam.compiler.graph import build_graph

        return text(build_graph(unit, train), ".json")
    if stage is Stage.schedule:
        from nsam.cli.schedule import schedule_of

        return schedule_of(unit, train)
    from nsam.cli.plan_text import plan_text

    return plan_text(unit, passes)
