"""`python -m benchmarks`: run benchmarks, print tables, leave results behind."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import registry
from benchmarks.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from benchmarks.report import Outcome


def parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks", description="nsam against hand-written baselines, correctness first."
    )
    names = [*registry.MODULES, "profile"]
    found.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}; default: B1 to B7")
    found.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that everything runs, times mean nothing"
    )
    found.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
    found.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    found.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision of products")
    found.add_argument("--rounds", type=int, default=15, help="most rounds of a case (default 15)")
    found.add_argument("--seconds", type=float, default=30.0, help="time for the rounds of a case (default 30)")
    found.add_argument("--no-compile", action="store_true", help="without torch.compile")
    found.add_argument("--no-memory", action="store_true", help="leave memory and cold starts out: half the time")
    found.add_argument("--only", default="", metavar="TEXT", help="cases whose name has this in it")
    found.add_argument(
        "--out", type=Path, help="folder for the results (default benchmarks/results/<date>-<host kind>)"
    )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 1 when nsam was wrong or failed somewhere, 2 when no case has the name asked for, else 0."""
    options = parser().parse_args(arguments)
    names = [name if name == "profile" else name.upper() for name in options.names] or list(registry.MODULES)
    for name in names:
        if name not in registry.MODULES and name != "profile":
            parser().error(f"there is no benchmark {name!r}: {', '.join(registry.MODULES)}, profile")
    if options.rounds < 1 or (options.threads is not None and options.threads < 1):
        parser().error("--rounds and --threads are at least 1")
    settings = Settings(
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        quick=options.quick,
        rounds=options.rounds,
        seconds=options.seconds,
        compiled=not options.no_compile,
        memory=not options.no_memory,
        only=options.only,
    )
    _require_device(settings.device)
    if names == ["profile"]:
        from benchmarks import profile

        profile.run(settings, options.out)
        return 0
    # A cache of our own: the first process that needs a kernel compiles it, so that cold starts are cold.
    with tempfile.TemporaryDirectory(prefix="nsam-benchmarks-") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        return run([name for name in names if name != "profile"], settings, options.out)


def run(names: Sequence[str], settings: Settings, out: Path | None) -> int:
    """Run the benchmarks called `names`; results are written after each case, for a run may be cut off."""
    import torch

    from benchmarks import plots, report
    from benchmarks.machine import describe, host_kind
    from benchmarks.report import wide_console
    from nsam.training.allocator import keep_freed_memory

    settings.apply()
    if settings.device == "cpu":
        keep_freed_memory()  # as `nsam train` does; for the baselines too
    torch.manual_seed(0)
    console = wide_console()
    machine = describe(settings) | {"begun": datetime.datetime.now().isoformat(timespec="minutes")}
    kind = f"{host_kind(settings)}{'' if settings.dtype == 'float32' else '-' + settings.dtype}"
    if out is None:
        quick = "-quick" if settings.quick else ""
        out = registry.ROOT / "benchmarks" / "results" / f"{datetime.date.today()}-{kind}{quick}"
    for key, value in machine.items():
        console.print(f"[dim]{key}[/] {value}", highlight=False)
    outcomes: list[report.Outcome] = []
    for name in names:
        begun = time.perf_counter()
        outcomes.append(report.Outcome(name, registry.module(name).TITLE))
        for _ in _benchmark(outcomes[-1], settings, console):
            report.write(out, machine, outcomes)
        if settings.only and not outcomes[-1].cases:
            outcomes.pop()
            continue
        report.write(out, machine, outcomes)
        plots.draw(out, outcomes[-1])
        console.print(f"[dim]{name} took {time.perf_counter() - begun:.0f} s[/]")
    if not outcomes:
        return 2
    console.print(f"written to {out}")
    cases = [case for one in outcomes for case in one.cases]
    for case in cases:
        if case.unchecked:
            text = f"{case.label}: compared with nothing, no baseline ran"
            console.print(text, style="yellow", markup=False, highlight=False)
    faults = [f"{case.label}: {one.name}: {one.failed}" for case in cases for one in case.faults]
    for fault in faults:
        console.print(fault, style="red", markup=False, highlight=False)
    return 1 if faults else 0


def _require_device(name: str) -> None:
    """Leave with a usage error where this machine has no such device, or time is not measured on its kind."""
    from nsam.dsl.diagnostics import ProgramError
    from nsam.training.settings import require_device

    try:
        kind = require_device(name).type
    except ProgramError as error:
        found = error.diagnostics[0]
        parser().error("; ".join((found.message, *found.notes, *([found.help] if found.help else []))))
    if kind not in ("cpu", "cuda"):
        parser().error(f"benchmarks run on cpu and cuda, not on {kind}")


def _apart(benchmark: str, case: str, names: Sequence[str], settings: Settings, candidate: str) -> Mapping[str, Any]:
    """Measure one of the candidates called `names` in a process of its own; the others are left out."""
    from benchmarks.memory import measure_apart

    return measure_apart(benchmark, case, candidate, settings) if candidate in names else {}


def _benchmark(outcome: Outcome, settings: Settings, console: Console) -> Iterator[None]:
    """Run one benchmark; yields whenever `outcome` has a new result, which is printed."""
    from benchmarks import report
    from benchmarks.measure import run_case

    name = outcome.name
    chosen = registry.module(name)
    console.print(f"\n[bold]{name}: {chosen.TITLE}[/]")
    cases = [case for case in registry.cases(name, settings) if settings.only in case.label]
    if not cases and settings.only:
        console.print(f"no case of {name} has {settings.only!r} in its name", style="yellow")
    for i, case in enumerate(cases):
        apart = None
        if settings.quick:  # targets say nothing at these sizes, and one process is enough to show that it works
            case = dataclasses.replace(case, targets=(), roofline=None)
        if settings.memory and not (settings.quick and i):
            names = [case.candidates[0].name] if settings.quick else [one.name for one in case.candidates]
            apart = functools.partial(_apart, name, case.label, names, settings)
        outcome.cases.append(run_case(case, settings, apart))
        report.show_case(console, name, outcome.cases[-1])
        yield
    if hasattr(chosen, "readings") and not settings.only:
        for reading in chosen.readings(settings):
            outcome.readings.append(reading)
            report.show_reading(console, reading)
            yield


if __name__ == "__main__":
    sys.exit(main())
