"""What this machine is, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.settings import Build, Settings


def processor() -> str:
    """Return the CPU's name."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def describe(settings: Settings) -> dict[str, object]:
    """Return hardware, threads and versions, for the record of a run."""
    found: dict[str, object] = {
        "device": settings.device,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nsam": version("nsam"),
        "dtype": settings.dtype,
        "compiled": settings.compiled,
        "quick": settings.quick,
    }
    if settings.device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(settings.device))
        found |= {"gpu": properties.name, "gpu memory": properties.total_memory, "cuda": torch.version.cuda}
    try:
        found["load"] = os.getloadavg()[0]
    except OSError:
        found["load"] = None
    return found


def host_kind(settings: Settings) -> str:
    """Return a short name of the kind of machine, for the results folder: `cpu-2-threads`, `nvidia-h200`."""
    if settings.device.startswith("cuda"):
        name = torch.cuda.get_device_name(torch.device(settings.device))
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"cpu-{torch.get_num_threads()}-threads"


def matrix_product(build: Build, quick: bool) -> tuple[Callable[[], object], float]:
    """Return a product of large square matrices in the run's precision, and its FLOPs."""
    size = 256 if quick else (8192 if build.device.type == "cuda" else 1024)
    dtype = torch.bfloat16 if build.dtype is torch.bfloat16 else build.stored
    a, b = (torch.randn(size, size, device=build.device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2.0 * size**3


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def available_memory(device: torch.device) -> float:
    """Return the bytes that a step may still take; infinite where that is not known."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return 1024.0 * int(found.group(1)) if found else float("inf")
