"""Peak memory and cold start of one candidate, in a process of its own: `python -m benchmarks.memory …`.

On CPU the peak of the resident set during one step above what was resident before it, after a first step and after
freed memory went back to the system; on CUDA the peak of torch's allocator above what was allocated before.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import registry
from benchmarks.case import Skipped
from benchmarks.machine import synchronize
from benchmarks.measure import reason
from benchmarks.settings import Settings


def measure_apart(benchmark: str, case: str, candidate: str, settings: Settings) -> dict[str, Any]:
    """Return {"cold": seconds of the first step, "step": bytes, "process": bytes} or {"failed": why}.

    Runs in a fresh process with the caller's environment, so that its cache of compiled code is the caller's.
    """
    command = [sys.executable, "-m", "benchmarks.memory", benchmark, case, candidate, settings.text()]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=registry.ROOT)
    except subprocess.TimeoutExpired:
        return {"failed": "no result within 30 minutes"}
    if found.returncode < 0:
        return {"failed": f"ended by signal {-found.returncode} (out of memory?)"}
    if found.returncode:
        return {"failed": (found.stderr.strip().splitlines() or ["no message"])[-1]}
    result: dict[str, Any] = json.loads(found.stdout.strip().splitlines()[-1])
    return result


def resident(what: str) -> int:
    """Return `VmRSS` or `VmHWM` of this process in bytes; the peak since its start where the system has neither."""
    try:
        found = re.search(rf"^{what}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return 1024 * (int(found.group(1)) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def give_back() -> None:
    """Return freed memory to the system."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # not glibc: the peak then includes memory that is free inside the process
        return


def step_memory(step: Callable[[], object], device: torch.device) -> int | None:
    """Return the peak of one step above what was in use before it; None where the peak cannot be reset."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = resident("VmRSS")
    step()
    return max(0, resident("VmHWM") - before)


def main(benchmark: str, case: str, candidate: str, text: str) -> None:
    """Measure one candidate and print what was found as JSON."""
    settings = Settings(**json.loads(text))
    settings.apply()
    torch.manual_seed(0)
    chosen = registry.find_case(benchmark, case, settings)
    build = settings.build()
    try:
        workload = next(c for c in chosen.candidates if c.name == candidate).make(build)
    except Skipped as error:
        print(json.dumps({"failed": reason(error)}))
        return
    begun = time.perf_counter()
    workload.step()
    synchronize(build.device)
    cold = time.perf_counter() - begun
    workload.step()
    peak = step_memory(workload.step, build.device)
    process = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"cold": cold, "step": peak, "process": process, "pid": os.getpid()}))


if __name__ == "__main__":
    main(*sys.argv[1:5])
