"""Stability (invariant 6): thousands of tokens at initialisation, in float32 and in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nsam.dsl.checked import Call, Memory, Unit
from nsam.verification.report import Row, skipped
from nsam.verification.samples import Samples, part

TOKENS = 8192
PIECE = 1024
"""Tokens a call: the state is carried, so that memory use does not grow with the sequence."""
SMALLEST, LARGEST = 0.1, 10.0
"""Bounds of a learnt memory's norm, relative to its first one."""
WIPED = 1e-3
"""A memory that starts from zeros must keep this part of the largest norm that it has had."""
PRECISIONS = (torch.float32, torch.bfloat16)


@dataclass
class Norms:
    """Norms of one fast memory, one number for every sequence, at the start and after every piece.

    `learned`: its start is not zero, so that later norms are measured by the first one.
    """

    learned: bool
    first: Tensor | None = None
    seen: list[Tensor] = field(default_factory=list)


def check_stability(unit: Unit, make: Callable[[], nn.Module], samples: Samples, tokens: int) -> Iterator[Row]:
    """No NaN, and memories that neither vanish nor explode."""
    for precision in PRECISIONS:
        name = str(precision).removeprefix("torch.")
        module = make().to(precision)
        inputs = [x.to(precision) if x.is_floating_point() else x for x in samples.inputs(1, tokens)]
        finite, norms = _run(unit, module, inputs, tokens)
        measured = "finite" if finite else "NaN or inf"
        subject = f"{name}, {tokens} tokens, output"
        yield Row("stability", subject, "ok" if finite else "failed", measured, "finite")
        if not norms:
            yield skipped("stability", f"{name}, norms", "no fast memory")
            continue
        yield from _rows(name, norms)


def _run(unit: Unit, module: nn.Module, inputs: list[Tensor], tokens: int) -> tuple[bool, dict[str, Norms]]:
    norms: dict[str, Norms] = {}
    state, finite = None, True
    with torch.no_grad():
        starts = [0, 1, *range(PIECE, tokens, PIECE)][: max(1, tokens)]
        for start, stop in zip(starts, [*starts[1:], tokens], strict=True):
            y, state = module(*part(unit, inputs, start, stop), state=state)
            finite = finite and bool(y.isfinite().all())
            _record(unit, state, "", norms)
    for path, each in norms.items():
        each.first = _first(module, path) if each.learned else None
        # A learnt start can be zero at first, as a vector's is: there is no first norm to measure by.
        each.learned = each.learned and (each.first is None or bool(each.first > 0))
    return finite, norms


def _record(unit: Unit, state: Any, path: str, norms: dict[str, Norms]) -> None:
    tensors = {**state["sequence"], **state["kept"]}
    for memory in unit.memories:
        if memory.fast:
            norm = _norm(memory, tensors)
            norms.setdefault(path + memory.name, Norms(memory.initial.kind != "zeros")).seen.append(norm)
    for child in unit.children:
        inside = state["children"].get(child.name)
        if inside is None:
            continue
        if isinstance(child, Call):
            _record(child.unit, inside, f"{path}{child.name}.", norms)
        else:
            for i, each in enumerate(inside):
                _record(child.body, each, f"{path}{child.name}.{i}.", norms)


def _norm(memory: Memory, tensors: dict[str, Tensor]) -> Tensor:
    """Norm of a memory's whole state after the latest token, one number a sequence."""
    total: Tensor | float = 0.0
    for name in memory.structure.tensors():
        path = f"{memory.name}.{name}"
        total = total + tensors.get(f"{path}.run", tensors[path]).double().square().flatten(1).sum(1)
    return torch.as_tensor(total).sqrt()


def _first(module: nn.Module, path: str) -> Tensor | None:
    """Norm of the learnt initial state; None where another memory gives it."""
    found = dict(module.named_modules()).get(path)
    own = [] if found is None else list(found.parameters())
    return torch.stack([p.detach().double().square().sum() for p in own]).sum().sqrt() if own else None


def _rows(precision: str, norms: dict[str, Norms]) -> Iterator[Row]:
    learned = {path: each for path, each in norms.items() if each.learned}
    for least in (True, False) if learned else ():
        ratios = {path: _ratio(each, least) for path, each in learned.items()}
        worst = _worst(ratios, least)
        good = ratios[worst] >= SMALLEST if least else ratios[worst] <= LARGEST
        what = "smallest" if least else "largest"
        limit = f"≥ {SMALLEST:g}" if least else f"≤ {LARGEST:g}"
        subject = f"{precision}, {what} norm of {_memories(learned)} by the first"
        yield Row("stability", subject, "ok" if good else "failed", f"{ratios[worst]:.3g}", limit, f"in {worst}")
    empty = {path: _kept(each) for path, each in norms.items() if not each.learned}
    if empty:
        worst = _worst(empty, True)
        good = WIPED <= empty[worst] < float("inf")
        subject = f"{precision}, what is left of {_memories(empty)} from zeros"
        yield Row(
            "stability", subject, "ok" if good else "failed", f"{empty[worst]:.3g}", f"≥ {WIPED:g}", f"in {worst}"
        )


def _memories(found: Mapping[str, object]) -> str:
    return f"{len(found)} memor{'ies' if len(found) != 1 else 'y'}"


def _worst(ratios: dict[str, float], least: bool) -> str:
    """The path with a NaN, or the smallest (largest) ratio."""
    for path, ratio in ratios.items():
        if ratio != ratio:
            return path
    return (min if least else max)(ratios, key=lambda path: ratios[path])


def _ratio(norms: Norms, least: bool) -> float:
    """Smallest or largest norm by the first one."""
    seen = torch.stack(norms.seen)
    by = norms.first if norms.first is not None else seen[0]
    ratio = seen / by
    return float(ratio.min() if least else ratio.max())


def _kept(norms: Norms) -> float:
    """The last norm by the largest one; NaN when one is not finite or all are 0."""
    seen = torch.stack(norms.seen)
    return float((seen[-1] / seen.amax(0)).min()) if bool(seen.isfinite().all()) else float("nan")
