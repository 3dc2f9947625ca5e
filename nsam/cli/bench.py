"""`nsam bench`: the benchmarks, where they are installed."""

from __future__ import annotations

import importlib.util
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
    sys.path.insert(0, str(Path.cwd()))
    if importlib.util.find_spec(f"{MODULE}.__main__" if (Path(MODULE) / "__init__.py").exists() else MODULE) is None:
        typer.echo(
            "There are no benchmarks here: they are part of the source checkout, not of the installed package. Run "
            "this in the root of a checkout that has a folder `benchmarks`.",
            err=True,
        )
        raise typer.Exit(DIAGNOSTICS)
    sys.argv = ["nsam bench", *(arguments or [])]
    runpy.run_module(MODULE, run_name="__main__", alter_sys=False)
