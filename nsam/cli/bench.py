"""`nsam bench`: the benchmarks, where they are installed."""

from __future__ import annotations

import runpy
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nsam.cli.guard import DIAGNOSTICS

MODULE = "benchmarks"


class Precision(StrEnum):
    """Precision of matrix products."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="B1 to B7, or profile. Default: B1 to B7.", show_default=False),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes: shows that everything runs; the times mean nothing.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …")] = "cpu",
    dtype: Annotated[Precision, typer.Option("--dtype", help="Precision of matrix products.")] = Precision.float32,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads.", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Most rounds of a case.")] = 15,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="Time for the rounds of a case.")] = 30,
    no_compile: Annotated[bool, typer.Option("--no-compile", help="Leave torch.compile out.")] = False,
    no_memory: Annotated[
        bool, typer.Option("--no-memory", help="Leave memory and cold starts out: about half the time.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="TEXT", help="Cases whose name has this in it.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Default: benchmarks/results/<date>-<host kind>.", show_default=False
        ),
    ] = None,
) -> None:
    """Run the benchmarks of a source checkout (the folder `benchmarks`): nsam against hand-written baselines.

    Values and gradients are compared before anything is timed. Exits 1 where they differ.

    [dim]nsam bench
    nsam bench B1 B3 --threads 2
    nsam bench --device cuda --dtype bfloat16
    nsam bench B3 --only "8 x 512"
    nsam bench profile[/]
    """
    folder = Path.cwd()
    if not (folder / MODULE / "__main__.py").is_file():
        typer.echo(
            f"There are no benchmarks in {folder}: they are part of the source checkout, not of the installed package. "
            "Run this in the root of a checkout that has `benchmarks/__main__.py`.",
            err=True,
        )
        raise typer.Exit(DIAGNOSTICS)
    arguments = [*(names or []), "--device", device, "--dtype", dtype.value]
    arguments += ["--rounds", str(rounds), "--seconds", str(seconds)]
    arguments += ["--threads", str(threads)] if threads is not None else []
    arguments += ["--only", only] if only is not None else []
    arguments += ["--out", str(out)] if out is not None else []
    flags = {"--quick": quick, "--no-compile": no_compile, "--no-memory": no_memory}
    arguments += [flag for flag, wanted in flags.items() if wanted]
    sys.path.insert(0, str(folder))
    sys.argv = ["nsam bench", *arguments]
    runpy.run_module(MODULE, run_name="__main__", alter_sys=False)
