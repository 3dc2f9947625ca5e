"""How far training in float32, and with bfloat16 operands, is from the same numbers in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from nsam.dsl.checked import Unit
from nsam.verification.report import Row
from nsam.verification.samples import Samples
from nsam.verification.shape import Lengths, places

TOKENS = 128
"""At least this many tokens, so that errors have several chunks to grow in."""
SINGLE = 1e-3
"""Largest relative error in float32, in the norm of the whole output and of all gradients together."""
AMPLIFIED = 30
"""Where the program itself turns rounding into more than that: this many times what rounding its parameters once does.
A step rounds at every operation, and its chunks feed on each other."""
WORST = 0.1
"""Never more than this: a result that rounding moves further is not one to train by."""
ROUNDINGS = 3
"""Draws of that rounding; the largest effect counts."""


def check_precision(unit: Unit, make: Callable[[], nn.Module], lengths: Lengths, samples: Samples) -> Iterator[Row]:
    """Errors of output and gradients, from the same initial parameters.

    No arithmetic is more accurate in float32 than the program lets it be: a program that amplifies small differences is
    held to a multiple of what rounding its parameters to float32 changes in float64, and to a tenth at the most.

    Weights, gates, decays, triangles and states are float32 in both; with bfloat16 the operands of products are that,
    and its errors are told without a limit: where a decision or a nearly empty key turns, one token moves everything.
    """
    time = max(TOKENS, lengths.odd, lengths.even or 0)
    inputs = samples.inputs(1, min(time, places(unit) or time))
    direction: list[Tensor] = []
    wanted = _step(make().double(), inputs, samples, direction, nullcontext())

    def amplified() -> tuple[float, float]:
        """The largest effect of rounding the parameters, on the output and on the gradients."""
        steps = (
            _step(_rounded(make().double(), samples), inputs, samples, direction, nullcontext())
            for _ in range(ROUNDINGS)
        )
        effects = [[_apart(a, b) for a, b in zip(step, wanted, strict=True)] for step in steps]
        return max(e[0] for e in effects), max(e[1] for e in effects)

    half = torch.autocast("cpu", dtype=torch.bfloat16)
    for name, products in (("float32", nullcontext()), ("bfloat16", half)):
        single = [x.float() if x.is_floating_point() else x for x in inputs]
        found = _step(make().float(), single, samples, direction, products)
        errors = [_apart(mine, exact) for mine, exact in zip(found, wanted, strict=True)]
        bounds = [SINGLE, SINGLE]
        if name == "float32" and any(error > SINGLE for error in errors):
            bounds = [min(WORST, max(SINGLE, AMPLIFIED * effect)) for effect in amplified()]
        for what, error, bound in zip(("output", "gradients"), errors, bounds, strict=True):
            subject = f"{name}, {what}, {inputs[0].shape[1]} tokens"
            good = error <= bound if name == "float32" else math.isfinite(error)
            limit = f"≤ {bound:.2g}" if name == "float32" else "finite"
            note = f"{AMPLIFIED} times what rounding the parameters changes" if SINGLE < bound < WORST else ""
            yield Row("precision", subject, "ok" if good else "failed", f"{error:.1e}", limit, note)


def _step(
    module: nn.Module,
    inputs: list[Tensor],
    samples: Samples,
    direction: list[Tensor],
    products: AbstractContextManager[object],
) -> tuple[list[Tensor], list[Tensor]]:
    """The output, and the gradients of all parameters by a random linear loss."""
    with products:
        y, _ = module(*inputs)
    if not direction:
        direction.append(samples.normal(*y.shape))
    if y.requires_grad:
        (y.double() * direction[0]).sum().backward()
    return [y.detach()], [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]


def _rounded(module: nn.Module, samples: Samples) -> nn.Module:
    """The module with every parameter off by about half a unit in the last place of float32."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + samples.normal(*parameter.shape) * 2.0**-24)
    return module


def _apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Norm of the difference over the norm of what is wanted; 0 where both are nothing."""
    apart = sum(float((a.double() - b).square().sum()) for a, b in zip(found, wanted, strict=True))
    whole = sum(float(b.square().sum()) for b in wanted)
    return math.sqrt(apart / whole if whole else apart)
