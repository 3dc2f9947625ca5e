"""The commands, gathered. Nothing here may load torch or networkx: `nsam check` has half a second."""

from __future__ import annotations

from importlib import import_module

import rich_click as click

_PANELS: dict[str, tuple[str, ...]] = {
    "Programs": ("check", "fmt", "explain", "graph", "schedule"),
    "Models": ("compile", "verify", "train", "generate", "bench"),
}

_LOOK = {
    "text_markup": "rich",
    "text_paragraph_linebreaks": "\n\n",
    "padding_helptext_first_line": (0, 0, 1, 0),
    "style_option": "bold cyan",
    "style_switch": "bold green",
    "style_helptext_first_line": "",
    "options_table_column_types": ["required", "opt_short", "opt_long_metavar", "help"],
    "options_table_help_sections": ["help", "default"],
}


def _print_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"nsam {version('nsam')}")
        context.exit()


def application(first: str | None = None) -> click.RichGroup:
    """The command `nsam`; where `first`, the first argument, is the name of a command, with that command only."""
    made = click.RichGroup(
        name="nsam",
        help="A language and compiler for nested learning: declare memories and their levels, get PyTorch.",
        epilog="Set NSAM_DEBUG=1 to see the traceback of an internal error.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "rich_help_config": _LOOK},
        panels=[click.RichCommandPanel(panel, commands=list(names)) for panel, names in _PANELS.items()],
        params=[
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_print_version,
                help="Print the version and exit.",
            )
        ],
    )
    names = [name for names in _PANELS.values() for name in names]
    for name in [first] if first in names else names:
        made.add_command(import_module(f"nsam.cli.{name}").main)
    return made
