"""The commands, gathered. Nothing here may load torch or networkx: `nsam check` has half a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from nsam.cli import bench, check, compile, explain, fmt, generate, graph, schedule, train, verify
from nsam.cli.guard import guarded

app = typer.Typer(
    name="nsam",
    help="A language and compiler for nested learning: declare memories and their levels, get PyTorch.",
    epilog="Set NSAM_DEBUG=1 to see the traceback of an internal error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"nsam {version('nsam')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options that stand before a command."""


_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Programs": (check.check, fmt.fmt, explain.explain, graph.graph, schedule.schedule),
    "Models": (compile.compile_, verify.verify, train.train, generate.generate, bench.bench),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(_command.__name__.rstrip("_"), rich_help_panel=_panel)(guarded(_command))
