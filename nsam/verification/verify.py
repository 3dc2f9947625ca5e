"""All checks of a system, in the order in which a reader asks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from nsam.compiler.end_to_end import learns_end_to_end, predicts_its_input
from nsam.compiler.passes import ALL, Passes
from nsam.compiler.unsupported import unsupported
from nsam.dsl.checked import Unit
from nsam.verification.against_reference import check_gradients, check_values
from nsam.verification.learning import check_learning
from nsam.verification.precision import check_precision
from nsam.verification.report import Report, Row
from nsam.verification.samples import Samples
from nsam.verification.sequences import check_causality, check_isolation, check_splits
from nsam.verification.shape import Lengths, choose_lengths, places
from nsam.verification.stability import TOKENS, check_stability


def verify_unit(
    unit: Unit,
    *,
    lengths: Lengths | int | None = None,
    tolerance: float = 1e-9,
    compiled: bool = False,
    seed: int = 0,
    stability_tokens: int = TOKENS,
    passes: Passes = ALL,
) -> Report:
    """Verify a system's generated code against the reference, and the invariants that every compiled system satisfies.

    `lengths` are chosen from the system's periods; a number is the longest sequence for the reference. `compiled` runs
    the generated code through torch.compile. Raises `ProgramError` when the system has no compiled form.
    """
    from nsam.backends.torch.build import build

    return verify_module(
        unit, lambda: build(unit, compiled=compiled, passes=passes), lengths=lengths, tolerance=tolerance, seed=seed,
        stability_tokens=stability_tokens,
    )  # fmt: skip


def verify_module(
    unit: Unit,
    make: Callable[[], nn.Module],
    *,
    lengths: Lengths | int | None = None,
    tolerance: float = 1e-9,
    seed: int = 0,
    stability_tokens: int = TOKENS,
) -> Report:
    """Verify what `make` builds: a module with the parameters, inputs and states of a compiled `unit`."""
    require_targets_of_its_own(unit)
    chosen = lengths if isinstance(lengths, Lengths) else choose_lengths(unit, *([lengths] if lengths else []))
    samples = Samples(unit, seed)

    def seeded() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make()

    module = seeded().double()
    samples.perturb(module)
    rows: list[Row] = [
        *check_values(unit, module, chosen, samples, tolerance),
        *check_gradients(unit, module, chosen, samples, tolerance),
        *check_causality(unit, module, chosen, samples),
        *check_isolation(unit, module, chosen, samples),
        *check_learning(unit, module, chosen, samples),
        *check_splits(unit, module, chosen, samples, tolerance),
        *check_precision(unit, seeded, chosen, samples),
        *check_stability(unit, seeded, samples, min(stability_tokens, places(unit) or stability_tokens)),
    ]
    return Report(unit.name, tuple(rows))


def require_targets_of_its_own(unit: Unit) -> None:
    """Check that a system whose memories move by its own loss knows its targets. Raises `ProgramError` N0401."""
    if learns_end_to_end(unit) and not predicts_its_input(unit):
        raise unsupported(
            f"`{unit.name}` learns from targets that are given from outside, and there are none to verify it with",
            unit.span,
            "verify the whole model: from token(n) to [n] the targets are the input, one token later",
        )
