"""What a kernel does, one step after the other. Sizes and strides are of one instance, in elements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nsam.backends.torch.native.values import Buffer, Lazy, Sizes, View, leaves


@dataclass(eq=False)
class Loop:
    """Elementwise work of one shape: each value is computed and stored. Later ones may read earlier ones' values."""

    sizes: Sizes
    stores: list[tuple[View, Lazy]] = field(default_factory=list)

    def reads(self) -> Iterator[Buffer]:
        """Buffers that it reads and has not stored itself."""
        own: set[View] = set()
        for target, value in self.stores:
            yield from (leaf.buffer for leaf in leaves(value) if leaf not in own)
            own.add(target)

    def writes(self) -> Iterator[Buffer]:
        """Buffers that it writes."""
        yield from (target.buffer for target, _ in self.stores)


@dataclass(eq=False)
class Total:
    """The sum of an expression over some of its dimensions, which the target keeps with size 1."""

    target: View
    value: Lazy
    dims: tuple[int, ...]

    def reads(self) -> Iterator[Buffer]:
        """Buffers that it reads."""
        yield from (leaf.buffer for leaf in leaves(self.value))

    def writes(self) -> Iterator[Buffer]:
        """Buffers that it writes."""
        yield self.target.buffer


@dataclass(eq=False)
class Product:
    """Products of matrices: a [n, M, K] times b [n, K, N], whose columns lie beside each other.

    With `half` their values may be rounded to bfloat16.
    """

    target: View
    a: View
    b: View
    half: bool = False

    def reads(self) -> Iterator[Buffer]:
        """Buffers that it reads."""
        yield from (self.a.buffer, self.b.buffer)

    def writes(self) -> Iterator[Buffer]:
        """Buffers that it writes."""
        yield self.target.buffer


@dataclass(eq=False)
class Turn:
    """A copy of matrices [.., K, N] in which the places of a row lie beside each other."""

    target: View
    source: View

    def reads(self) -> Iterator[Buffer]:
        """Buffers that it reads."""
        yield self.source.buffer

    def writes(self) -> Iterator[Buffer]:
        """Buffers that it writes."""
        yield self.target.buffer


@dataclass(eq=False)
class Running:
    """Running sums along a dimension."""

    target: View
    source: View
    dim: int

    def reads(self) -> Iterator[Buffer]:
        """Buffers that it reads."""
        yield self.source.buffer

    def writes(self) -> Iterator[Buffer]:
        """Buffers that it writes."""
        yield self.target.buffer


Statement = Loop | Total | Product | Turn | Running


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
        return [s for s in self.done if not isinstance(s, Loop) or s.stores]

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
