"""Every parameter learns (invariant 3): a non-zero outer gradient, unless the program itself says no."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from nsam.compiler.checks import has_parameter
from nsam.compiler.gradients import Stop, reached
from nsam.dsl.checked import Unit
from nsam.verification.report import Row, skipped
from nsam.verification.samples import Samples
from nsam.verification.shape import Lengths, placed

REASONS = {
    "direct": "the only way to the output is a `direct` transfer into `{by}`",
    "rule": "the only way to the output is through rule `{by}`, whose derivative is zero",
    "function": "the only way to the output is through `{by}`, whose derivative is zero",
    "frozen": "the only way to the output is what `{by}` learns, and it has frequency 0",
}


def check_learning(unit: Unit, module: nn.Module, lengths: Lengths, samples: Samples) -> Iterator[Row]:
    """The gradient of a random linear loss on a sequence longer than every period."""
    inputs = samples.inputs(2, lengths.long)
    y, _ = module(*inputs)
    module.zero_grad()
    if y.requires_grad:
        (y * samples.normal(*y.shape)).sum().backward()
    gradients = {n: 0.0 if p.grad is None else float(p.grad.abs().max()) for n, p in module.named_parameters()}
    excuses = dict(_excuses(unit))
    expected = {n: g for n, g in gradients.items() if n not in excuses}
    if expected:
        yield _row(expected, lengths.long)
    else:
        yield skipped("every parameter learns", "all", "no parameter can get a gradient")
    for name, why in excuses.items():
        yield skipped("every parameter learns", name, why)


def _row(gradients: dict[str, float], time: int) -> Row:
    still = [name for name, g in gradients.items() if not g > 0 or g == float("inf")]
    least = min(gradients, key=lambda name: gradients[name])
    note = f"no gradient in {', '.join(still[:4])}" if still else f"least in {least}"
    subject = f"{len(gradients)} parameters, {time} tokens"
    measured = f"{gradients[least]:.3g}"
    return Row("every parameter learns", subject, "failed" if still else "ok", measured, "> 0", note)


def _excuses(unit: Unit) -> Iterator[tuple[str, str]]:
    """Parameters that get no gradient by the program's own words, and why."""
    found = reached(unit)
    for each in placed(unit):
        if not has_parameter(each.memory) or each.shared in found.live:
            continue
        stop = found.stops.get(each.shared)
        why = "it has no say in the output" if stop is None else _told(stop)
        yield from ((f"{each.path}.{tensor}", why) for tensor in each.memory.structure.tensors())


def _told(stop: Stop) -> str:
    return REASONS[stop.cause].format(by=stop.by)
