"""B7: how long checking, lowering and compiling take, and what compile time depends on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from benchmarks.case import Case, Reading
from benchmarks.measure import quartiles
from benchmarks.models import HOPE, ZOO
from benchmarks.registry import ROOT
from benchmarks.settings import Settings

TITLE = "checker and compiler"
LINES = 300
LAYERS = 48


def long_program(lines: int = LINES) -> str:
    """Return a correct program of exactly `lines` lines: the systems of examples/zoo, several times under new names."""
    head, *systems = re.split(r"(?m)^(?=system )", ZOO.read_text())
    text, copy = head, 0
    while True:
        copy += 1
        for system in systems:
            renamed = re.sub(r"^system (\w+)", rf"system \1_{copy}", system)
            if text.count("\n") + renamed.count("\n") > lines:
                return text + "#\n" * (lines - text.count("\n"))
            text += renamed


def readings(settings: Settings) -> Iterator[Reading]:
    """Take every reading, one at a time."""
    rounds = 3 if settings.quick else 15
    yield from _checking(rounds)
    yield from _lowering(1 if settings.quick else 5, 4 if settings.quick else LAYERS)
    if not settings.quick:
        yield from _compiling(settings)


def _checking(rounds: int) -> Iterator[Reading]:
    import nsam

    text = long_program()
    nsam.loads(text)  # start-up: the grammar and the standard library are read once
    yield _timed(f"check a file of {LINES} lines after start-up", lambda: nsam.loads(text), rounds, most=0.05)
    nsam.load(HOPE)
    yield _timed("check hope.nsam after start-up", lambda: nsam.load(HOPE), rounds)
    command = [sys.executable, "-m", "nsam", "check", str(HOPE)]
    label = "`nsam check hope.nsam`, the whole process"
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode

        def check() -> None:
            subprocess.run(command, check=True, capture_output=True, env=environment)

        check()
        yield _timed(label, check, rounds, most=0.5)


def _lowering(rounds: int, layers: int) -> Iterator[Reading]:
    import nsam
    from nsam.backends.torch.build import write_source

    program = nsam.load(HOPE)
    unit = program.instantiate("hope", {"layers": layers})
    label = f"lower hope with {layers} layers"
    yield _timed(f"{label}: check and instantiate", lambda: program.instantiate("hope", {"layers": layers}), rounds)
    yield _timed(f"{label}: write_source", lambda: write_source(unit), rounds)
    whole = f"{label}: everything before torch.compile"
    yield _timed(whole, lambda: nsam.compile(nsam.load(HOPE), "hope", layers=layers), rounds, most=1.0)


def _timed(label: str, work: Callable[[], object], rounds: int, most: float | None = None) -> Reading:
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    q1, median, q3 = quartiles(seconds)
    return Reading(label, median, "s", (q1, q3), most)


FIRST_STEP = """
import json, sys, time
import torch
import nsam
path, layers, context, device, threads = json.loads(sys.argv[1])
if threads:
    torch.set_num_threads(threads)
if device != "cpu":
    torch.cuda.set_device(torch.device(device).index or 0)
module = nsam.compile(nsam.load(path), "hope", layers=layers).to(device)
tokens = torch.randint(0, 256, (1, context), device=device)
def step():
    begun = time.perf_counter()
    float(module(tokens)[0].square().mean().backward() or 0)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begun
first = step()
step()
print(json.dumps([first, step()]))
"""


def first_step(layers: int, context: int, settings: Settings, cache: str) -> float:
    """Seconds of hope's first step above a later one, in a fresh process: what compilation costs."""
    asked = json.dumps([str(HOPE), layers, context, settings.device, settings.threads])
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    found = subprocess.run(
        [sys.executable, "-c", FIRST_STEP, asked], check=True, capture_output=True, text=True, env=environment, cwd=ROOT
    )
    first, later = json.loads(found.stdout.strip().splitlines()[-1])
    return float(first - later)


def _compiling(settings: Settings) -> Iterator[Reading]:
    with tempfile.TemporaryDirectory() as shared:
        cold = first_step(2, 512, settings, shared)
        yield Reading("first step of hope, 2 layers, 512 tokens, cold", cold, "s", most=60.0)
        warm = first_step(2, 512, settings, shared)
        yield Reading("first step of hope, 2 layers, 512 tokens, second start", warm, "s", most=8.0)
    for series, sizes in (
        ("tokens (2 layers)", [(2, n) for n in (512, 2048, 8192)]),
        ("layers (512 tokens)", [(n, 512) for n in (1, 2, 4, 8)]),
    ):
        base: float | None = None
        for layers, context in sizes:
            with tempfile.TemporaryDirectory() as cache:
                seconds = first_step(layers, context, settings, cache)
            base = base or seconds
            x = context if series.startswith("tokens") else layers
            # Flat: within a fifth of the smallest size's.
            yield Reading(f"compile hope, {layers} layers, {context} tokens", seconds, "s", None, 1.2 * base, series, x)


def checks() -> list[Case]:
    """Nothing to compare."""
    return []
