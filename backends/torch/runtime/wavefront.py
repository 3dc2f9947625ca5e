"""The passes of a repeat as a wavefront: pass l on one segment of the sequence while pass l - 1 is at the next.

A recorded CUDA graph knows dependencies only, not the order in which the host named its kernels. Of a segment a pass
needs what the pass before made of the same one, and its own state after the segment before; so each pass has a stream,
which it goes through segment by segment, and waits for nothing else. Autograd runs the backward of each operation on
the stream of its forward, so the backward pass is a wavefront too, from the other end.

A call with the state of the call before is the same as one call over both: values, gradients and the returned state are
those of one pass after the other, up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nsam.backends.torch.runtime.blocks import SHORTEST_COMPILED
from nsam.backends.torch.runtime.replay import planned

if TYPE_CHECKING:
    from nsam.backends.torch.runtime.system import State, System

Values = tuple[Tensor, ...]
FEWEST, MOST = 4, 16
"""Bounds of the number of segments that is chosen where nobody asks for one.

With S segments L passes take (S + L - 1) / S times as long as one, but S times as many kernels for what is done once a
call. So S is twice the number of passes, then at most 3/2 times as long; within these bounds, and at most the blocks
that there are.
"""


class Streams(Protocol):
    """Queues of work, *lanes*: what is issued on one is done in its order, what is on two at any time."""

    def fork(self, lanes: int) -> None:
        """Have `lanes` lanes, whose work begins when what was issued here so far is done."""

    def lane(self, number: int) -> AbstractContextManager[Any]:
        """Issue what is inside on this lane."""

    def mark(self) -> Any:
        """The point where the lane that work is issued on is now."""

    def wait(self, mark: Any) -> None:
        """Begin what is issued from now on no earlier than that point is reached."""

    def lend(self, tensors: Iterable[Tensor]) -> None:
        """Say that tensors that another lane made are read here: their memory is not its own to use again."""

    def join(self) -> None:
        """Begin what is issued here from now on when all lanes that were forked have done their work."""

    def close(self) -> None:
        """Join for the last time: no lane is waited for again until it is forked."""


class OneQueue:
    """No lanes: everything is done in the order in which it is issued, as on a CPU."""

    def fork(self, lanes: int) -> None:
        """Nothing to do."""

    def lane(self, number: int) -> AbstractContextManager[Any]:
        """The one queue."""
        return nullcontext()

    def mark(self) -> None:
        """All points are passed in order."""

    def wait(self, mark: None) -> None:
        """What was issued earlier is done earlier."""

    def lend(self, tensors: Iterable[Tensor]) -> None:
        """Memory is used again after what was issued earlier."""

    def join(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class CudaStreams:
    """CUDA streams, the same ones each time: what libraries keep for a stream is there when a graph is recorded.

    While a graph is recorded, the allocator gives out no tensor again that `lend` has named, so what a backward pass
    frees on one stream stays valid for another that still reads it. What autograd hands from stream to stream it
    orders and lends itself.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.streams: list[torch.cuda.Stream] = []
        self.forked = 0

    def fork(self, lanes: int) -> None:
        """Every lane waits for the current stream, and so takes part in the recording that this one is part of."""
        while len(self.streams) < lanes:
            self.streams.append(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        here = self._here()
        for stream in self.streams[:lanes]:
            stream.wait_stream(here)
        self.forked = max(self.forked, lanes)

    def lane(self, number: int) -> AbstractContextManager[Any]:
        """Make the lane's stream the current one."""
        return torch.cuda.stream(self.streams[number])

    def mark(self) -> torch.cuda.Event:
        """An event on the current stream."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._here())
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        """Have the current stream wait for the event."""
        self._here().wait_event(mark)

    def lend(self, tensors: Iterable[Tensor]) -> None:
        """Tell the allocator that the current stream reads them."""
        here = self._here()
        for tensor in tensors:
            tensor.record_stream(here)

    def join(self) -> None:
        """Have the current stream wait for all lanes. One that was not forked is not part of a recording: left out."""
        here = self._here()
        for stream in self.streams[: self.forked]:
            here.wait_stream(stream)

    def close(self) -> None:
        """Join, and forget who was forked."""
        self.join()
        self.forked = 0

    def _here(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)


class Wavefront:
    """How the repeats of a call are run, and what came of it.

    `wanted` is the number of segments, None for a sensible one. With `asks` everything runs one pass after the other,
    and it is only found out whether it has to. After a call `segments` is the most that a repeat was cut into (0: none
    was), `reasons` says why some were not.
    """

    def __init__(self, streams: Streams, wanted: int | None = None, *, asks: bool = False) -> None:
        self.streams, self.wanted, self.asks = streams, wanted, asks
        self.segments = 0
        self.reasons: dict[str, None] = {}

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Run repeats this way inside. Backward passes belong inside as well: at the end all lanes are joined.

        So they are after an error, and a recording that it broke off ends as it should.
        """
        token = _wavefront.set(self)
        try:
            yield
        finally:
            _wavefront.reset(token)
            self.streams.close()

    def sizes(
        self, passes: Sequence[System], carried: Values, captured: Values, before: Sequence[State | None]
    ) -> list[int]:
        """Lengths of the segments of a repeat, none where its passes run one after the other."""
        why = why_in_order(passes, carried, captured, before)
        sizes: list[int] = []
        if why is None:
            time, block = carried[0].shape[1], passes[0].block_tokens
            sizes = cut(time, block, len(passes), self.wanted)
            if len(sizes) < 2:
                why = f"{time} tokens are less than two segments (of multiples of {_unit(block, self.wanted)} tokens)"
        if why is not None:
            self.reasons[why] = None
            return []
        self.segments = max(self.segments, len(sizes))
        return [] if self.asks else sizes

    def run(
        self,
        passes: Sequence[System],
        carried: Values,
        captured: Values,
        before: Sequence[State | None],
        sizes: Sequence[int],
    ) -> tuple[Values, list[State]]:
        """Run the passes of a repeat on segments of these lengths; returns what the last one hands on, and all states.

        carried: [B, T, ...] each; captured: the same, or what `timeless` of the passes names, or with a T of 1.
        """
        streams, timeless, count = self.streams, passes[0].timeless, len(carried)
        cuts = zip(*(_segments(x, sizes, i in timeless) for i, x in enumerate((*carried, *captured))), strict=True)
        segments = list(cuts)
        values, fixed = [x[:count] for x in segments], [x[count:] for x in segments]
        # At most so many passes are at work at once: the others have ended or not begun.
        lanes = min(len(passes), len(sizes))
        streams.fork(lanes)
        marks: list[Any] = [None] * len(sizes)
        states = list(before)
        parts: list[list[State]] = [[] for _ in passes]
        with _inside():
            for number, segment in diagonals(len(passes), len(sizes)):
                with streams.lane(number % lanes):
                    if number:
                        streams.wait(marks[segment])
                    streams.lend((*values[segment], *fixed[segment], *(() if segment else _tensors(states[number]))))
                    result, new = passes[number](*values[segment], *fixed[segment], state=states[number])
                    states[number] = new
                    parts[number].append(new)
                    if segment == len(sizes) - 1:
                        states[number] = whole_state(parts[number], sizes, truncated=passes[number].truncated)
                    marks[segment] = streams.mark()
                values[segment] = result if isinstance(result, tuple) else (result,)
        streams.join()
        streams.lend((*(x for each in values for x in each), *_tensors(states)))
        return tuple(torch.cat(each, 1) for each in zip(*values, strict=True)), states  # type: ignore[return-value]


def diagonals(passes: int, segments: int) -> Iterator[tuple[int, int]]:
    """Pairs of a pass and a segment, those first that have fewest to wait for.

    In this order passes may share a stream, `segments` of them apart: one has ended before the other begins.
    """
    for moment in range(passes + segments - 1):
        for number in range(max(0, moment - segments + 1), min(passes, moment + 1)):
            yield number, moment - number


_wavefront: ContextVar[Wavefront | None] = ContextVar("wavefront", default=None)
_segment: ContextVar[bool] = ContextVar("segment", default=False)


def wavefront() -> Wavefront | None:
    """How repeats are run now; None: one pass after the other, as the repeats inside of a pass are in any case."""
    return _wavefront.get()


def goes_on() -> bool:
    """Whether this is a call on a segment, so that gradients go on to the call before and from the one after."""
    return _segment.get()


@contextmanager
def _inside() -> Iterator[None]:
    outer, token = _wavefront.set(None), _segment.set(True)
    try:
        yield
    finally:
        _segment.reset(token)
        _wavefront.reset(outer)


def why_in_order(
    passes: Sequence[System], carried: Values, captured: Values, before: Sequence[State | None]
) -> str | None:
    """Why the passes of a repeat run one after the other; None if they may overlap."""
    body = passes[0]
    if len(passes) < 2:
        return "there is only one pass"
    if body.undivided is not None:
        return body.undivided
    if not body.block_tokens:
        return "the generated source does not say where its sequence may be cut"
    if planned():
        return "a budget of memory decides which passes are computed again"
    for unit in body.modules():
        if getattr(unit, "layer_reads", None) or getattr(unit, "token_reads", None):
            return "rules of the step clock need the inputs of layers, which are of whole sequences"
    time = carried[0].shape[1]
    if any(x.shape[1] != time for x in carried):
        return "what is handed from pass to pass has no common length"
    for number, x in enumerate(captured, len(carried)):
        if number not in body.timeless and (x.dim() < 2 or x.shape[1] not in (1, time)):
            return "a value from outside has another length than what is handed from pass to pass"
    lasting = any(getattr(unit, "kept_memories", None) for unit in body.modules())
    clocks = ("position", "steps") if lasting else ("position",)
    if any(state is not None and state[clock] % body.block_tokens for state in before for clock in clocks):
        return "the sequence goes on in the middle of a block"
    return None


def cut(time: int, block: int, passes: int, wanted: int | None = None) -> list[int]:
    """Lengths of the segments of `time` tokens: equal multiples of `block` tokens, but for the last, a shorter one.

    Every length of a function over the whole segment is compiled for itself, so a number of segments that leaves no
    shorter one is preferred. Without `wanted` none is too short to be compiled.
    """
    unit = _unit(block, wanted)
    blocks = -(-time // unit)
    most = min(blocks, wanted or min(max(FEWEST, 2 * passes), MOST))
    if most < 2:
        return [time]
    count = most if wanted else next((n for n in range(most, most // 2, -1) if blocks % n == 0 and n > 1), most)
    size = -(-blocks // count) * unit
    whole, rest = divmod(time, size)
    return [size] * whole + [rest] * (rest > 0)


def _unit(block: int, wanted: int | None) -> int:
    return block if wanted else -(-SHORTEST_COMPILED // block) * block


def _segments(x: Tensor, sizes: Sequence[int], timeless: bool) -> Sequence[Tensor]:
    """The segments of one value; contiguous, because functions are compiled for each stride that they meet."""
    if timeless or x.shape[1] == 1:
        return [x] * len(sizes)
    return [part.contiguous() for part in torch.split(x, list(sizes), 1)]


def whole_state(parts: Sequence[State], sizes: Sequence[int], *, truncated: bool) -> State:
    """The state after the whole sequence: the last segment's, with the mean losses of all tokens.

    With `truncated` it has no gradient, as that of any other call.
    """
    state = _with_losses(parts, sizes)
    found: State = pytree.tree_map_only(Tensor, Tensor.detach, state) if truncated else state
    return found


def _with_losses(parts: Sequence[State], sizes: Sequence[int]) -> State:
    last = parts[-1]
    children: dict[str, Any] = {}
    for name, child in last["children"].items():
        beside = [part["children"][name] for part in parts]
        several = isinstance(child, list)
        found = [_with_losses(each, sizes) for each in (zip(*beside, strict=True) if several else [beside])]
        children[name] = found if several else found[0]
    losses = {name: _mean([part["losses"][name] for part in parts], sizes) for name in last.get("losses", ())}
    return {**last, **({"losses": losses} if losses else {}), "children": children}


def _mean(values: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    total = values[0] * sizes[0]
    for value, size in zip(values[1:], sizes[1:], strict=True):
        total = torch.add(total, value, alpha=size)
    return total / sum(sizes)


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]
