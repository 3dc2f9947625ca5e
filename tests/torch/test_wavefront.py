"""The passes of a repeat as a wavefront: values, gradients and states of plain passes; who waits for whom."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from nsam.backends.torch.build import build
from nsam.backends.torch.cuda_graph import Choice, GraphedStep
from nsam.backends.torch.runtime.system import System
from nsam.backends.torch.runtime.wavefront import OneQueue, Streams, Wavefront, cut
from nsam.dsl.checked import Unit
from nsam.dsl.program import Program
from tests.torch.test_cuda_graph import Again

pytestmark = pytest.mark.usefixtures("short_calls")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Shipped = Callable[..., Unit]
UnitOf = Callable[[str], Unit]
LEARN = "memory k, v : linear(4 -> 4)\nmemory n : rmsnorm(4)\nmemory m : linear(4 -> 4)"


def repeat(body: str, before: str = "", passes: int = 3) -> str:
    return f"let h = x\n{before}\nrepeat {passes} {{\n{body}\n}}\noutput h"


def learning(clauses: str, objective: str = "l2") -> str:
    learn = f"learn normalize(k(n(h))) -> v(n(h)); minimize {objective}"
    return repeat(f"{LEARN} {{ {learn}; {clauses} }}\nh = h + m(n(h))")


BODIES = {
    "boundary": learning("by gd(lr = 0.2, retain = 0.9); every 4 tokens; init learned"),
    "running": learning("by gd(lr = 0.2); every 6 tokens; reads running"),
    "summed": learning("by gd(lr = 0.2); every 3 tokens summed; init zeros"),
    "one token": learning("by dgd(lr = 0.3, retain = 0.9); every 1 token; reads running; init zeros"),
    "reset": learning("by gd(lr = 0.2); every 4 tokens; reset every 8 tokens"),
    "never reset": learning("by gd(lr = 0.2); every 4 tokens; reset never"),
    "momentum": learning("by momentum(lr = 0.1, beta = 0.8); every 4 tokens"),
    "count": learning("by adamw(lr = 0.01); every 4 tokens summed"),
    "taps": repeat("memory taps : conv(4, 3)\nmemory n : rmsnorm(4)\nh = h + taps(n(h))"),
    "nothing moves": repeat("memory f : mlp(4 -> 8 -> 4, act = silu)\nh = h + f(h)"),
    "two carried": repeat(
        f"{LEARN} {{ learn k(h) -> v(g); minimize l2; by gd(lr = 0.1); every 4 tokens }}\n"
        "h = h + m(n(g))\ng = normalize(h) + g",
        "memory first : linear(4 -> 4)\nlet g = first(x)",
    ),
    "captured": repeat(
        f"{LEARN} {{ learn k(h) -> v(g); minimize l2; by gd(lr = rate); every 4 tokens }}\nh = h + m(n(h)) * c",
        "memory first : linear(4 -> 4)\nmemory rate_of : linear(4 -> 1)\nmemory c0 : vector(4)\n"
        "let g = first(x)\nlet rate = sigmoid(rate_of(x)) / 4\nlet c = first(c0)",
    ),
    "nested": repeat(
        f"repeat 2 {{\n{LEARN} {{ learn k(n(h)) -> v(h); minimize l2; by gd(lr = 0.1); every 4 tokens }}\n"
        "h = h + m(n(h))\n}"
    ),
}


def module_of(unit: Unit, **how: Any) -> System:
    torch.manual_seed(0)
    module = build(unit, compiled=False, **how).double()
    for name, parameter in module.named_parameters():
        if parameter.detach().abs().max() == 0:  # zeros would hide what goes through them
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return module


def observed(module: System) -> System:
    for unit in module.modules():
        if isinstance(unit, System):
            unit.observe = True
    return module


def result(module: System, x: Tensor, wave: Wavefront | None, state: Any = None) -> tuple[Tensor, Any, list[Tensor]]:
    """Output, state, and gradients of a sum over both, by parameter."""
    if wave is None:
        y, new = module(x, state=state)
    else:
        with wave.in_force():
            y, new = module(x, state=state)
    kept = [t for t in pytree.tree_leaves(new) if isinstance(t, Tensor) and t.requires_grad]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    loss = (y * weights).sum() + sum((t.square().sum() for t in kept), torch.zeros(()))
    return y, new, list(torch.autograd.grad(loss, list(module.parameters()), allow_unused=True))


def agree(found: Any, wanted: Any) -> None:
    (one, shape), (other, same) = pytree.tree_flatten(found), pytree.tree_flatten(wanted)
    assert shape == same
    for a, b in zip(one, other, strict=True):
        if isinstance(b, Tensor):
            assert a.requires_grad == b.requires_grad
            scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * scale)
        else:
            assert a == b


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
    agree(result(module, x[:, 24:], Wavefront(OneQueue(), 4), old), result(module, x[:, 24:], None, old))


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


# --- streams -------------------------------------------------------------------------------------


class Clocks(TorchDispatchMode):
    """Lanes on a CPU that watch every operation: what it reads was made before, in an order that streams keep too.

    Each lane has a vector clock. A tensor that another lane made has to be waited for, and lent.
    """

    HERE = -1

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.current = self.HERE
        self.clocks: dict[int, dict[int, int]] = {self.HERE: {self.HERE: 0}}
        self.made: dict[int, tuple[int, int]] = {}
        self.lent: dict[int, set[int]] = {}
        self.alive: list[Any] = []  # so that no address is used twice
        self.lasting = {storage(p) for p in parameters}
        self.joined = True
        self.overlaps = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        clock = self.clocks[self.current]
        read = {storage(x) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for key in read - self.lasting:
            lane, moment = self.made.get(key, (self.HERE, 0))
            if lane != self.current:
                assert clock.get(lane, 0) >= moment, f"{function} on {self.current} does not wait for lane {lane}"
                assert key in self.lent.get(self.current, set()), f"{function} on {self.current} reads what is not lent"
        found = function(*args, **(kwargs or {}))
        clock[self.current] += 1
        for x in pytree.tree_leaves(found):
            if isinstance(x, Tensor) and storage(x) not in read:
                self.made[storage(x)] = self.current, clock[self.current]
                self.alive.append(x.untyped_storage())
        return found

    def fork(self, lanes: int) -> None:
        for lane in range(lanes):
            self._follow(lane, self.clocks[self.current])
        self.joined = False

    @contextmanager
    def lane(self, number: int) -> Iterator[None]:
        before, self.current = self.current, number
        try:
            yield
        finally:
            self.current = before

    def mark(self) -> dict[int, int]:
        return dict(self.clocks[self.current])

    def wait(self, mark: dict[int, int]) -> None:
        self._follow(self.current, mark)

    def lend(self, tensors: Iterable[Tensor]) -> None:
        self.lent.setdefault(self.current, set()).update(map(storage, tensors))

    def join(self) -> None:
        for lane, clock in list(self.clocks.items()):
            if lane != self.current:
                self._follow(self.current, clock)
        self.joined = True

    def close(self) -> None:
        self.join()

    def _follow(self, lane: int, clock: dict[int, int]) -> None:
        mine = self.clocks.setdefault(lane, {lane: 0})
        for other, moment in clock.items():
            mine[other] = max(mine.get(other, 0), moment)


def storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


@pytest.mark.parametrize("body", ["boundary", "captured", "two carried", "nested", "hope"])
def test_streams_wait_for_what_they_read_and_for_nothing_else(
    unit_of: UnitOf, shipped: Shipped, random: Any, body: str
) -> None:
    if body == "hope":
        module, x = observed(module_of(shipped("hope", "hope", vocab=11, dim=4, layers=2))), torch.zeros(1, 300).long()
    else:
        module, x = module_of(unit_of(BODIES[body])), random(2, 53, 4)
    _, old = module(x[:, : 128 if body == "hope" else 16])
    clocks = Clocks([*module.parameters(), x])
    streams: Streams = clocks
    wave = Wavefront(streams, 3)
    with clocks, wave.in_force():
        y, state = module(x, state=old)
        y.sum() + sum(t.sum() for t in pytree.tree_leaves(state) if isinstance(t, Tensor))
    assert wave.segments == 3
    assert clocks.joined
    # The first pass goes through all of the sequence without the second.
    assert 1 not in clocks.clocks[0]


class Forgetful(Clocks):
    """Streams that do not wait, as if the passes had no order."""

    def wait(self, mark: dict[int, int]) -> None:
        pass


def test_the_watch_notices_what_is_not_waited_for(unit_of: UnitOf, random: Any) -> None:
    module, x = module_of(unit_of(BODIES["taps"])), random(2, 53, 4)
    clocks = Forgetful([*module.parameters(), x])
    with pytest.raises(AssertionError, match="does not wait for lane 0"), clocks, Wavefront(clocks, 3).in_force():
        module(x)


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


# --- recorded steps ------------------------------------------------------------------------------


def loss_of(module: System) -> Callable[..., tuple[Tensor, Any]]:
    def loss(x: Tensor) -> tuple[Tensor, Any]:
        y, state = module(x)
        return y.square().mean(), state

    return loss


@pytest.mark.parametrize(
    ("times", "segments", "recorded", "said"),
    [
        ([5.0, 3.0], 3, 2, "a wavefront of 3 segments, 3 ms a step (one layer after the other, 5 ms)"),
        ([3.0, 5.0], 1, 3, "one layer after the other, 3 ms a step (a wavefront of 3 segments, 5 ms)"),
    ],
)
def test_the_faster_recording_is_kept(
    unit_of: UnitOf, random: Any, times: Sequence[float], segments: int, recorded: int, said: str
) -> None:
    module, recorder = module_of(unit_of(BODIES["boundary"])), Again(*times)
    step = GraphedStep(module, loss_of(module), recorder)
    for _ in range(2):
        x = random(2, 96, 4)
        wanted = loss_of(module)(x)[0]
        gradients = torch.autograd.grad(wanted, list(module.parameters()))
        module.zero_grad()
        loss, _ = step(x)
        torch.testing.assert_close(loss, wanted.detach(), rtol=1e-10, atol=1e-12)
        for p, gradient in zip(module.parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-12)
    assert step.chosen is not None
    assert (step.chosen.segments, recorder.recorded, str(step.chosen)) == (segments, recorded, said)


def test_a_wavefront_is_asked_for_or_left_out(unit_of: UnitOf, random: Any) -> None:
    module, x = module_of(unit_of(BODIES["boundary"])), random(2, 96, 4)
    for wavefront, wanted in ((6, Choice(6, 6)), (None, Choice(reason="a wavefront is not asked for"))):
        recorder = Again()
        step = GraphedStep(module, loss_of(module), recorder, wavefront=wavefront)
        step(x)
        assert (step.chosen, recorder.recorded) == (wanted, 1)
    with pytest.raises(ValueError, match="at least 2 segments"):
        GraphedStep(module, loss_of(module), Again(), wavefront=1)
    short = GraphedStep(module, loss_of(module), Again(), wavefront=4)
    with pytest.raises(ValueError, match="cannot be recorded as a wavefront: 4 tokens are less than two segments"):
        short(x[:, :4])


def test_what_has_no_wavefront_says_so(unit_of: UnitOf, random: Any) -> None:
    module = module_of(unit_of("memory f : linear(4 -> 4)\noutput f(x)"))
    step = GraphedStep(module, loss_of(module), Again())
    step(random(2, 40, 4))
    assert str(step.chosen) == "one layer after the other: there is no repeat of layers"


class Full(Again):
    """A device whose memory is full when the second recording is made."""

    def record(self, run: Any) -> Callable[[], None]:
        if self.recorded == 1:
            self.recorded += 1
            raise torch.OutOfMemoryError("no memory")
        return super().record(run)


def test_without_memory_for_a_wavefront_there_is_none(unit_of: UnitOf, random: Any) -> None:
    module = module_of(unit_of(BODIES["boundary"]))
    step = GraphedStep(module, loss_of(module), Full(5.0))
    step(random(2, 96, 4))
    assert str(step.chosen) == "one layer after the other, 5 ms: there is no memory for a wavefront"


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


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("layers", [2, 3])
def test_on_a_gpu(shipped: Shipped, compiled: bool, layers: int) -> None:
    """As a wavefront, one layer after the other, and without a graph: losses, gradients and states of several steps."""
    torch.manual_seed(0)
    unit = shipped("hope", "hope", vocab=11, dim=32, layers=layers)
    module = build(unit, compiled=compiled).to("cuda")

    def loss(tokens: Tensor) -> tuple[Tensor, Any]:
        scores, state = module(tokens[:, :-1])
        return nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()), state

    def taken(run: Callable[[Tensor], tuple[Tensor, Any]], tokens: Tensor) -> list[Tensor]:
        module.zero_grad()
        found, state = run(tokens)
        if found.requires_grad:
            found.backward()
        kept = [t for t in pytree.tree_leaves(state) if isinstance(t, Tensor)]
        return [t.detach().clone() for t in (found, *(p.grad for p in module.parameters()), *kept)]

    steps = [GraphedStep(module, loss, wavefront=wavefront) for wavefront in (None, 4, 7, "auto")]
    generator = torch.Generator().manual_seed(1)
    for time in (449, 449, 300, 449):
        tokens = torch.randint(0, 11, (4, time), generator=generator).cuda()
        wanted = taken(loss, tokens)
        for step in steps:
            for _ in range(3):  # a race would show in some of them
                found = taken(step, tokens)
                assert all(bool(x.isfinite().all()) for x in found)
                for x, y in zip(found, wanted, strict=True):
                    difference = float((x - y).norm() / (y.norm() + 1e-6 * math.sqrt(y.numel())))
                    assert difference < 1e-2, difference
    chosen = [step.chosen.segments for step in steps if step.chosen is not None]
    assert chosen[:3] == [1, 4, 7]
    assert steps[3].chosen is not None
    assert steps[3].chosen.plain is not None
    assert steps[3].chosen.wave is not None


@pytest.mark.gpu
def test_on_a_gpu_replays_agree_bit_for_bit(shipped: Shipped) -> None:
    """A race between streams shows as replays that differ."""
    torch.manual_seed(0)
    module = build(shipped("hope", "hope", vocab=11, dim=32, layers=4), compiled=False, truncated=True).to("cuda")
    observed(module)

    def loss(tokens: Tensor) -> tuple[Tensor, Any]:
        y, state = module(tokens)
        return y.square().mean(), state

    step = GraphedStep(module, loss, wavefront=8)
    tokens = torch.randint(0, 11, (2, 512), generator=torch.Generator().manual_seed(1)).cuda()
    first: list[Tensor] = []
    for _ in range(20):
        module.zero_grad()
        found, state = step(tokens)
        now = [t.clone() for t in (found, *(p.grad for p in module.parameters())) if t is not None]
        now += [t.clone() for t in pytree.tree_leaves(state) if isinstance(t, Tensor)]
        if not first:
            first = now
        # The table's gradient adds up in any order.
        same = [torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(first, now, strict=True)]
        assert all(same)
