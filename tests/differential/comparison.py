"""One program through the compiled code and through the reference: outputs, gradients, carried states."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from nsam.backends.reference.module import ReferenceModule, values
from nsam.backends.torch import build as torch_backend
from nsam.compiler.checks import check_unit
from nsam.compiler.end_to_end import learns_end_to_end
from nsam.compiler.passes import passes_without
from nsam.dsl.checked import Unit
from nsam.dsl.diagnostics import ProgramError, Report
from nsam.dsl.program import Program
from nsam.verification.samples import Samples, gap, part

SYSTEM = "s"
TOLERANCE = 1e-8
NOT_COMPILED = "N0401"
NOT_INTERPRETED = "N0490"


@dataclass(frozen=True)
class Case:
    """A program, and what it is run on: `batch` sequences of `time` tokens, everything drawn from `seed`.

    The passes `without` are switched off.
    """

    text: str
    seed: int
    time: int
    batch: int = 2
    compiled: bool = False
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a case: gaps by name, or why there are none."""

    gaps: dict[str, float] = field(default_factory=dict)
    skipped: str = ""
    error: Exception | None = None
    stage: str = ""

    def failures(self, tolerance: float = TOLERANCE) -> dict[str, float]:
        """The gaps that are too wide; NaN is."""
        return {name: size for name, size in self.gaps.items() if not size <= tolerance}

    def kinds(self, tolerance: float = TOLERANCE) -> frozenset[str]:
        """In which ways it fails: `values`, `gradient`, `tokens`, `pieces`, or an exception and where it arose."""
        if self.error is not None:
            return frozenset({f"{type(self.error).__name__} while {self.stage}"})
        return frozenset(name.split()[0] for name in self.failures(tolerance))

    def worst(self) -> float:
        """The widest gap; infinite where one is not a number."""
        return max((math.inf if math.isnan(size) else size for size in self.gaps.values()), default=0.0)


def check(text: str) -> Unit:
    """The checked program. Raises `ProgramError` when the checker or the level graph refuses it."""
    unit = Program.loads(text).instantiate(SYSTEM, {})
    findings = Report()
    check_unit(unit, report=findings)
    findings.raise_if_failed()
    return unit


def compare(case: Case) -> Outcome:
    """Run a case. Raises `ProgramError` when the program is not valid; all else is an outcome."""
    unit = check(case.text)
    run = Run(case, unit)
    try:
        return run.outcome()
    except Exception as error:  # whatever generated code raises is a finding
        return Outcome(error=error, stage=run.stage)


def by_rounding(case: Case) -> dict[str, float]:
    """The gaps between the reference and itself where each parameter is a rounding error off.

    A program may divide by what is nothing but rounding (a normalised vector of one number has no gradient, and
    orthogonalize makes it as large as any): of such a one nothing can be said.
    """
    unit = check(case.text)
    module = compiled_module(case, unit)
    assert module is not None
    samples = Samples(unit, case.seed + 1)
    inputs = samples.inputs(case.batch, case.time)
    near, reference = ReferenceModule(unit), ReferenceModule(unit)
    for each in (near, reference):
        each.load_state_dict(module.state_dict())
    draw = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for p in near.parameters():
            p.mul_(1 + 1e-15 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    (y, _), (expected, _) = near(*inputs), reference(*inputs)
    gaps = dict(gradient_gaps(near, reference, samples.normal(*expected.shape), y, expected))
    return {**gaps, **dict.fromkeys(("values", "tokens", "pieces"), gap(y.detach(), expected.detach()))}


def only_rounding(case: Case, outcome: Outcome) -> bool:
    """Whether the reference moves as far by itself, wherever a gap is too wide."""
    failures = outcome.failures()
    if not failures:
        return False
    moved = by_rounding(case)
    return all(size <= 10 * moved[name] for name, size in failures.items())


class Run:
    """A case on its way; `stage` says how far it has come."""

    def __init__(self, case: Case, unit: Unit) -> None:
        self.case = case
        self.unit = unit
        self.stage = "building"

    def outcome(self) -> Outcome:
        case, unit = self.case, self.unit
        module = compiled_module(case, unit)
        if module is None:
            return Outcome(skipped="no compiled form")
        samples = Samples(unit, case.seed + 1)
        inputs = samples.inputs(case.batch, case.time)
        self.stage = "running the reference"
        reference = ReferenceModule(unit)
        reference.load_state_dict(module.state_dict())
        try:
            expected, _ = reference(*inputs)
            wanted = numpy_values(unit, module, inputs)
        except ProgramError as error:
            if {d.code for d in error.diagnostics} != {NOT_INTERPRETED}:
                raise
            return Outcome(skipped=f"not in the reference: {error}")
        wanted = expected.detach() if wanted is None else wanted
        if not torch.isfinite(wanted).all():
            return Outcome(skipped="the memory diverges")
        self.stage = "running"
        y, _ = module(*inputs)
        self.stage = "differentiating"
        gaps = dict(gradient_gaps(module, reference, samples.normal(*wanted.shape), y, expected))
        gaps["values"] = gap(y, wanted)
        if case.compiled:  # pieces of a block are not compiled
            return Outcome(gaps)
        self.stage = "running in pieces"
        for name, sizes in {"tokens": [1] * case.time, "pieces": samples.splits(case.time, 3)}.items():
            gaps[name] = gap(in_pieces(unit, module, inputs, sizes), wanted)
        return Outcome(gaps)


def compiled_module(case: Case, unit: Unit) -> nn.Module | None:
    """The compiled module; None where the compiler says that it has no form for the program."""
    torch.manual_seed(case.seed)
    try:
        module = torch_backend.build(unit, compiled=case.compiled, passes=passes_without(case.without)).double()
    except ProgramError as error:
        if {d.code for d in error.diagnostics} != {NOT_COMPILED}:
            raise
        return None
    Samples(unit, case.seed).perturb(module)
    return module


def numpy_values(unit: Unit, module: nn.Module, inputs: list[Tensor]) -> Tensor | None:
    """The output of the NumPy reference; None where it does not run what the torch reference runs."""
    if learns_end_to_end(unit):
        return None
    weights = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    given = {i.name: x.numpy() for i, x in zip(unit.inputs, inputs, strict=True)}
    return torch.from_numpy(np.asarray(values(unit, weights, given)[0]))


def gradient_gaps(
    module: nn.Module, reference: nn.Module, direction: Tensor, y: Tensor, expected: Tensor
) -> Iterator[tuple[str, float]]:
    """The gap of each parameter's gradient, relative to its own size or a part of the largest of all."""
    for output in (y, expected):
        if output.requires_grad:  # not so where no parameter reaches the output yet
            (output * direction).sum().backward()
    wanted = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in reference.named_parameters()}
    floor = 1e-3 * max((float(g.abs().max()) for g in wanted.values()), default=0.0) + 1e-9
    for name, parameter in module.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        yield f"gradient of {name}", gap(grad, wanted[name], floor)


def in_pieces(unit: Unit, module: nn.Module, inputs: list[Tensor], sizes: list[int]) -> Tensor:
    """The output, computed in pieces with the state carried."""
    state, start, pieces = None, 0, []
    with torch.no_grad():
        for size in sizes:
            y, state = module(*part(unit, inputs, start, start + size), state=state)
            pieces.append(y)
            start += size
    return torch.cat(pieces, 1)


def retold(case: Case, **changes: object) -> Case:
    """The case with something changed."""
    return replace(case, **changes)  # type: ignore[arg-type]
