"""Causality, batch isolation and chunk-split equality (invariants 1, 2 and 4), in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nsam.dsl.checked import Unit
from nsam.verification.report import Row, at_most, skipped
from nsam.verification.samples import Samples, gap, part, per_token
from nsam.verification.shape import Lengths, periods

EXACT = 1e-12
"""What may change by the order of additions alone."""
CUTS = 6
TOKEN_BY_TOKEN = 300
"""Longest prefix that is fed one token at a time."""


def check_causality(unit: Unit, module: nn.Module, lengths: Lengths, samples: Samples) -> Iterator[Row]:
    """Outputs up to t neither change with what comes later, nor have a gradient there."""
    time = lengths.long
    inputs = samples.inputs(2, time)
    with torch.no_grad():
        whole, _ = module(*inputs)
        worst = 0.0
        for t in _cuts(unit, time):
            found, _ = module(*_after(unit, inputs, samples.inputs(2, time), t))
            worst = _worse(worst, gap(found[:, :t], whole[:, :t], float(whole.abs().max())))
    yield at_most("causality", f"{time} tokens, later inputs changed at {len(_cuts(unit, time))} places", worst, EXACT)
    moving = [i for i, x in enumerate(inputs) if per_token(unit)[i] and x.is_floating_point()]
    if not moving:
        yield skipped("causality", "gradient of later inputs", "the inputs are tokens")
        return
    worst = 0.0
    for t in _cuts(unit, time):
        gradients = _input_gradients(module, inputs, lambda y, t=t: y[:, :t])
        worst = _worse(worst, *(_largest(gradients[i][:, t:]) for i in moving))
    yield at_most("causality", "gradient of later inputs", worst, 0.0)


def check_isolation(unit: Unit, module: nn.Module, lengths: Lengths, samples: Samples) -> Iterator[Row]:
    """A sequence's outputs neither change with the others, nor have a gradient there."""
    inputs, others = samples.inputs(3, lengths.odd), samples.inputs(3, lengths.odd)
    with torch.no_grad():
        whole, _ = module(*inputs)
        worst = 0.0
        for i in range(3):
            mixed = [torch.cat([o[:i], x[i : i + 1], o[i + 1 :]]) for x, o in zip(inputs, others, strict=True)]
            found, _ = module(*mixed)
            worst = _worse(worst, gap(found[i], whole[i], float(whole.abs().max())))
    yield at_most("batch isolation", f"{lengths.odd} tokens, the other sequences changed", worst, EXACT)
    floats = [i for i, x in enumerate(inputs) if x.is_floating_point()]
    if not floats:
        yield skipped("batch isolation", "gradient of other sequences", "the inputs are tokens")
        return
    worst = 0.0
    for i in range(3):
        gradients = _input_gradients(module, inputs, lambda y, i=i: y[i])
        rest = [j for j in range(3) if j != i]
        worst = _worse(worst, *(_largest(gradients[k][rest]) for k in floats))
    yield at_most("batch isolation", "gradient of other sequences", worst, 0.0)


def check_splits(unit: Unit, module: nn.Module, lengths: Lengths, samples: Samples, tolerance: float) -> Iterator[Row]:
    """Running in pieces, the state carried, equals running at once: outputs, and gradients through the state."""
    time = lengths.long
    inputs = samples.inputs(2, time)
    with torch.no_grad():
        whole, _ = module(*inputs)
        tokens = min(time, TOKEN_BY_TOKEN)
        ways = {"token by token": [1] * tokens + ([time - tokens] if time > tokens else [])}
        ways |= {f"{n} random pieces": samples.splits(time, n) for n in (2, 3, 5)}
        for name, sizes in ways.items():
            found = _in_pieces(unit, module, inputs, sizes)
            yield at_most("chunk splits", f"{time} tokens, {name}", gap(found, whole), tolerance)
    direction = samples.normal(*whole.shape)
    wanted = _parameter_gradients(module, (module(*inputs)[0] * direction).sum())
    pieces = _in_pieces(unit, module, inputs, samples.splits(time, 4))
    found_ = _parameter_gradients(module, (pieces * direction).sum())
    largest = max((_largest(g) for g in wanted), default=0.0)
    worst = _worse(0.0, *(gap(a, b, 1e-3 * largest + 1e-12) for a, b in zip(found_, wanted, strict=True)))
    yield at_most("chunk splits", "gradients across 4 random pieces", worst, tolerance)


def _in_pieces(unit: Unit, module: nn.Module, inputs: list[Tensor], sizes: list[int]) -> Tensor:
    state, start, found = None, 0, []
    for size in sizes:
        y, state = module(*part(unit, inputs, start, start + size), state=state)
        found.append(y)
        start += size
    return torch.cat(found, 1)


def _cuts(unit: Unit, time: int) -> list[int]:
    """Places to cut: around boundaries of the largest and the smallest period, and elsewhere."""
    every = [p for p in periods(unit) if 1 < p < time] or [time // 2]
    wanted = [1, every[0] - 1, every[0], every[-1] - 1, every[-1], every[-1] + 1, (2 * time) // 3, time - 1]
    return sorted({t for t in wanted if 0 < t < time})[: CUTS + 2]


def _after(unit: Unit, inputs: list[Tensor], others: list[Tensor], t: int) -> list[Tensor]:
    """`inputs` up to token t, `others` from there on."""
    return [
        torch.cat([x[:, :t], o[:, t:]], 1) if moves else x
        for x, o, moves in zip(inputs, others, per_token(unit), strict=True)
    ]


def _input_gradients(module: nn.Module, inputs: list[Tensor], of: object) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    y, _ = module(*leaves)
    loss = of(y).sum()  # type: ignore[operator]
    floats = [x for x in leaves if x.requires_grad]
    if not loss.requires_grad:
        return [torch.zeros(x.shape) for x in leaves]
    found = iter(torch.autograd.grad(loss, floats, allow_unused=True))
    return [_or_zeros(next(found), x) if x.requires_grad else torch.zeros(x.shape) for x in leaves]


def _parameter_gradients(module: nn.Module, loss: Tensor) -> list[Tensor]:
    parameters = [p for _, p in sorted(module.named_parameters())]
    if not parameters or not loss.requires_grad:
        return []
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [_or_zeros(g, p) for g, p in zip(found, parameters, strict=True)]


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _worse(*numbers: float) -> float:
    """The largest; NaN when there is one."""
    return next((x for x in numbers if x != x), max(numbers))
