"""The benchmarks by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from benchmarks.case import Case
from benchmarks.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    "B1": "b1_delta",
    "B2": "b2_titans",
    "B3": "b3_hope",
    "B4": "b4_transformer",
    "B5": "b5_continuum",
    "B6": "b6_optimizers",
    "B7": "b7_compiler",
}


def module(name: str) -> ModuleType:
    """Return the benchmark called `name`."""
    return importlib.import_module(f"benchmarks.{MODULES[name]}")


def cases(name: str, settings: Settings) -> list[Case]:
    """Return the cases of a benchmark; none where it takes readings of its own."""
    chosen = module(name)
    found: list[Case] = chosen.cases(settings) if hasattr(chosen, "cases") else []
    if settings.device.startswith("cuda"):
        from benchmarks.graphed import with_graphs

        found = [with_graphs(case) for case in found]
    return found


def find_case(name: str, label: str, settings: Settings) -> Case:
    """Return one case by its label."""
    return next(case for case in cases(name, settings) if case.label == label)
