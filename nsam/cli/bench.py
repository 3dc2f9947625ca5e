"""`nsam bench`: the benchmarks, where they are installed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from nsam.cli.guard import DIAGNOSTICS

MODULE = "benchmarks"


def bench(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="Passed on to the benchmarks.", show_default=False)
    ] = None,
) -> None:
    """Run the benchmarks of a source checkout (the folder `benchmarks`).

    [dim]nsam bench[/]
    """
    folder = Path.cwd()
    if not (folder / MODULE / "__main__.py").is_file():
        typer.echo(
            f"There are no benchmarks in {folder}: they are part of the source checkout, not of the installed package. "
            "Run this in the root of a checkout that has `benchmarks/__main__.py`.",
            err=True,
        )
        raise typer.Exit(DIAGNOSTICS)
    sys.path.insert(0, str(folder))
    sys.argv = ["nsam bench", *(arguments or [])]
    runpy.run_module(MODULE, run_name="__main__", alter_sys=False)
