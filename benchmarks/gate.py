"""Correctness before speed: candidates of a case must give the same values and gradients."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from benchmarks.case import Case
from benchmarks.settings import EXACT, Build

FLOOR = 1e-4
"""A tensor counts as at least this fraction of the largest one of its kind, so that noise in a zero is no error."""


def largest_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """Return the largest relative error over all tensors, |found − expected| / |expected|, and where it is.

    Infinite where a tensor is missing, has another shape, or is not finite.
    """
    if found.keys() != expected.keys():
        return float("inf"), ", ".join(sorted(found.keys() ^ expected.keys()))
    kinds: dict[str, float] = {}
    sizes = {name: float(x.double().norm()) for name, x in expected.items()}
    for name, size in sizes.items():
        kind = name.split(" ")[0]
        kinds[kind] = max(kinds.get(kind, 0.0), size)
    worst, where = 0.0, ""
    for name, x in expected.items():
        if found[name].shape != x.shape:
            return float("inf"), name
        gap = float((found[name].double() - x.double()).norm())
        scale = max(sizes[name], FLOOR * kinds[name.split(" ")[0]])
        error = gap / scale if scale else gap
        if not error <= worst:  # also for NaN
            worst, where = error if error == error else float("inf"), name
    return worst, where


def check(case: Case, build: Build = EXACT) -> dict[str, tuple[float, str, bool]]:
    """Compare every candidate of a case with its last one: name to (largest error, where, within tolerance)."""
    plain = case.candidates[-1]
    expected = plain.make(build).evaluate()
    found = {}
    for candidate in case.candidates[:-1]:
        error, where = largest_error(candidate.make(build).evaluate(), expected)
        found[candidate.name] = (error, where, error <= candidate.tolerance[build.dtype])
    return found
