"""Which dimensions of a graph's tensors count independent instances: the sequences of a batch and their heads.

A label says of each dimension which axes it holds and in what order; they are its leading factors, the rest is the
inner size: [B H M, T, n] with axes B and H is labelled ((0, 1), (), ()) and has the inner shape [M, T, n]. A label is a
way to look at an operation, never an assumption: any label under which an operation works on each instance by itself
is right, so a wrong guess at a graph's inputs costs speed, not values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

Label = tuple[tuple[int, ...], ...]
"""For each dimension the axes that lead it."""


class Axes:
    """The sizes of the axes of a graph, outermost first. Axes of size 1 are none."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(size for size in sizes if size > 1)
        self.count = math.prod(self.sizes)

    def product(self, axes: Iterable[int]) -> int:
        """Number of instances along some axes."""
        return math.prod(self.sizes[axis] for axis in axes)

    def inner(self, shape: Sequence[int], label: Label) -> tuple[int, ...]:
        """The shape of one instance's part."""
        return tuple(size // self.product(axes) for size, axes in zip(shape, label, strict=True))

    def strides(self, shape: Sequence[int], stride: Sequence[int], label: Label) -> tuple[int, ...]:
        """How far apart one instance's part is from the next one's, along each axis; 0 where it is the same."""
        found = [0] * len(self.sizes)
        for size, step, axes in zip(shape, stride, label, strict=True):
            step *= size // self.product(axes)
            for axis in reversed(axes):
                found[axis] = step
                step *= self.sizes[axis]
        return tuple(found)

    def guess(self, shape: Sequence[int]) -> Label | None:
        """The label of a graph's input; None where it looks like a weight."""
        first, every = tuple(range(len(self.sizes)))[:1], tuple(range(len(self.sizes)))
        plain: list[tuple[int, ...]] = [() for _ in shape]
        if not self.sizes or len(shape) < 3:
            return None
        if len(self.sizes) == 2 and len(shape) > 3 and tuple(shape[:2]) == self.sizes:
            plain[:2] = [(0,), (1,)]
        elif len(shape) == 3 and shape[0] % self.count == 0:
            plain[0] = every
        elif shape[0] == self.sizes[0]:
            plain[0] = first
        elif len(shape) > 3 and len(self.sizes) == 1 and shape[1] == self.sizes[0]:
            plain[1] = every
        else:
            return None
        return tuple(plain)

    def reshape(self, shape: Sequence[int], label: Label, wanted: Sequence[int]) -> Label | None:
        """The label after a view; None if an axis would not lead its dimension any more."""
        factors: list[tuple[int | None, int]] = []  # an axis or an inner part, from the outermost
        for size, lead in zip(shape, label, strict=True):
            factors += [(axis, self.sizes[axis]) for axis in lead]
            factors.append((None, size // self.product(lead)))
        factors = [(axis, size) for axis, size in factors if size > 1]
        factors.reverse()
        result: list[tuple[int, ...]] = []
        for size in wanted:
            axes: list[int] = []
            inner = 1
            while size > 1:
                axis, part = factors.pop()
                if axis is None:
                    taken = math.gcd(part, size)
                    if taken == 1 or (taken < part and taken < size):
                        return None
                    if taken < part:
                        factors.append((None, part // taken))
                    inner *= taken
                    size //= taken
                elif inner > 1 or size % part:
                    return None
                else:
                    axes.append(axis)
                    size //= part
            result.append(tuple(axes))
        return tuple(result)


def vote(shapes: Iterable[Sequence[int]]) -> Axes:
    """The axes of a graph: what most of its inputs with four or more dimensions begin with."""
    votes: Counter[tuple[int, ...]] = Counter((shape[0], shape[1]) for shape in shapes if len(shape) > 3)
    if not votes:
        return Axes(())
    return Axes(max(votes, key=lambda sizes: (votes[tuple(sizes)], sizes)))
