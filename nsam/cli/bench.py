"""`nsam bench`: the benchmarks, where they are installed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import rich_click as click
from click.exceptions import Exit

from nsam.cli.command import command
from nsam.cli.guard import DIAGNOSTICS
from nsam.cli.options import PATH, NumberRange, Precision, with_device, with_threads

MODULE = "benchmarks"


@command("bench")
@click.argument("names", metavar="NAME", nargs=-1, help="B1 to B7, or profile. Default: B1 to B7.")
@click.option("--quick", is_flag=True, help="Tiny sizes: shows that everything runs; the times mean nothing.")
@with_device
@click.option(
    "--dtype",
    type=click.Choice(Precision),
    default=Precision.float32,
    show_default=True,
    help="Precision of matrix products.",
)
@with_threads
@click.option(
    "--rounds",
    type=click.IntRange(1),
    metavar="COUNT",
    default=15,
    show_default=True,
    help="Most rounds of a case.",
)
@click.option(
    "--seconds",
    type=NumberRange(0),
    metavar="SECONDS",
    default=30,
    show_default=True,
    help="Time for the rounds of a case.",
)
@click.option("--no-compile", is_flag=True, help="Leave torch.compile out.")
@click.option("--no-memory", is_flag=True, help="Leave memory and cold starts out: about half the time.")
@click.option("--only", metavar="TEXT", help="Cases whose name has this in it.")
@click.option("--out", type=PATH, metavar="DIR", help="Default: benchmarks/results/<date>-<host kind>.")
def main(
    names: tuple[str, ...],
    quick: bool,
    device: str,
    dtype: Precision,
    threads: int | None,
    rounds: int,
    seconds: float,
    no_compile: bool,
    no_memory: bool,
    only: str | None,
    out: Path | None,
) -> None:
    """Run the benchmarks of a source checkout (the folder `benchmarks`): nsam against hand-written baselines.

    Values and gradients are compared before anything is timed. Exits 1 where nsam's differ, or nsam does not run.

    \b
    [dim]nsam bench
    nsam bench B1 B3 --threads 2
    nsam bench --device cuda --dtype bfloat16
    nsam bench B3 --only "8 x 512"
    nsam bench profile[/]
    """
    folder = Path.cwd()
    if not (folder / MODULE / "__main__.py").is_file():
        click.echo(
            f"There are no benchmarks in {folder}: they are part of the source checkout, not of the installed package. "
            "Run this in the root of a checkout that has `benchmarks/__main__.py`.",
            err=True,
        )
        raise Exit(DIAGNOSTICS)
    arguments = [*names, "--device", device, "--dtype", dtype.value]
    arguments += ["--rounds", str(rounds), "--seconds", str(seconds)]
    arguments += ["--threads", str(threads)] if threads is not None else []
    arguments += ["--only", only] if only is not None else []
    arguments += ["--out", str(out)] if out is not None else []
    flags = {"--quick": quick, "--no-compile": no_compile, "--no-memory": no_memory}
    arguments += [flag for flag, wanted in flags.items() if wanted]
    sys.path.insert(0, str(folder))
    sys.argv = ["nsam bench", *arguments]
    runpy.run_module(MODULE, run_name="__main__", alter_sys=False)
