"""Random valid programs: the compiled code against the reference, values, gradients and carried states.

`NSAM_DIFFERENTIAL=first:last` runs other seeds. A seed that fails is shrunk; the small program is printed and, outside
of CI, kept as `kept/seed_N.nsam`, which `test_kept.py` runs from then on.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import replace
from functools import cache
from random import Random

import pytest
from comparison import Case, Outcome, check, compare, only_rounding
from generator import program
from kept import keep, told
from shrink import FailsAlike, shrink
from sizes import LARGE, Size

from nsam.backends.torch.runtime import system
from nsam.backends.torch.runtime.blocks import At
from nsam.compiler.passes import NAMES
from nsam.dsl.diagnostics import ProgramError

FIRST, LAST = (int(n) for n in os.environ.get("NSAM_DIFFERENTIAL", "0:240").split(":"))
ATTEMPTS = 40
REFERENCE_LACKS = "a rule with `key` on a bias whose context is a window"
"""The one thing that is generated, compiled and not interpreted by the reference."""


@cache
def found(seed: int, size: Size = LARGE) -> Case:
    """The first program of a seed that the checker accepts."""
    for attempt in range(ATTEMPTS):
        text = program(seed, attempt, size)
        try:
            check(text)
        except ProgramError:
            continue
        return Case(text, seed, (3, 9, 13, 19)[seed % 4])
    raise AssertionError(f"no valid program for seed {seed}")


def report(case: Case, outcome: Outcome) -> str:
    """The failure of a case, shrunk."""
    small = shrink(case, FailsAlike(outcome))
    why = f"{', '.join(sorted(outcome.kinds()))}, gap {outcome.worst():.1e}"
    where = "" if os.environ.get("CI") else f" (kept as {keep(small, f'seed_{case.seed}', why)})"
    off = f" without {', '.join(case.without)}" if case.without else ""
    begun = f"from seed {case.seed}, {case.time} tokens{off}:\n{case.text}"
    return f"{outcome.failures()}\nshrunk{where}:\n{told(small, why)}\n{begun}"


@pytest.mark.parametrize("seed", range(FIRST, LAST))
def test_compiled_equals_reference(seed: int) -> None:
    agrees(found(seed))


def agrees(case: Case) -> None:
    """Assert that a case gives what the reference does; one that does not is shrunk, told and kept."""
    outcome = compare(case)
    if REFERENCE_LACKS in outcome.skipped:
        pytest.skip(outcome.skipped)
    assert not outcome.skipped, f"{outcome.skipped}\n{case.text}"
    if outcome.error is None and only_rounding(case, outcome):
        pytest.skip("rounding alone moves the reference as far")
    if outcome.error is not None or outcome.failures():
        raise AssertionError(report(case, outcome)) from outcome.error


@pytest.mark.parametrize("seed", range(FIRST + 1, LAST, 6))
def test_chunks_may_be_cut_anywhere(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are 64 tokens and more; here as short as 2, so that the short chunks of these programs have several."""
    monkeypatch.setattr("nsam.compiler.fast_memory.SHORTEST_PIECE", 2)
    case = found(seed)
    outcome = compare(case)
    if REFERENCE_LACKS in outcome.skipped:
        pytest.skip(outcome.skipped)
    if outcome.error is None and only_rounding(case, outcome):
        pytest.skip("rounding alone moves the reference as far")
    assert outcome.error is None, f"{outcome.error}\n{case.text}"
    assert not outcome.skipped, f"{outcome.skipped}\n{case.text}"
    assert not outcome.failures(), f"{outcome.failures()}\n{case.text}"


@pytest.mark.parametrize("seed", range(FIRST + 2, LAST, 12))
def test_tables_may_be_left_to_native_kernels(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code on a CPU has no rows of decays and triangles where its blocks make them; so here."""
    monkeypatch.setattr(system, "At", lambda *how: At(*how[:-1], True))
    agrees(replace(found(seed), batch=1 + seed % 24 // 12))


@pytest.mark.parametrize("seed", range(FIRST + 2, LAST, 8))
def test_any_passes_may_be_left_out(seed: int) -> None:
    random = Random(f"without {seed}")
    off = tuple(name for name in NAMES if random.random() < random.choice((0.3, 0.6)))
    agrees(replace(found(seed), without=off))


def test_what_only_rounding_moves_is_told_from_what_is_wrong() -> None:
    rule = "rule sharp(lr: float) { self <- self - lr * tanh(1e15 * grad) }"
    learns = "memory m : linear(1 -> 1) { learn x -> x; minimize %s; by sharp(lr = 0.04); every 1 token }"
    text = f"nsam 1\n{rule}\nsystem s() {{ input x: [1]; {learns}; output m(x) }}"
    lost, well = (Case(text % objective, 3723, 2, 1) for objective in ("sum(normalize(self(key)))", "l2"))
    off = Outcome({"gradient of m.weight": 1e-6, "values": 1e-12})
    assert only_rounding(lost, off)
    assert not only_rounding(well, off)
    assert not only_rounding(lost, Outcome({"values": math.nan}))
    assert not only_rounding(lost, Outcome({"values": 1e-12}))


def test_programs_cover_the_language() -> None:
    """Every structure, objective, rule, clause that the generator knows comes up among the seeds."""
    text = "\n".join(found(seed).text for seed in range(60))
    wanted = (
        "linear(", "mlp(", "vector(", "conv(", "attention(", "heads = 2", "bias", "residual", "gated", "repeat",
        "inner(", "summed", "over last", "reads running", "reset every", "reset never", "when surprise", "init zeros",
        ".T(", "self(", "rope(",
        "per sequence", ": direct", "dot;", "l2;", "lp(3)", "huber(0.7)", "pseudo_huber(1)", "oja;", "by gd", "by dgd",
        "by safe_dgd", "by momentum", "by delta_momentum", "by muon", "by adamw", "by signed", "by leaky", "by delta(",
        "by counted", "by inward", "by forgetful", "by nested", "by mapped", "by adagrad", "by preconditioned", "by m3",
        "like(m", "like(k)", "token(", "[p in [2, 4]]", "chain(", "mix(", "minimize task", "init 0.5", "(c) }",
    )  # fmt: skip
    counts = Counter({word: text.count(word) for word in wanted})
    assert not [word for word, n in counts.items() if n == 0]
