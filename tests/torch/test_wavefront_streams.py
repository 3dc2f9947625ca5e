"""The streams of a wavefront: who waits for whom, and what is recorded on them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from nsam.backends.torch.build import build
from nsam.backends.torch.cuda_graph import Choice, GraphedStep
from nsam.backends.torch.runtime import wavefront as running
from nsam.backends.torch.runtime.system import System
from nsam.backends.torch.runtime.wavefront import Streams, Wavefront, diagonals
from tests.recorder import Again
from tests.torch.repeats import BODIES, Shipped, UnitOf, module_of, observed

pytestmark = pytest.mark.usefixtures("short_calls")

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


@pytest.mark.parametrize(
    ("body", "wanted"),
    [("boundary", 3), ("boundary", 2), ("captured", 3), ("two carried", 3), ("nested", 3), ("hope", 3)],
)
def test_streams_wait_for_what_they_read_and_for_nothing_else(
    unit_of: UnitOf, shipped: Shipped, random: Any, body: str, wanted: int
) -> None:
    if body == "hope":
        module, x = observed(module_of(shipped("hope", "hope", vocab=11, dim=4, layers=2))), torch.zeros(1, 300).long()
    else:
        module, x = module_of(unit_of(BODIES[body])), random(2, 53, 4)
    _, old = module(x[:, : 128 if body == "hope" else 16])
    clocks = Clocks([*module.parameters(), x])
    streams: Streams = clocks
    wave = Wavefront(streams, wanted)
    with clocks, wave.in_force():
        y, state = module(x, state=old)
        y.sum() + sum(t.sum() for t in pytree.tree_leaves(state) if isinstance(t, Tensor))
    assert wave.segments == wanted
    assert clocks.joined
    if wanted == 3:  # as many streams as passes: the first goes through all of the sequence without the second
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


@pytest.mark.parametrize(("passes", "segments"), [(1, 3), (2, 4), (5, 2), (7, 3), (3, 3)])
def test_passes_that_share_a_stream_are_not_at_work_at_once(passes: int, segments: int) -> None:
    order = list(diagonals(passes, segments))
    assert sorted(order) == [(number, segment) for number in range(passes) for segment in range(segments)]
    for lane in range(segments):
        mine = [number for number, _ in order if number % segments == lane]
        assert mine == sorted(mine)
    for number, segment in order[1:]:
        before = set(order[: order.index((number, segment))])
        assert number == 0 or (number - 1, segment) in before
        assert segment == 0 or (number, segment - 1) in before


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


def test_what_a_failed_wavefront_held_is_let_go_before_the_next_recording(unit_of: UnitOf, random: Any) -> None:
    module, held = module_of(unit_of(BODIES["boundary"])), list[weakref.ref[Tensor]]()

    def loss(x: Tensor) -> tuple[Tensor, Any]:
        assert [one for one in held if one() is not None] == []
        y, state = module(x)
        now = running.wavefront()
        if now is not None and not now.asks:
            held.append(weakref.ref(y))
            raise torch.OutOfMemoryError("no memory")
        return y.square().mean(), state

    step = GraphedStep(module, loss, Again(5.0))
    step(random(2, 96, 4))
    assert held
    assert str(step.chosen) == "one layer after the other, 5 ms: there is no memory for a wavefront"


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
@pytest.mark.parametrize(("compiled", "layers"), [(False, 2), (False, 3), (True, 2)])
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

    # Every length of a segment is compiled for itself, which takes its time.
    asked: list[Any] = [None, 4, "auto"] if compiled else [None, 4, "auto", 2, 7]
    steps = [GraphedStep(module, loss, wavefront=wavefront) for wavefront in asked]
    generator = torch.Generator().manual_seed(1)
    for time in (449, 449) if compiled else (449, 300, 449):
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
    assert [*chosen[:2], *chosen[3:]] == [x or 1 for x in asked if x != "auto"]
    faster = steps[2].chosen
    assert faster is not None
    assert faster.plain is not None
    assert faster.wave is not None
    assert (faster.wave < faster.plain) == (faster.segments > 1)


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
