"""Random valid programs: the compiled code against the reference, values, gradients and carried states.

`NSAM_DIFFERENTIAL=first:last` runs other seeds. A failing seed prints its program.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from generator import program
from torch import Tensor, nn

from nsam.backends.reference.module import ReferenceModule, values
from nsam.backends.torch.build import build
from nsam.compiler.checks import check_unit
from nsam.dsl.checked import Unit
from nsam.dsl.diagnostics import ProgramError, Report
from nsam.dsl.program import Program
from nsam.verification.samples import Samples, gap, part

FIRST, LAST = (int(n) for n in os.environ.get("NSAM_DIFFERENTIAL", "0:300").split(":"))
TOLERANCE = 1e-8
ATTEMPTS = 40


@cache
def found(seed: int) -> tuple[str, Unit]:
    """The first program of a seed that the checker accepts."""
    for attempt in range(ATTEMPTS):
        text = program(seed, attempt)
        try:
            unit = Program.loads(text).instantiate("s", {})
            findings = Report()
            check_unit(unit, report=findings)
            findings.raise_if_failed()
        except ProgramError:
            continue
        return text, unit
    raise AssertionError(f"no valid program for seed {seed}")


def compiled(seed: int) -> nn.Module | None:
    """The compiled module; None where the compiler says that it has no form for the program."""
    _, unit = found(seed)
    torch.manual_seed(seed)
    try:
        module = build(unit, compiled=False).double()
    except ProgramError as error:
        if {d.code for d in error.diagnostics} != {"N0401"}:
            raise
        return None
    Samples(unit, seed).perturb(module)
    return module


@pytest.mark.parametrize("seed", range(FIRST, LAST))
def test_compiled_equals_reference(seed: int) -> None:
    text, unit = found(seed)
    module = compiled(seed)
    if module is None:
        pytest.skip("no compiled form")
    samples = Samples(unit, seed + 1)
    time = (3, 9, 13, 19)[seed % 4]
    inputs = samples.inputs(2, time)
    weights = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    try:
        wanted, _ = values(unit, weights, {i.name: x.numpy() for i, x in zip(unit.inputs, inputs, strict=True)})
    except ProgramError as error:
        if {d.code for d in error.diagnostics} != {"N0490"}:
            raise
        pytest.skip("not in the reference")
    if not np.isfinite(wanted).all():
        pytest.skip("the memory diverges")
    reference = ReferenceModule(unit)
    reference.load_state_dict(module.state_dict())
    direction = samples.normal(*wanted.shape)
    y, _ = module(*inputs)
    expected, _ = reference(*inputs)
    problems = dict(differences(module, reference, direction, y, expected))
    problems["values"] = gap(y, torch.from_numpy(wanted))
    for name, sizes in {"tokens": [1] * time, "pieces": samples.splits(time, 3)}.items():
        problems[name] = gap(in_pieces(unit, module, inputs, sizes), torch.from_numpy(wanted))
    bad = {name: size for name, size in problems.items() if not size <= TOLERANCE}
    assert not bad, f"seed {seed}, {time} tokens: {bad}\n{text}"


def differences(
    module: nn.Module,
    reference: nn.Module,
    direction: Tensor,
    y: Tensor,
    expected: Tensor,
) -> Iterator[tuple[str, float]]:
    """The gap of each parameter's gradient, relative to its own size or a part of the largest of all."""
    (y * direction).sum().backward()
    (expected * direction).sum().backward()
    wanted = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in reference.named_parameters()}
    floor = 1e-3 * max(float(g.abs().max()) for g in wanted.values()) + 1e-9
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


def test_few_programs_have_no_compiled_form() -> None:
    without = [seed for seed in range(FIRST, LAST) if compiled(seed) is None]
    assert len(without) <= 0.03 * (LAST - FIRST), f"no compiled form for seeds {without}"


def test_programs_cover_the_language() -> None:
    """Every structure, objective, rule, clause that the generator knows comes up among the seeds."""
    text = "\n".join(found(seed)[0] for seed in range(60))
    wanted = (
        "linear(", "mlp(", "vector(", "conv(", "attention(", "heads = 2", "bias", "residual", "gated", "repeat",
        "inner(", "summed", "over last", "reads running", "reset every", "reset never", "when surprise", "init zeros",
        ".T(", "self(", "rope(",
        "per sequence", ": direct", "dot;", "l2;", "lp(3)", "huber(0.7)", "pseudo_huber(1)", "oja;", "by gd", "by dgd",
        "by safe_dgd", "by momentum", "by delta_momentum", "by muon", "by adamw", "by signed", "by leaky", "by delta(",
        "by counted", "by inward", "by forgetful",
    )  # fmt: skip
    counts = Counter({word: text.count(word) for word in wanted})
    assert not [word for word, n in counts.items() if n == 0]
