"""The commands, gathered. Nothing here may load torch or networkx: `nsam check` has half a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from nsam.cli import bench, check, compile, explain, fmt, generate, graph, schedule, train, verify
from nsam.cli.guard import guarded
from nsam.dsl.collector import paused

_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Programs": (check.check, fmt.fmt, explain.explain, graph.graph, schedule.schedule),
    "Models": (compile.compile_, verify.verify, train.train, generate.generate, bench.bench),
}


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"nsam {version('nsam')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options that stand before a command."""


def application(first: str | None = None) -> typer.Typer:
    """The command `nsam`; where `first`, the first argument, is the name of a command, with that command only.

    typer prepares all options of all commands it knows before it runs one.
    """
    made = typer.Typer(
        name="nsam",
        help="A language and compiler for nested learning: declare memories and their levels, get PyTorch.",
        epilog="Set NSAM_DEBUG=1 to see the traceback of an internal error.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_options)
    named = [(panel, f, f.__name__.rstrip("_")) for panel, commands in _PANELS.items() for f in commands]
    for panel, command, name in [each for each in named if each[2] == first] or named:
        short = panel == "Programs"  # over before there is anything to collect
        made.command(name, rich_help_panel=panel)(guarded(paused()(command) if short else command))
    return made
