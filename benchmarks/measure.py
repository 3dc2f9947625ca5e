"""Timing: every candidate once in every round, and the machine's matrix-product rate in the same rounds."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo

from benchmarks.case import Case, Skipped, Workload
from benchmarks.gate import largest_error
from benchmarks.machine import matrix_product, synchronize
from benchmarks.settings import Build, Settings

LEAST_ROUNDS = 3
OURS = "nsam"
"""How the names of nsam's candidates begin."""
Spread = tuple[float, float, float]
"""First quartile, median, third quartile."""


@dataclass
class CandidateResult:
    """What was found about one candidate. Times in seconds a step, memory in bytes.

    `slower` is its time over nsam's, taken round by round. `first` is the first step in the timing process, compilation
    included (from a warm cache where `cold`, that of a fresh process with an empty cache, was measured before).
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    spread: Spread | None = None
    slower: Spread | None = None
    roofline: float | None = None
    first: float | None = None
    cold: float | None = None
    step_memory: int | None = None
    process_memory: int | None = None
    error: float | None = None
    failed: str = ""
    note: str = ""

    @property
    def fault(self) -> bool:
        """Whether nsam itself is wrong here, or does not run; what was skipped says nothing."""
        return self.name.startswith(OURS) and bool(self.failed) and not self.failed.startswith(Skipped.__name__)


@dataclass
class TargetResult:
    """A target, what was measured, and whether it is met (None: could not be measured)."""

    what: str
    wanted: float
    found: float | None
    met: bool | None


@dataclass
class CaseResult:
    """What was found about one case. `rate` is that of large matrix products in the same rounds, FLOP/s."""

    label: str
    tokens: int
    flops: float
    series: str
    x: float | None
    rate: Spread | None = None
    candidates: list[CandidateResult] = field(default_factory=list)
    targets: list[TargetResult] = field(default_factory=list)
    checked_against: str = ""

    @property
    def faults(self) -> list[CandidateResult]:
        """What of nsam is wrong or does not run."""
        return [one for one in self.candidates if one.fault]

    @property
    def unchecked(self) -> bool:
        """Whether values of nsam are those of nothing but nsam: no baseline ran that does the same."""
        ran = any(one.name.startswith(OURS) and not one.failed for one in self.candidates)
        return ran and (not self.checked_against or self.checked_against.startswith(OURS))


def quartiles(values: Sequence[float]) -> Spread:
    """First quartile, median and third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    q1, q2, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, q2, q3


def run_case(case: Case, settings: Settings, apart: Callable[[str], Mapping[str, Any]] | None = None) -> CaseResult:
    """Check the candidates against each other, then time those that are right.

    `apart` measures one candidate's memory and cold start in a process of its own, before anything is compiled here.
    """
    torch._dynamo.reset()  # functions that cases share are compiled for each case anew, within torch's limit
    build = settings.build()
    result = CaseResult(case.label, case.tokens, case.flops, case.series, case.x)
    result.candidates = [CandidateResult(c.name, note=c.note) for c in case.candidates]
    if apart is not None:
        for one in result.candidates:
            found = apart(one.name)
            one.cold, one.step_memory, one.process_memory = (found.get(k) for k in ("cold", "step", "process"))
            one.failed = found.get("failed", "")
    ready = _checked(case, result, build)
    if ready:
        _time(ready, result, settings, build)
    _judge(case, result)
    gc.collect()
    return result


def _checked(case: Case, result: CaseResult, build: Build) -> dict[str, Workload]:
    """Build the candidates and compare each with the last one that runs; return those that are right."""
    ready: dict[str, Workload] = {}
    expected: Mapping[str, torch.Tensor] | None = None
    for candidate, one in reversed(list(zip(case.candidates, result.candidates, strict=True))):
        if one.failed:
            continue
        try:
            workload = candidate.make(build)
            begun = time.perf_counter()
            found = workload.evaluate()
            synchronize(build.device)
        except (Skipped, MemoryError, RuntimeError, torch.OutOfMemoryError) as error:
            one.failed = reason(error)
            continue
        one.first = time.perf_counter() - begun
        tolerance = candidate.tolerance[build.dtype]
        if tolerance < math.inf:  # infinite: other mathematics, on purpose
            one.error, where = largest_error(found, found if expected is None else expected)
            if not one.error <= tolerance:
                one.failed = f"wrong: relative error {one.error:.1e} in {where}, not timed"
                continue
            if expected is None:
                expected, result.checked_against = {name: x.clone() for name, x in found.items()}, one.name
        ready[one.name] = workload
    return {one.name: ready[one.name] for one in result.candidates if one.name in ready}


def reason(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _time(ready: Mapping[str, Workload], result: CaseResult, settings: Settings, build: Build) -> None:
    product, flops = matrix_product(build, settings.quick)
    work: dict[str, Callable[[], object]] = {name: w.step for name, w in ready.items()} | {"": product}
    shortest = 0.0 if settings.quick else settings.shortest
    repeats = {name: _repeats(step, shortest, build) for name, step in work.items()}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    begun = time.perf_counter()
    rounds = LEAST_ROUNDS if settings.quick else settings.rounds
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() - begun > settings.seconds:
            break
        for name, step in work.items():
            seconds[name].append(_seconds(step, repeats[name], build))
    result.rate = quartiles([flops / s for s in seconds[""]])
    ours = seconds.get(result.candidates[0].name)
    for one in result.candidates:
        if one.name in ready:
            one.seconds = seconds[one.name]
            one.spread = quartiles(one.seconds)
            one.slower = quartiles([s / t for s, t in zip(one.seconds, ours, strict=True)]) if ours else None
            if result.flops:
                fractions = [result.flops * p / flops / s for s, p in zip(one.seconds, seconds[""], strict=True)]
                one.roofline = statistics.median(fractions)


def _seconds(step: Callable[[], object], repeats: int, build: Build) -> float:
    synchronize(build.device)
    begun = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize(build.device)
    return (time.perf_counter() - begun) / repeats


def _repeats(step: Callable[[], object], shortest: float, build: Build) -> int:
    """How often to repeat a step so that one measurement is not shorter than `shortest`; warms up on the way."""
    step()
    once = _seconds(step, 1, build)
    return max(1, math.ceil(shortest / max(once, 1e-7)))


def _judge(case: Case, result: CaseResult) -> None:
    by_name = {one.name: one for one in result.candidates}
    ours = result.candidates[0]
    for target in case.targets:
        other = by_name[target.against]
        found = None
        if target.what == "memory":
            if other.step_memory and ours.step_memory:
                found = other.step_memory / ours.step_memory
        elif other.slower is not None and ours.spread is not None:
            found = other.slower[1]
        words = f"{target.what}, times better than {target.against}"
        result.targets.append(
            TargetResult(words, target.least, found, None if found is None else found >= target.least)
        )
    if case.roofline is not None:
        met = None if ours.roofline is None else ours.roofline >= case.roofline
        result.targets.append(TargetResult("fraction of the matrix-product rate", case.roofline, ours.roofline, met))
