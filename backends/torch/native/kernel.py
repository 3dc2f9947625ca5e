"""A kernel: its C++, and what it takes and gives."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.fx import Node

from nsam.backends.torch.native.axes import Axes
from nsam.backends.torch.native.groups import Part, parts
from nsam.backends.torch.native.labels import Labels
from nsam.backends.torch.native.lower import Lowering
from nsam.backends.torch.native.source import PART, Text, write
from nsam.backends.torch.native.statements import Product, Statement
from nsam.backends.torch.native.values import Buffer

ALIGNMENT = 16
"""Own memory begins at multiples of so many elements: of a line of the cache, or two."""
APART = 3
"""Lines between large buffers: many of them are powers of two long, and a loop reads them side by side. Without these,
the same places of all of them would have to share a few lines of the cache."""
LINE = 64
"""Bytes of a line of the cache."""
PRELUDE = ("vectors.h", "products.h", "halves.h")
CTYPES = {torch.float32: "float", torch.float64: "double"}


class Layout(NamedTuple):
    """Sizes, strides (in elements) and type of a tensor."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


class Kernel(NamedTuple):
    """C++ with one function `run(void** tensors, long threads)`: the inputs, then the outputs."""

    source: str
    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...]


@functools.cache
def prelude() -> str:
    """The C++ that all kernels begin with."""
    return "\n".join(Path(__file__).with_name(name).read_text() for name in PRELUDE)


def build(
    labels: Labels, nodes: Sequence[Node], inputs: Sequence[Node], outputs: Sequence[Node], dtype: torch.dtype
) -> tuple[Kernel, Lowering]:
    """The kernel of some nodes, in order, that work on instances."""
    low = Lowering(labels, nodes, inputs, outputs)
    sections = parts(low.statements)
    places, own = arena(sections)
    foreign = [view.buffer for view in (*low.inputs, *low.outputs.values())]
    index = {buffer.name: i for i, buffer in enumerate(foreign)}
    lines = [f"using T = {CTYPES[dtype]};", prelude()]
    calls, count = [], 0
    for section in sections:
        begin = count
        for i in range(0, len(section.statements), PART):
            text = Text()
            for statement in section.statements[i : i + PART]:
                write(text, statement)
            lines.append(f"SEPARATE void part{count}(char* const* q, [[maybe_unused]] long m) {{")
            lines += [_pointer(text.names[name], index, places) for name in sorted(text.names)]
            lines += [*text.lines, "}"]
            count += 1
        work = " ".join(f"part{i}(q, m);" for i in range(begin, count))
        calls.append(f"for (long m = 0; m < {section.rounds}; m++) {{ {work} }}")
    lines += _run(labels.axes, [*zip(inputs, low.inputs, strict=True), *low.outputs.items()], labels, calls, own)
    kernel = Kernel("\n".join(lines), tuple(map(layout, inputs)), tuple(map(layout, outputs)))
    return kernel, low


def layout(node: Node) -> Layout:
    """What a node's value looks like."""
    value = node.meta["val"]
    return Layout(tuple(value.shape), tuple(value.stride()), str(value.dtype).removeprefix("torch."))


def _pointer(buffer: Buffer, index: dict[str, int], places: dict[str, int]) -> str:
    kind = "bool" if buffer.boolean else "at::BFloat16" if buffer.half else "T"
    if buffer.kind == "own":
        place = f"reinterpret_cast<T*>(q[{len(index)}]) + {places[buffer.name]}"
        return f"{kind}* {buffer.name} = reinterpret_cast<{kind}*>({place});"
    return f"{kind}* {buffer.name} = reinterpret_cast<{kind}*>(q[{index[buffer.name]}]);"


def _run(
    axes: Axes, tensors: Sequence[tuple[Node, object]], labels: Labels, calls: Sequence[str], own: int
) -> list[str]:
    """The function that goes through the instances, on several threads."""
    scratch = 0
    pointers = []
    for i, (node, view) in enumerate(tensors):
        value = node.meta["val"]
        steps = axes.strides(value.shape, value.stride(), labels.of(node))
        size = value.element_size()
        offset = " + ".join(f"a{axis} * {step * size}L" for axis, step in enumerate(steps) if step) or "0"
        same = [axis for axis, step in enumerate(steps) if not step]
        pointer = f"static_cast<char*>(p[{i}]) + {offset}"
        if view.buffer.kind == "output" and same:  # type: ignore[attr-defined]
            # All instances along these axes compute the same: the first one's is kept. The others read theirs again,
            # so each has its own place.
            needed = size * (1 + sum((n - 1) * s for n, s in zip(view.sizes, view.strides, strict=True)))  # type: ignore[attr-defined]
            pointer = f"{' || '.join(f'a{axis}' for axis in same)} ? spare + {scratch} : {pointer}"
            scratch += -(-needed // LINE) * LINE
        pointers.append(f"q[{i}] = {pointer};")
    counters, rest = [], "i"
    for axis in reversed(range(len(axes.sizes))):
        counters.append(f"const long a{axis} = {rest} % {axes.sizes[axis]};")
        rest = f"{rest} / {axes.sizes[axis]}"
    return [
        'extern "C" void run(void** p, long threads) {',
        "#pragma omp parallel num_threads(threads)",
        "{",
        f"static thread_local std::vector<T> memory({own + 64});",
        f"static thread_local std::vector<char> spare_memory({max(scratch, 1)});",
        "[[maybe_unused]] char* spare = spare_memory.data();",
        f"char* q[{len(tensors) + 1}];",
        f"q[{len(tensors)}] = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 127) / 128 * 128);",
        "[[maybe_unused]] const Tiles ready;",
        "#pragma omp for schedule(static)",
        f"for (long i = 0; i < {axes.count}; i++) {{",
        *counters,
        *pointers,
        *calls,
        "} } }",
        "",
    ]


def arena(sections: Sequence[Part]) -> tuple[dict[str, int], int]:
    """Where in the kernel's own memory each buffer lies, and its size: what is not needed any more makes room."""
    statements = [statement for section in sections for statement in section.statements]
    first, last = _lives(sections)
    ending: dict[int, list[Buffer]] = {}
    for buffer, i in last.items():
        ending.setdefault(i, []).append(buffer)
    starting: dict[int, list[Buffer]] = {}
    for buffer, i in first.items():
        starting.setdefault(i, []).append(buffer)
    free: list[tuple[int, int]] = []  # begin, end
    places: dict[str, int] = {}
    top = 0
    for i in range(len(statements)):
        for buffer in starting.get(i, ()):
            size = _room(buffer)
            fits = [gap for gap in free if gap[1] - gap[0] >= size]
            if fits:
                gap = min(fits, key=lambda g: g[1] - g[0])
                free.remove(gap)
                if gap[1] - gap[0] > size:
                    free.append((gap[0] + size, gap[1]))
                places[buffer.name] = gap[0]
            else:
                places[buffer.name] = top
                top += size
        for buffer in ending.get(i, ()):
            begin = places[buffer.name]
            free = _join([*free, (begin, begin + _room(buffer))])
    return places, top


def _room(buffer: Buffer) -> int:
    """How much of the kernel's own memory a buffer takes, in numbers."""
    lines = -(-buffer.size // (2 if buffer.half else 1) // ALIGNMENT)
    return (lines + (APART if lines >= 32 else 0)) * ALIGNMENT


def _lives(sections: Sequence[Part]) -> tuple[dict[Buffer, int], dict[Buffer, int]]:
    """The first and the last statement that touch each buffer of own memory.

    What goes through several rounds, or is there before or after them, is there during all of them.
    """
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    begin = 0
    for section in sections:
        end = begin + len(section.statements)
        for i, statement in enumerate(section.statements, begin):
            for view in statement.views():
                if view.buffer.kind == "own":
                    each = section.rounds == 1 or not view.step
                    first[view.buffer] = min(first.get(view.buffer, i), i if each else begin)
                    last[view.buffer] = max(last.get(view.buffer, i), i if each else end - 1)
        if section.rounds > 1:
            for buffer in first:
                if first[buffer] < begin <= last[buffer]:
                    last[buffer] = max(last[buffer], end - 1)
        begin = end
    return first, last


def _join(gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    result: list[tuple[int, int]] = []
    for begin, end in sorted(gaps):
        if result and result[-1][1] == begin:
            result[-1] = (result[-1][0], end)
        else:
            result.append((begin, end))
    return result


def flops(statements: Sequence[Statement]) -> int:
    """Floating-point operations of the products of one instance."""
    return sum(2 * math.prod(s.a.sizes) * s.b.sizes[2] for s in statements if isinstance(s, Product))
