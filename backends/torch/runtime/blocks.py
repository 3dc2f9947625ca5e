"""Cutting time into blocks, and running the blocks' functions compiled or as they are."""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections.abc import Callable, Container, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nsam.backends.torch.runtime.compilation import PLAIN, RECOMPILE_LIMIT, CompilerSettings
from nsam.backends.torch.runtime.cxx import care, compiler_options
from nsam.backends.torch.runtime.instructions import decided, prepare_to_compile
from nsam.backends.torch.runtime.kept import PASS, Kept, compiled_by_torch, keepable
from nsam.backends.torch.runtime.replay import Recorder
from nsam.dsl.collector import paused


class At(NamedTuple):
    """Where a block stands. Static: a block's function is compiled once for each value of it.

    `offset` is the number of tokens since the last boundary of the block's own loop (on the clock of memories
    that are reset for each sequence), `never` the same on the clock of memories that are never reset. `replay` takes
    the blocks that are computed again in the backward pass. `cpp_wrapper`: compiled code calls its kernels from C++.
    `truncated`: gradients end where the call begins. `recompute`: elementwise results of a block are computed again
    in its backward pass. `gradients`: something of the call asks for one. `native`: a block's work is done instance
    by instance, in kernels of our own.
    """

    offset: int
    never: int
    length: int
    batch: int
    compiled: bool = False
    observe: bool = False
    replay: Recorder | None = None
    cpp_wrapper: bool = False
    truncated: bool = False
    recompute: bool = False
    gradients: bool = False
    native: bool = False

    def closes(self, period: int, never: bool = False) -> bool:
        """Whether a boundary of this period lies at the block's end."""
        return ((self.never if never else self.offset) + self.length) % period == 0

    def updates(self, period: int, never: bool = False) -> int:
        """Boundaries of this period up to the block's end, counted like `offset`."""
        return ((self.never if never else self.offset) + self.length) // period


def time_axis(x: Tensor) -> int:
    """Flat [B, T, n] and tokens [B, T] have time second, heads [B, H, T, n] third."""
    return 2 if x.dim() == 4 else 1


def lengths(at: At, cuts: Sequence[tuple[int, bool]]) -> list[int]:
    """Lengths of the pieces of a block, cut at every multiple of each period in `cuts` on its clock."""
    marks = {0, at.length}
    for period, never in cuts:
        first = -(at.never if never else at.offset) % period
        marks.update(range(first, at.length, period))
    edges = sorted(marks)
    return [b - a for a, b in itertools.pairwise(edges)]


def pieces(
    at: At, period: int, cuts: Sequence[tuple[int, bool]], *values: Tensor, matrices: Container[int] = ()
) -> list[tuple[At, tuple[Tensor, ...]]]:
    """The pieces of a block, each with its slices of `values` along time.

    Offsets of the pieces are taken modulo `period`, so that equal pieces share one compiled function. Slices come from
    one split (whose backward is one concatenation). `matrices` says which values have a matrix a token, [B, T, n, m].

    Where compiled functions are called, each slice is laid out for itself: torch.compile specialises on strides, and
    those of a slice of a longer tensor tell how long it is. So a sequence of any length finds its blocks compiled.
    """
    sizes = lengths(at, cuts)
    if len(sizes) == 1:
        return [(at._replace(offset=at.offset % period, never=at.never % period), values)]
    found: list[tuple[At, tuple[Tensor, ...]]] = []
    # A time axis of length 1 holds what is the same for all tokens.
    axes = [1 if i in matrices else time_axis(v) for i, v in enumerate(values)]
    cut = apart if at.compiled and not torch.compiler.is_compiling() else torch.split
    split = [[v] * len(sizes) if v.shape[a] == 1 else cut(v, sizes, a) for v, a in zip(values, axes, strict=True)]
    offset, never = at.offset, at.never
    for i, size in enumerate(sizes):
        inside = at._replace(offset=offset % period, never=never % period, length=size)
        found.append((inside, tuple([s[i] for s in split])))
        offset, never = offset + size, never + size
    return found


def apart(x: Tensor, sizes: Sequence[int], axis: int) -> tuple[Tensor, ...]:
    """Slices like those of torch.split, contiguous; a run of equal ones by one copy."""
    return _Apart.apply(x, sizes, axis)  # type: ignore[no-any-return, no-untyped-call]


class _Apart(torch.autograd.Function):
    """Its gradient is one concatenation; that of the operations it is made of copies three times."""

    @staticmethod
    def forward(x: Tensor, sizes: Sequence[int], axis: int) -> tuple[Tensor, ...]:
        runs = [(size, len(list(equal))) for size, equal in itertools.groupby(sizes)]
        found: tuple[Tensor, ...] = ()
        for part, (size, count) in zip(torch.split(x, [s * n for s, n in runs], axis), runs, strict=True):
            found += torch.unflatten(part, axis, (count, size)).movedim(axis, 0).contiguous().unbind(0)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Sequence[int], int], output: tuple[Tensor, ...]) -> None:
        ctx.axis = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return torch.cat(gradients, ctx.axis), None, None


def join(parts: Sequence[Tensor], axis: int | None = None) -> Tensor:
    """Put the pieces' results back together along time, which `axis` gives for matrix-valued tokens."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), time_axis(parts[0]) if axis is None else axis)


Function = Callable[..., Any]


def block(period: int) -> Callable[[Function], Function]:
    """Compile a block's function for blocks of exactly `period` tokens that start at a boundary.

    Other pieces (the tail of a sequence, a token at a time) run as plain PyTorch, so that lengths do not cause
    recompilation.
    """

    def decorate(function: Function) -> Function:
        compiled = _compile(function, block=True)

        @functools.wraps(function)
        def run(w: dict[str, Tensor], s: dict[str, Tensor], at: At, *values: Tensor) -> Any:
            whole = at.compiled and at.length == period and at.offset == 0 and at.never == 0
            inside = torch.compiler.is_compiling()  # of a longer block that is compiled: a part of its graph
            chosen = compiled if whole and not inside else function
            if at.replay is None:
                return chosen(w, s, at, *values)
            return at.replay.run(chosen, w, s, at._replace(replay=None), values)

        return run

    return decorate


def stage(function: Function) -> Function:
    """Compile a function over the whole sequence; short pieces (streaming) run as plain PyTorch."""
    function = _ending(function)
    compiled = _compile(function)

    @functools.wraps(function)
    def run(w: dict[str, Tensor], s: dict[str, Tensor], at: At, *values: Tensor) -> Any:
        whole = at.compiled and at.length >= SHORTEST_COMPILED
        return (compiled if whole else function)(w, s, at._replace(offset=0, never=0, replay=None), *values)

    return run


def aligned(period: int, *, never: bool = False, light: bool = False) -> Callable[[Function], Function]:
    """Like `stage`, for work on chunks whose boundaries repeat after `period` tokens: the block's start counts.

    With `never` on the clock of memories that are never reset. Compiled where the sequence goes on at a boundary; after
    a partial chunk it runs as plain PyTorch. So it does if it is `light`: where native kernels make its triangles, what
    is left takes less time than the call of a compiled function.
    """

    def decorate(function: Function) -> Function:
        function = _ending(function)
        compiled = _compile(function)

        @functools.wraps(function)
        def run(w: dict[str, Tensor], s: dict[str, Tensor], at: At, *values: Tensor) -> Any:
            start = (at.never if never else at.offset) % period
            here = at._replace(offset=0 if never else start, never=start if never else 0, replay=None)
            little = light and at.native and at.batch > 1  # otherwise triangles may be made here
            whole = at.compiled and at.length >= SHORTEST_COMPILED and start == 0 and not little
            return (compiled if whole else function)(w, s, here, *values)

        return run

    return decorate


def _ending(function: Function) -> Function:
    """Where gradients end with the call, what a function over the whole sequence stores has none.

    Said inside of the compiled function: what it returns with a gradient costs an addition of zeros in its backward.
    """

    def run(w: dict[str, Tensor], s: dict[str, Tensor], at: At, *values: Tensor) -> Any:
        new, results = function(w, s, at, *values)
        return {name: x.detach() for name, x in new.items()} if at.truncated else new, results

    # A function of the generated module: what is kept of it on disk then asks for no module by its name, which is
    # another one after each change to the program. With code of its own, for torch counts and searches variants by it.
    code = run.__code__.replace(co_name=function.__name__)
    own = FunctionType(code, function.__globals__, function.__name__, run.__defaults__, run.__closure__)
    return functools.wraps(function)(own)


_LOG = logging.getLogger("nsam")
_SETTINGS = threading.RLock()
SHORTEST_COMPILED = 32
"""Shortest sequence, in tokens, that is worth compiling for."""


def _compile(function: Function, block: bool = False) -> Function:
    """torch.compile in one graph with static shapes; a graph break is an error, not a slow program.

    Compiling starts at the first call: loading generated source should not cost the import of the compiler.
    """

    @functools.cache
    def ready(cpp_wrapper: bool, native: bool, recompute: bool, cuda: bool, careful: bool | None) -> Function:
        # One compiled function for each way to compile: torch's own guards do not ask how that was.
        options: dict[str, Any] = {"cpp_wrapper": True} if cpp_wrapper else {}
        options |= compiler_options(careful)
        if not cuda:
            decided()
            options |= PLAIN
        if native:
            from nsam.backends.torch.native.graph_pass import native_kernels

            options[PASS] = native_kernels()
            options["size_asserts"] = False  # in Python, of a hundred tensors a call: what kernels return is so made
        if recompute and cuda:
            from nsam.backends.torch.on_chip.graph_pass import kept_inverses

            options["joint_custom_post_pass"] = kept_inverses()
        if not cuda and not cpp_wrapper and keepable():
            return Kept(function, options)
        if not cuda:
            prepare_to_compile()
        return compiled_by_torch(function, options)

    @functools.wraps(function)
    def run(w: dict[str, Tensor], s: dict[str, Tensor], at: At, *values: Tensor) -> Any:
        if torch._C._len_torch_dispatch_stack():  # a mode that is to see each operation (of a FlopCounterMode, say)
            return function(w, s, at, *values)
        native, recompute = block and at.native, block and at.recompute
        tensors = (*values, *w.values())
        cuda = any(x.is_cuda for x in tensors)
        compiled = ready(at.cpp_wrapper, native, recompute, cuda, care(tensors))
        known = compiled.ready(w, s, at, values) if isinstance(compiled, Kept) else None
        if known is not None:
            return known(w, s, at, *values)
        # One thread at a time: the settings are the process's. Compiling makes millions of objects that stay.
        with _SETTINGS, paused(), CompilerSettings(recompute, cuda):
            try:
                return compiled(w, s, at, *values)
            except torch._dynamo.exc.FailOnRecompileLimitHit:  # found before anything ran
                _tell_limit()
        return function(w, s, at, *values)

    return run


@functools.cache
def _tell_limit() -> None:
    _LOG.warning(
        "a function was compiled for %d lengths, batches and modes, which is the limit: further ones run as plain "
        "PyTorch, slower. Pad sequences to a few lengths, multiples of the slowest period",
        RECOMPILE_LIMIT,
    )
