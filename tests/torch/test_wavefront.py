"""The passes of a repeat as a wavefront: values, gradients and states of plain passes, or why they are plain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nsam.backends.torch.build import build
from nsam.backends.torch.runtime.system import System
from nsam.backends.torch.runtime.wavefront import OneQueue, Wavefront, cut
from nsam.dsl.program import Program
from tests.torch.repeats import (
    BODIES,
    EXAMPLES,
    LEARN,
    Shipped,
    UnitOf,
    agree,
    learning,
    module_of,
    observed,
    repeat,
    result,
)

pytestmark = pytest.mark.usefixtures("short_calls")

# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("time", "wanted"), [(53, 4), (48, 2), (41, 100)])
def test_equals_one_pass_after_the_other(unit_of: UnitOf, random: Any, body: str, time: int, wanted: int) -> None:
    module, x, wave = module_of(unit_of(BODIES[body])), random(2, time, 4), Wavefront(OneQueue(), wanted)
    agree(result(module, x, wave), result(module, x, None))
    assert 2 <= wave.segments <= wanted
    assert not wave.reasons


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(("time", "segments"), [(301, 5), (256, 4), (130, 3)])
def test_hope_trains_the_same(shipped: Shipped, truncated: bool, time: int, segments: int) -> None:
    """With what `nsam train` asks for: states without gradients, inner losses."""
    module = observed(module_of(shipped("hope", "hope", vocab=11, dim=8, layers=3), truncated=truncated))
    x = torch.randint(0, 11, (2, time), generator=torch.Generator().manual_seed(1))
    wave = Wavefront(OneQueue())
    agree(result(module, x, wave), result(module, x, None))
    assert wave.segments == segments


@pytest.mark.parametrize("body", ["boundary", "never reset", "taps"])
def test_a_sequence_goes_on(unit_of: UnitOf, random: Any, body: str) -> None:
    module = module_of(unit_of(BODIES[body]))
    x = random(2, 64, 4)
    with torch.no_grad():
        _, old = module(x[:, :24])
    wave = Wavefront(OneQueue(), 4)
    agree(result(module, x[:, 24:], wave, old), result(module, x[:, 24:], None, old))
    assert wave.segments > 1


@pytest.mark.parametrize("system", ["gated_deltanet", "titans_memory", "atlas", "nested_cms", "mesa", "retnet", "oja"])
def test_layers_of_the_zoo(system: str, random: Any) -> None:
    """Systems of the shipped collection, each repeated."""
    text = (EXAMPLES / "zoo" / "zoo.nsam").read_text(encoding="utf-8")
    body = repeat(f"memory n : rmsnorm(8)\nh = h + {system}(n(h), 8)", passes=2)
    program = Program.loads(f"{text}\nsystem s() {{\ninput x: [8]\n{body}\n}}")
    module = module_of(program.instantiate("s", {}))
    wave = Wavefront(OneQueue(), 3)
    x = random(2, 2 * module.repeat[0].block_tokens + 5, 8)
    agree(result(module, x, wave), result(module, x, None))
    assert wave.segments == 3


def test_values_from_outside_of_every_kind(random: Any) -> None:
    """A vector a token, one a sequence, whose width is the number of tokens, and a number a token."""
    text = "nsam 1\nuse std.rules (gd)\nsystem s() {\ninput x: [4]\ninput a: [4]\ninput c: [40] per sequence\n"
    text += "input r: [1]\nmemory wide : linear(40 -> 4)\n" + repeat(
        f"{LEARN} {{ learn a * k(n(h)) -> v(h); minimize l2; by gd(lr = sigmoid(r) / 4); every 4 tokens }}\n"
        "memory narrow : linear(40 -> 4)\nh = h + r * m(a * n(h)) + narrow(c)"
    )
    module = module_of(Program.loads(f"{text}\n}}").instantiate("s", {}))
    inputs = random(2, 40, 4), random(2, 40, 4), random(2, 40), random(2, 40, 1)
    wave = Wavefront(OneQueue(), 4)
    with wave.in_force():
        found, state = module(*inputs)
    wanted, old = module(*inputs)
    agree((found, state), (wanted, old))
    used = [p for name, p in module.named_parameters() if not name.startswith("wide")]
    agree(*(torch.autograd.grad(y.square().sum(), used) for y in (found, wanted)))
    assert wave.segments == 3
    assert not wave.reasons


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
@pytest.mark.usefixtures("quick_kernels")
def test_compiled_segments(unit_of: UnitOf) -> None:
    """Compiled functions over segments, the last of them shorter."""
    unit = unit_of(BODIES["boundary"])
    torch.manual_seed(0)
    fast, plain = build(unit).double(), build(unit, compiled=False).double()
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 228, 4).double()
    wave = Wavefront(OneQueue())
    (found, _, one), (wanted, _, other) = result(fast, x, wave), result(plain, x, None)
    assert wave.segments == 4
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


# --- where it is not possible --------------------------------------------------------------------

REASONS = {
    "only one pass": repeat("memory f : linear(4 -> 4)\nh = h + f(h)", passes=1),
    "`a` is attention": repeat(
        "memory q : linear(4 -> 4)\nmemory a : attention(heads = 2) { learn h -> h }\nh = h + a(q(h))"
    ),
    "at times that depend on the data": learning("by gd(lr = 0.1); every 4..16 tokens when surprise > 0.5"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_the_reason_is_told_and_values_stay(unit_of: UnitOf, random: Any, reason: str) -> None:
    module, x, wave = module_of(unit_of(REASONS[reason])), random(2, 64, 4), Wavefront(OneQueue(), 4)
    agree(result(module, x, wave), result(module, x, None))
    assert wave.segments == 0
    assert len(wave.reasons) == 1
    assert reason in next(iter(wave.reasons))


def test_reasons_of_a_call(unit_of: UnitOf, random: Any) -> None:
    """Short sequences, states within a block, rules that ask for the inputs of layers, budgets of memory."""
    unit = unit_of(BODIES["boundary"])
    module = module_of(unit)

    def told(module: System, x: Tensor, state: Any = None) -> str:
        wave = Wavefront(OneQueue())
        with wave.in_force():
            module(x, state=state)
        return "; ".join(wave.reasons)

    assert told(module, random(2, 20, 4)) == "20 tokens are less than two segments (of multiples of 32 tokens)"
    _, state = module(random(2, 3, 4))
    assert told(module, random(2, 100, 4), state) == "the sequence goes on in the middle of a block"
    assert told(module_of(unit, keys=True), random(2, 100, 4)).startswith("rules of the step clock need the inputs")
    assert told(module_of(unit, keys="tokens"), random(2, 100, 4)).startswith("rules of the step clock need the inputs")
    assert told(module, random(2, 100, 4)) == ""

    import nsam.api

    nsam.api.set_memory(module, 10**9)
    assert "budget" in told(module, random(2, 100, 4))


def test_a_wavefront_that_asks_changes_nothing(unit_of: UnitOf, random: Any) -> None:
    module, x = module_of(unit_of(BODIES["boundary"])), random(2, 100, 4)
    calls: list[Any] = []
    module.repeat[0].register_forward_hook(lambda *_: calls.append(1))
    wave = Wavefront(OneQueue(), asks=True)
    with wave.in_force():
        module(x)
    assert (wave.segments, len(calls)) == (4, 1)


# --- segments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "block", "passes", "wanted", "sizes"),
    [
        (512, 64, 2, None, [128] * 4),
        (512, 64, 4, None, [64] * 8),
        (512, 64, 2, 8, [64] * 8),
        (384, 64, 2, None, [128] * 3),
        (300, 64, 2, None, [128, 128, 44]),
        (512, 1, 12, None, [32] * 16),
        (127, 64, 2, None, [64, 63]),
        (64, 64, 2, None, [64]),
        (10, 4, 2, 3, [4, 4, 2]),
    ],
)
def test_segments(time: int, block: int, passes: int, wanted: int | None, sizes: list[int]) -> None:
    assert cut(time, block, passes, wanted) == sizes


def test_any_cut_covers_the_sequence() -> None:
    for time in range(1, 400, 7):
        for block in (1, 3, 16, 64):
            for wanted in (None, 2, 5):
                sizes = cut(time, block, 3, wanted)
                assert sum(sizes) == time
                assert len(set(sizes[:-1])) <= 1
                assert len(sizes) == 1 or (sizes[0] % block == 0 and sizes[-1] <= sizes[0])
