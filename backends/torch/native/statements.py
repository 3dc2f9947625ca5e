"""What a kernel does, one step after the other. Sizes and strides are of one instance, in elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from nsam.backends.torch.native.values import Buffer, Lazy, Sizes, View, each, leaves

SMALLEST = 16
"""Rows, columns or summands from which a product of halves is worth the tiles of a matrix unit."""


def large(a: View, b: View) -> bool:
    """Whether the product of two matrices of halves is worth a matrix unit's tiles."""
    return min(*a.sizes[1:], b.sizes[2]) >= SMALLEST


class _Statement:
    """What all statements say of themselves."""

    def targets(self) -> Iterator[View]:
        """The places that it writes."""
        yield self.target  # type: ignore[attr-defined]

    def sources(self) -> Iterator[View]:
        """The places that it reads and has not written itself."""
        yield self.source  # type: ignore[attr-defined]

    def views(self) -> Iterator[View]:
        """All places."""
        yield from self.targets()
        yield from self.sources()

    def reads(self) -> Iterator[Buffer]:
        """Buffers that it reads."""
        yield from (view.buffer for view in self.sources())

    def writes(self) -> Iterator[Buffer]:
        """Buffers that it writes."""
        yield from (view.buffer for view in self.targets())


@dataclass(eq=False)
class Loop(_Statement):
    """Elementwise work of one shape: each value is computed and stored. Later ones may read earlier ones' values."""

    sizes: Sizes
    stores: list[tuple[View, Lazy]] = field(default_factory=list)

    def targets(self) -> Iterator[View]:
        """The places that it writes."""
        yield from (target for target, _ in self.stores)

    def sources(self) -> Iterator[View]:
        """The places that it reads and has not written itself."""
        own: set[View] = set()
        for target, value in self.stores:
            yield from (leaf for leaf in leaves(value) if leaf not in own)
            own.add(target)


@dataclass(eq=False)
class Total(_Statement):
    """The sum of an expression over some of its dimensions, which the target keeps with size 1."""

    target: View
    value: Lazy
    dims: tuple[int, ...]

    def sources(self) -> Iterator[View]:
        """The places that it reads."""
        yield from leaves(self.value)


@dataclass(eq=False)
class Product(_Statement):
    """Products of matrices: a [n, M, K] times b [n, K, N], whose columns lie beside each other.

    With `half` their values may be rounded to bfloat16. If it is `tiled`, b may lie in any way, and both may be halves.
    """

    target: View
    a: View
    b: View
    half: bool = False

    @property
    def tiled(self) -> bool:
        """Whether it is done by the processor's matrix unit, where there is one."""
        return self.half and large(self.a, self.b)

    def sources(self) -> Iterator[View]:
        """The places that it reads."""
        yield from (self.a, self.b)


@dataclass(eq=False)
class Turn(_Statement):
    """A copy of matrices [.., K, N] in which the places of a row lie beside each other."""

    target: View
    source: View


@dataclass(eq=False)
class Running(_Statement):
    """Running sums along a dimension."""

    target: View
    source: View
    dim: int


Statement = Loop | Total | Product | Turn | Running


def changed(s: Statement, view: Callable[[View], View], sizes: Callable[[Sizes], Sizes]) -> Statement:
    """The same statement with other views, and with the sizes that its shape becomes."""

    def lazy(x: Lazy) -> Lazy:
        return each(x, view, sizes(x.sizes))

    if isinstance(s, Loop):
        return Loop(sizes(s.sizes), [(view(target), lazy(value)) for target, value in s.stores])
    if isinstance(s, Total):
        return Total(view(s.target), lazy(s.value), s.dims)
    if isinstance(s, Product):
        return Product(view(s.target), view(s.a), view(s.b), s.half)
    if isinstance(s, Turn):
        return Turn(view(s.target), view(s.source))
    return Running(view(s.target), view(s.source), s.dim)


def apart(loop: Loop) -> list[Loop]:
    """Loops for what has nothing in common: stores of one loop all read some of the same values, or each other's.

    A loop that walks along many tensors at once has them push each other out of the cache, where their strides are
    powers of two.
    """
    found: list[tuple[set[View], list[tuple[View, Lazy]]]] = []
    for target, value in loop.stores:
        touched = {target, *(leaf for leaf in leaves(value) if _everywhere(leaf))}
        joined = [part for part in found if part[0] & touched]
        found = [part for part in found if not part[0] & touched]
        touched.update(*(views for views, _ in joined))
        found.append((touched, [*(store for _, stores in joined for store in stores), (target, value)]))
    order = {target: i for i, (target, _) in enumerate(loop.stores)}
    for _, stores in found:
        stores.sort(key=lambda store: order[store[0]])
    found.sort(key=lambda part: order[part[1][0][0]])
    return [Loop(loop.sizes, stores) for _, stores in found]


def _everywhere(view: View) -> bool:
    """Whether a view has a value of its own for each place, not one for many of them."""
    return all(stride or size == 1 for size, stride in zip(view.sizes, view.strides, strict=True))


class Order:
    """The statements of a kernel in order. Elementwise work waits for more of its shape until someone reads it."""

    LIMIT = 12
    """Stores of one loop: more would not stay in registers."""

    def __init__(self) -> None:
        self.done: list[Statement] = []
        self.open: dict[Sizes, Loop] = {}
        self.waiting: dict[Buffer, list[Loop]] = {}

    def store(self, target: View, value: Lazy) -> None:
        """Put an expression into its place."""
        loop = self.open.get(value.sizes)
        own = {t for t, _ in loop.stores} if loop else set()
        for leaf in leaves(value):
            for other in list(self.waiting.get(leaf.buffer, ())):
                if other is not loop or leaf not in own:
                    self._close(other)
        loop = self.open.setdefault(value.sizes, Loop(value.sizes))
        loop.stores.append((target, value))
        self.waiting.setdefault(target.buffer, []).append(loop)
        if len(loop.stores) >= self.LIMIT:
            self._close(loop)

    def add(self, statement: Statement) -> None:
        """What cannot wait."""
        for buffer in statement.reads():
            for loop in list(self.waiting.get(buffer, ())):
                self._close(loop)
        self.done.append(statement)

    def finish(self) -> list[Statement]:
        """All statements. What is stored but never read again is left out."""
        for loop in list(self.open.values()):
            self._close(loop)
        read = {buffer for statement in self.done for buffer in statement.reads()}
        for statement in self.done:
            if isinstance(statement, Loop):
                statement.stores = [s for s in statement.stores if _needed(s, statement, read)]
        return [part for s in self.done for part in (apart(s) if isinstance(s, Loop) else [s])]

    def _close(self, loop: Loop) -> None:
        if self.open.get(loop.sizes) is not loop:
            return
        del self.open[loop.sizes]
        for target, _ in loop.stores:
            if loop in self.waiting.get(target.buffer, ()):
                self.waiting[target.buffer].remove(loop)
        self.done.append(loop)


def _needed(store: tuple[View, Lazy], loop: Loop, read: set[Buffer]) -> bool:
    target = store[0]
    if target.buffer.kind == "output" or target.buffer in read:
        return True
    return any(target in set(leaves(value)) for _, value in loop.stores)
