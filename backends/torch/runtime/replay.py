"""Computing again in the backward pass what the forward pass does not keep.

A frame is a run of calls of which autograd keeps nothing but what goes in: the states before the first call and the
values of each. When the backward pass asks for a tensor that one of the calls would have kept, all of them are run
again, each from the state that the one before it left. So a loop over blocks keeps one state a frame, and the passes of
a repeat keep what is handed from one to the next. Numbers are the same, bit for bit.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from nsam.backends.torch.runtime.triangular import under_autocast

if TYPE_CHECKING:
    from nsam.backends.torch.runtime.saved import Loop, Meter

Tensors = dict[str, Tensor]
Function = Callable[..., tuple[Tensors, tuple[Tensor, ...]]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is computed again: the first `passes` passes of a repeat, and the blocks of every loop, `group` at a time
    (0: none) but for the last `kept`."""

    passes: int = 0
    group: int = 0
    kept: int = 0

    @property
    def idle(self) -> bool:
        """Whether everything is kept."""
        return self.passes == 0 and self.group == 0


class _Keep(torch.autograd.Function):
    """Hands tensors over to autograd, so that a frame around this one may replay them in its turn."""

    @staticmethod
    def forward(ctx: Any, like: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return like.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError("nothing is computed from what is kept")


class Versions:
    """Tensors that are read again in the backward pass, and how often each had been written in place before.

    Autograd asks that only of what it saves itself.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.before = [(x, x._version) for x in tensors if not x.is_inference()]  # those of inference mode do not count

    def require(self) -> None:
        """Raise autograd's error if one of the tensors has been written since."""
        for x, before in self.before:
            if x._version != before:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"[{x.type()} {list(x.shape)}] is at version {x._version}; expected version {before} instead. "
                    "Hint: under a budget of memory the backward pass computes again from inputs, states and weights; "
                    "write into them after it"
                )


class Kept:
    """Tensors that a frame needs to compute again."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.plain: Sequence[Tensor] = tensors
        self.saver: Tensor | None = None
        if any(x.requires_grad for x in tensors):
            found: Tensor = _Keep.apply(torch.empty(0, requires_grad=True), *tensors)  # type: ignore[no-untyped-call]
            if found.grad_fn is not None:
                self.saver, self.plain = found, ()
        self.versions = Versions(self.plain)

    def tensors(self) -> Sequence[Tensor]:
        """The tensors, perhaps computed again themselves."""
        if self.saver is None:
            self.versions.require()
            return self.plain
        assert self.saver.grad_fn is not None
        found: Sequence[Tensor] = self.saver.grad_fn.saved_tensors  # type: ignore[attr-defined]
        return found


@dataclass(frozen=True, slots=True)
class Handle:
    """What stands in for a tensor that is not kept: which one of which call."""

    frame: Frame
    call: int
    number: int


class Frame:
    """Calls of functions (state, values) → (what is new in the state, results), each from the state before it.

    `weights` are what the functions read beside these.
    """

    def __init__(self, s: Mapping[str, Tensor], like: Tensor, weights: Iterable[Tensor]) -> None:
        self.weights = Versions(weights)
        self.names, self.start = tuple(s), Kept(tuple(s.values()))
        self.calls: list[tuple[Callable[..., Any], Kept]] = []
        self.found: dict[tuple[int, int], Tensor] = {}
        self.precision = autocast_of(like)

    def call(self, function: Callable[..., Any], s: Tensors, values: Sequence[Tensor]) -> Any:
        """Run `function(s, *values)`, keeping nothing but its values."""
        number = len(self.calls)
        self.calls.append((function, Kept(values)))
        count = itertools.count()

        def pack(x: Tensor) -> Handle:
            return Handle(self, number, next(count))

        with saved_tensors_hooks(pack, unpack):
            return function(s, *values)

    def replay(self) -> None:
        """Compute all calls again and find the tensors that they would have kept.

        Raises `RuntimeError` where something that they read has been written since.
        """
        self.weights.require()
        s = dict(zip(self.names, self.start.tensors(), strict=True))
        with torch.enable_grad(), self.precision():
            for number, (function, values) in enumerate(self.calls):
                part, _ = self.recorded(number, function, s, values.tensors())
                s = following(s, part)

    def recorded(self, number: int, function: Callable[..., Any], s: Tensors, values: Sequence[Tensor]) -> Any:
        """Run one call and note what autograd keeps of it, in the order of the forward pass."""
        count = itertools.count()

        def pack(x: Tensor) -> Tensor:
            # Detached: a result that its own function keeps would otherwise hold itself.
            self.found[number, next(count)] = x = x.detach()
            return x

        with saved_tensors_hooks(pack, lambda x: x):
            return function(s, *values)


def unpack(handle: Handle) -> Tensor:
    """The tensor behind a handle, computed again when it is asked for first; a second time needs another replay."""
    key = (handle.call, handle.number)
    if key not in handle.frame.found:
        handle.frame.replay()
    return handle.frame.found.pop(key)


def following(s: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Tensors:
    """The state of the next call, see `system.update`."""
    from nsam.backends.torch.runtime.system import update

    return update(s, new)


def autocast_of(like: Tensor) -> Callable[[], AbstractContextManager[Any]]:
    """Autocast as it is now, to be entered again in the backward pass."""
    kind, enabled = like.device.type, under_autocast(like)
    if kind == "meta":
        return nullcontext
    dtype, cache = torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled()
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cache)


class Recorder:
    """Puts the blocks of one call of a unit into frames. `tokens` is the call's length."""

    def __init__(self, schedule: Schedule, tokens: int, meter: Meter | None = None) -> None:
        self.schedule, self.tokens, self.meter = schedule, tokens, meter
        self.loop: Loop | None = None
        self.done = 0
        self.frame: Frame | None = None
        self.expected: dict[str, weakref.ref[Tensor]] = {}

    def run(self, function: Function, w: Tensors, s: Tensors, at: Any, values: Sequence[Tensor]) -> Any:
        """Run one block."""
        left = -(-(self.tokens - self.done) // at.length)
        self.done += at.length

        def call(state: Tensors, *given: Tensor) -> tuple[Tensors, tuple[Tensor, ...]]:
            return function(w, state, at, *given)

        if self.meter is not None and self.loop is None:
            result, self.loop = self.meter.block(call, s, values, left)
            self.schedule = Schedule(group=self.loop.leanest)
            return result
        if left <= self.schedule.kept or not self.schedule.group:
            return call(s, *values)
        with uncounted() if self.meter is not None else nullcontext():
            return self.framed(call, w, s, values)

    def framed(self, call: Callable[..., Any], w: Tensors, s: Tensors, values: Sequence[Tensor]) -> Any:
        """Run one block in the open frame if it goes on from where that one ended, else in a new one."""
        if self.frame is None or len(self.frame.calls) >= self.schedule.group or not self.continues(s):
            self.frame = Frame(s, values[0], w.values())
        part, results = self.frame.call(call, s, values)
        # Weak, because results lead to the frame through autograd's graph.
        self.expected = {name: weakref.ref(x) for name, x in following(s, part).items()}
        return part, results

    def continues(self, s: Mapping[str, Tensor]) -> bool:
        """Whether a state is the one that the latest block left."""
        return s.keys() == self.expected.keys() and all(self.expected[name]() is x for name, x in s.items())


@dataclass(frozen=True, slots=True)
class Plan:
    """What is in force during a call of a module: a schedule, and a meter while the call is measured."""

    schedule: Schedule
    meter: Meter | None = None

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Follow this plan inside."""
        token = _plan.set(self)
        try:
            yield
        finally:
            _plan.reset(token)


_plan: ContextVar[Plan | None] = ContextVar("plan", default=None)


def planned() -> bool:
    """Whether something decides what is kept for the backward pass, or measures it."""
    return _plan.get() is not None and torch.is_grad_enabled()


def recorder(tokens: int) -> Recorder | None:
    """What takes the blocks of a unit's call of `tokens` tokens; None where all of them keep what they need."""
    plan = _plan.get()
    if plan is None or not torch.is_grad_enabled() or (plan.meter is None and not plan.schedule.group):
        return None
    return Recorder(plan.schedule, tokens, plan.meter)


def run_pass(
    module: nn.Module,
    number: int,
    passes: int,
    carried: Sequence[Tensor],
    captured: Sequence[Tensor],
    old: Any,
) -> Any:
    """Run pass `number` (from 0) of a repeat from the state `old`: kept, computed again later, or measured.

    A repeat inside of a pass keeps or replays nothing on its own.
    """

    def run(carried: Sequence[Tensor], captured: Sequence[Tensor], old: Any) -> Any:
        return module(*carried, *captured, state=old)

    plan = _plan.get()
    if plan is None or not torch.is_grad_enabled():
        return run(carried, captured, old)
    weights = tuple(module.parameters())
    if plan.meter is not None:
        if number == 0:
            with plan.meter.first_pass(passes, carried):
                return run(carried, captured, old)
        with uncounted():
            return replayed(run, (carried, captured, old), Plan(Schedule(group=plan.meter.leanest)), weights)
    inside = Plan(Schedule(group=plan.schedule.group, kept=plan.schedule.kept))
    if number < plan.schedule.passes:
        return replayed(run, (carried, captured, old), inside, weights)
    with inside.in_force():
        return run(carried, captured, old)


def replayed(module: Callable[..., Any], arguments: Any, inside: Plan, weights: Iterable[Tensor]) -> Any:
    """Run `module(*arguments)`, keeping only the tensors among the arguments, which may be nested states.

    `weights` are the module's own.
    """
    leaves, shape = pytree.tree_flatten(arguments)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [leaves[i] for i in places]
    for place in places:  # the frame holds its tensors in its own way
        leaves[place] = None

    def function(s: Tensors, *given: Tensor) -> tuple[Tensors, Any]:
        filled = list(leaves)
        for place, tensor in zip(places, given, strict=True):
            filled[place] = tensor
        with inside.in_force():
            return {}, module(*pytree.tree_unflatten(filled, shape))

    _, result = Frame({}, tensors[0], weights).call(function, {}, tensors)
    return result


def uncounted() -> saved_tensors_hooks:
    """Keeps what is kept inside from being counted by a meter."""
    return saved_tensors_hooks(lambda x: x, lambda x: x)
