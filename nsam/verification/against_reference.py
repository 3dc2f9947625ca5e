"""Reference equality (invariant 5): values against NumPy, gradients against torch's token loop, both in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nsam.backends.reference.module import ReferenceModule, values
from nsam.backends.reference.run import new_sequence as new_sequence_reference
from nsam.backends.torch.runtime.system import new_sequence
from nsam.dsl.checked import Unit
from nsam.verification.report import Row, at_most, skipped
from nsam.verification.samples import Samples, gap
from nsam.verification.shape import Lengths

GRADIENT_FLOOR = 1e-3
"""Gradients are compared relative to their own largest entry, or to this part of the largest of all."""
BATCH = 2


def check_values(unit: Unit, module: nn.Module, lengths: Lengths, samples: Samples, tolerance: float) -> Iterator[Row]:
    """Outputs on a length that is a multiple of every period, and on one that is a multiple of none."""
    for beyond in lengths.beyond:
        yield skipped("values", f"period {beyond}", "longer than the sequences that the reference can afford")
    if lengths.even is None:
        yield skipped("values", "multiple of every period", "longer than the reference can afford")
    weights = _numpy(module)
    for time, what in ((lengths.even, "a multiple of every period"), (lengths.odd, "a multiple of none")):
        if time is None:
            continue
        inputs = samples.inputs(BATCH, time)
        wanted, before = values(unit, weights, _named(unit, inputs))
        with torch.no_grad():
            found, state = module(*inputs)
        yield _compared("values", f"{time} tokens, {what}", found, wanted, tolerance)
        if time == lengths.odd:
            length = min(5, lengths.odd)
            yield _next_sequence(unit, module, weights, samples, length, (state, before), tolerance)


def _next_sequence(
    unit: Unit,
    module: nn.Module,
    weights: dict[str, np.ndarray[Any, Any]],
    samples: Samples,
    length: int,
    states: tuple[Any, Any],
    tolerance: float,
) -> Row:
    """After `new_sequence` both start over, except for what is never reset."""
    inputs = samples.inputs(BATCH, length)
    wanted, _ = values(unit, weights, _named(unit, inputs), new_sequence_reference(states[1]))
    with torch.no_grad():
        found, _ = module(*inputs, state=new_sequence(states[0]))
    return _compared("new sequence", f"{length} tokens of the next", found, wanted, tolerance)


def _compared(check: str, subject: str, found: Tensor, wanted: np.ndarray[Any, Any], tolerance: float) -> Row:
    note = "" if np.isfinite(wanted).all() else "the reference itself is not finite here"
    return at_most(check, subject, gap(found, torch.from_numpy(wanted)), tolerance, note)


def check_gradients(
    unit: Unit, module: nn.Module, lengths: Lengths, samples: Samples, tolerance: float
) -> Iterator[Row]:
    """Gradients of every parameter, and of every input that has them, by a random linear loss."""
    reference = ReferenceModule(unit)
    reference.load_state_dict(module.state_dict())
    inputs = samples.inputs(1, lengths.gradient)
    wanted, direction = _gradients(reference, inputs, samples, None)
    found, _ = _gradients(module, inputs, samples, direction)
    largest = max((float(g.abs().max()) for g in wanted.values() if g.numel()), default=0.0)
    floor = max(GRADIENT_FLOOR * largest, 1e-12)
    gaps = {name: gap(found[name], g, floor) for name, g in wanted.items()}
    kinds = {
        "of parameters": {n: g for n, g in gaps.items() if not n.startswith("input ")},
        "of inputs": {n: g for n, g in gaps.items() if n.startswith("input ")},
    }
    for what, group in kinds.items():
        if not group:
            yield skipped("gradients", what, "there are none with a gradient")
            continue
        bad = [name for name, g in group.items() if not g <= tolerance]
        worst = next((n for n, g in group.items() if g != g), max(group, key=group.__getitem__))
        note = f"wrong in {len(bad)}: {', '.join(bad[:4])}" if bad else f"worst in {worst}"
        subject = f"{what} ({len(group)}), {lengths.gradient} tokens"
        yield at_most("gradients", subject, group[worst], tolerance, note)


def _gradients(
    module: nn.Module, inputs: list[Tensor], samples: Samples, direction: Tensor | None
) -> tuple[dict[str, Tensor], Tensor]:
    module.zero_grad()
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    y, _ = module(*leaves)
    direction = samples.normal(*y.shape) if direction is None else direction
    if y.requires_grad:
        (y * direction).sum().backward()
    tensors: dict[str, Tensor] = dict(module.named_parameters())
    tensors |= {f"input {i}": x for i, x in enumerate(leaves) if x.requires_grad}
    return {n: torch.zeros_like(t) if t.grad is None else t.grad.clone() for n, t in tensors.items()}, direction


def _numpy(module: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def _named(unit: Unit, inputs: list[Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {given.name: x.numpy() for given, x in zip(unit.inputs, inputs, strict=True)}
