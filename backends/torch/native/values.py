"""Values of one instance while a kernel is put together: stored ones, seen by sizes and strides, and expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

Sizes = tuple[int, ...]


@dataclass(eq=False)
class Buffer:
    """Memory of one instance: a part of an input or an output, or of the kernel's own memory. Size in elements.

    `half`: bfloat16 in memory; kernels compute with what it stands for.
    """

    name: str
    size: int
    kind: Literal["input", "output", "own"]
    boolean: bool = False
    half: bool = False


@dataclass(frozen=True)
class View:
    """Values in a buffer; strides in elements, 0 where one value stands for all places.

    `step`: how much further on it begins in each round of a part that is run several times (`groups`).
    """

    buffer: Buffer
    sizes: Sizes
    strides: Sizes
    offset: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        # One way to say the same: a dimension of size 1 has no stride.
        strides = tuple(0 if size == 1 else step for size, step in zip(self.sizes, self.strides, strict=True))
        object.__setattr__(self, "strides", strides)

    @property
    def boolean(self) -> bool:
        """Whether the values are truth values."""
        return self.buffer.boolean


@dataclass(frozen=True)
class Number:
    """One number for all places."""

    value: float
    sizes: Sizes
    boolean: bool = False


@dataclass(frozen=True)
class Expression:
    """An elementwise operation whose operands have its sizes; `text` is the C++ with {0}, {1}, … for them."""

    text: str
    operands: tuple[Lazy, ...]
    sizes: Sizes
    boolean: bool = False
    weight: int = field(default=1, compare=False)

    def __hash__(self) -> int:
        return self._hash

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.text, self.operands, self.sizes)))

    _hash: int = field(default=0, init=False, compare=False, repr=False)


Lazy = View | Number | Expression


@dataclass(frozen=True)
class Padded:
    """A sum of parts between zeros: each stands from `start` to `stop` along `dim`."""

    sizes: Sizes
    dim: int
    parts: tuple[tuple[int, int, Lazy], ...]

    def intervals(self) -> Iterator[tuple[int, int, list[Lazy]]]:
        """The stretches between two edges, with what is added up there."""
        edges = sorted({0, self.sizes[self.dim], *(edge for part in self.parts for edge in part[:2])})
        for low, high in pairwise(edges):
            here = [cut(x, self.dim, low - a, high - a) for a, b, x in self.parts if a <= low and high <= b]
            yield low, high, here


def by_rows(x: View) -> bool:
    """Whether the places of a row lie beside each other."""
    return x.sizes[-1] == 1 or x.strides[-1] == 1


def contiguous(sizes: Sequence[int]) -> Sizes:
    """Strides of values that lie one after the other."""
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def layout(x: Lazy) -> Sizes:
    """Strides for an expression's values that lie as those do of which it is made; row by row where these disagree."""
    whole = [
        leaf.strides for leaf in leaves(x) if all(d or n == 1 for n, d in zip(leaf.sizes, leaf.strides, strict=True))
    ]
    orders = {tuple(sorted(range(len(s)), key=lambda i: -abs(s[i]) if x.sizes[i] > 1 else 0)) for s in whole}
    if len(orders) != 1:
        return contiguous(x.sizes)
    order = next(iter(orders))
    dense = dict(zip(order, contiguous([x.sizes[i] for i in order]), strict=True))
    return tuple(dense[i] for i in range(len(order)))


def leaves(x: Lazy) -> Iterator[View]:
    """The stored values that an expression reads."""
    if isinstance(x, View):
        yield x
    elif isinstance(x, Expression):
        for operand in x.operands:
            yield from leaves(operand)


def each(x: Lazy, change: Callable[[View], View], sizes: Sizes) -> Lazy:
    """The same expression of its operands, looked at in another way."""
    if isinstance(x, View):
        return change(x)
    if isinstance(x, Number):
        return Number(x.value, sizes, x.boolean)
    operands = tuple(each(operand, change, sizes) for operand in x.operands)
    return Expression(x.text, operands, sizes, x.boolean, x.weight)


def permute(x: Lazy, order: Sequence[int]) -> Lazy:
    """Dimensions in another order."""
    sizes = tuple(x.sizes[i] for i in order)
    return each(x, lambda v: View(v.buffer, sizes, tuple(v.strides[i] for i in order), v.offset), sizes)


def expand(x: Lazy, sizes: Sizes) -> Lazy:
    """Repeat along dimensions of size 1, and along new ones in front."""
    if x.sizes == sizes:
        return x
    lead = len(sizes) - len(x.sizes)

    def change(v: View) -> View:
        kept = tuple(0 if a != b else s for a, b, s in zip(v.sizes, sizes[lead:], v.strides, strict=True))
        return View(v.buffer, sizes, (0,) * lead + kept, v.offset)

    return each(x, change, sizes)


def cut(x: Lazy, dim: int, start: int, stop: int, step: int = 1) -> Lazy:
    """The places from start up to stop along a dimension."""
    if (start, stop, step) == (0, x.sizes[dim], 1):
        return x
    sizes = (*x.sizes[:dim], max(0, -(-(stop - start) // step)), *x.sizes[dim + 1 :])

    def change(v: View) -> View:
        strides = (*v.strides[:dim], v.strides[dim] * step, *v.strides[dim + 1 :])
        return View(v.buffer, sizes, strides, v.offset + start * v.strides[dim])

    return each(x, change, sizes)


def reverse(x: Lazy, dims: Sequence[int]) -> Lazy:
    """The last place first along some dimensions."""

    def change(v: View) -> View:
        strides, offset = list(v.strides), v.offset
        for dim in dims:
            offset += (v.sizes[dim] - 1) * strides[dim]
            strides[dim] = -strides[dim]
        return View(v.buffer, v.sizes, tuple(strides), offset)

    return each(x, change, x.sizes)


def drop(x: Lazy, dim: int) -> Lazy:
    """Without a dimension of size 1."""
    sizes = (*x.sizes[:dim], *x.sizes[dim + 1 :])
    return each(x, lambda v: View(v.buffer, sizes, (*v.strides[:dim], *v.strides[dim + 1 :]), v.offset), sizes)


def insert(x: Lazy, dim: int) -> Lazy:
    """With a dimension of size 1."""
    sizes = (*x.sizes[:dim], 1, *x.sizes[dim:])
    return each(x, lambda v: View(v.buffer, sizes, (*v.strides[:dim], 0, *v.strides[dim:]), v.offset), sizes)


def reshape(x: Lazy, sizes: Sizes) -> Lazy | None:
    """Other sizes for the same values; None where no strides say that."""
    if x.sizes == sizes:
        return x
    if math.prod(sizes) == 0 or not all(_strides(v.sizes, v.strides, sizes) is not None for v in leaves(x)):
        return None
    return each(x, lambda v: View(v.buffer, sizes, _strides(v.sizes, v.strides, sizes) or (), v.offset), sizes)


def _strides(sizes: Sizes, strides: Sizes, wanted: Sizes) -> Sizes | None:
    """Strides for the wanted sizes. Dimensions that lie within each other are taken as one and cut again."""
    merged: list[list[int]] = []  # [size, stride of its last part]
    for size, stride in zip(sizes, strides, strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = [merged[-1][0] * size, stride]
        else:
            merged.append([size, stride])
    result: list[int] = []
    for size in reversed(wanted):
        if size == 1:
            result.append(0)
            continue
        if not merged or merged[-1][0] % size:
            return None
        result.append(merged[-1][1])
        merged[-1] = [merged[-1][0] // size, merged[-1][1] * size]
        if merged[-1][0] == 1:
            merged.pop()
    return tuple(reversed(result)) if not merged else None
