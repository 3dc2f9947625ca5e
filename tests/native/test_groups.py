"""Statements in rounds, in memory that is used again: random kernels, run by an interpreter of statements."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import Tensor

from nsam.backends.torch.native import kernel, values
from nsam.backends.torch.native.groups import Part, parts
from nsam.backends.torch.native.kernel import arena
from nsam.backends.torch.native.regions import Replaced
from nsam.backends.torch.native.statements import Loop, Product, Statement, Total, Turn
from nsam.backends.torch.native.values import Buffer, Expression, Lazy, Number, View, contiguous

Array = NDArray[np.float64]
Memory = Callable[[Buffer], Array]


def at(view: View, memory: Memory, m: int) -> Array:
    """The places of a view in round m."""
    flat = memory(view.buffer)[view.offset + m * view.step :]
    return as_strided(flat, view.sizes, [8 * step for step in view.strides])


def worth(x: Lazy, memory: Memory, m: int) -> Array:
    if isinstance(x, View):
        return at(x, memory, m).copy()
    if isinstance(x, Number):
        return np.full(x.sizes, x.value)
    operands = [worth(operand, memory, m) for operand in x.operands]
    return np.asarray(eval(x.text.format(*(f"o[{i}]" for i in range(len(operands)))), {"o": operands}))


def run(s: Statement, memory: Memory, m: int) -> None:
    if isinstance(s, Loop):
        for target, value in s.stores:
            at(target, memory, m)[...] = worth(value, memory, m)
    elif isinstance(s, Total):
        at(s.target, memory, m)[...] = worth(s.value, memory, m).sum(s.dims, keepdims=True)
    elif isinstance(s, Product):
        at(s.target, memory, m)[...] = at(s.a, memory, m) @ at(s.b, memory, m)
    else:
        assert isinstance(s, Turn)
        at(s.target, memory, m)[...] = at(s.source, memory, m)


def in_memory_of_its_own(given: dict[Buffer, Array]) -> Memory:
    return lambda buffer: given.setdefault(buffer, np.full(buffer.size, np.nan))


def run_parts(sections: Sequence[Part], given: dict[Buffer, Array]) -> None:
    """As a kernel does: own memory lies in one piece."""
    places, size = arena(sections)
    piece = np.full(size, np.nan)

    def memory(buffer: Buffer) -> Array:
        if buffer.kind != "own":
            return given.setdefault(buffer, np.full(buffer.size, np.nan))
        return piece[places[buffer.name] : places[buffer.name] + buffer.size]

    for section in sections:
        for m in range(section.rounds):
            for s in section.statements:
                run(s, memory, m)


class Random:
    """Makes statements over what is there so far."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.rounds = self.random.choice((2, 3, 4))
        self.statements: list[Statement] = []
        self.count = 0
        self.known: list[View] = [self.new((self.rounds, 4, 4), "input") for _ in range(3)]
        self.known.append(self.new((1, 4, 4), "input"))

    def new(self, sizes: tuple[int, ...], kind: str = "own") -> View:
        self.count += 1
        order = list(range(len(sizes)))
        if self.random.random() < 0.3:
            self.random.shuffle(order)
        dense = dict(zip(order, contiguous([sizes[i] for i in order]), strict=True))
        buffer = Buffer(f"b{self.count}", int(np.prod(sizes)), kind)  # type: ignore[arg-type]
        return View(buffer, sizes, tuple(dense[i] for i in range(len(sizes))))

    def some(self, sizes: tuple[int, ...]) -> View:
        """A view of something with these sizes: turned, repeated, the other way round, other matrices than its own."""
        found = self.random.choice(self.known)
        if self.random.random() < 0.2:
            turned = values.permute(found, (0, 2, 1))
            assert isinstance(turned, View)
            found = turned
        if found.sizes[0] > 1 and self.random.random() < 0.25:
            k = self.random.randrange(found.sizes[0])
            one = values.cut(found, 0, k, k + 1) if self.random.random() < 0.6 else values.reverse(found, (0,))
            assert isinstance(one, View)
            found = one
        whole = values.expand(found, sizes) if found.sizes[0] in (1, sizes[0]) else values.cut(found, 0, 0, 1)
        assert isinstance(whole, View)
        return whole

    def statement(self) -> None:
        n = self.rounds if self.random.random() < 0.8 else 1
        sizes = (n, 4, 4)
        kind = self.random.choice(("loop", "loop", "product", "product", "total", "turn", "into"))
        if kind == "loop":
            stores = []
            for _ in range(self.random.choice((1, 1, 2))):
                a, b = self.some(sizes), self.some(sizes)
                target = self.new(sizes)
                stores.append((target, Expression("{0} + 0.5 * {1}", (a, b), sizes)))
            self.statements.append(Loop(sizes, stores))
            self.known += [target for target, _ in stores]
        elif kind == "product":
            target = self.new(sizes)
            self.statements.append(Product(target, self.some(sizes), self.some(sizes)))
            self.known.append(target)
        elif kind == "turn":
            target = self.new(sizes)
            self.statements.append(Turn(target, self.some(sizes)))
            self.known.append(target)
        elif kind == "into":  # two statements fill a target, the second one a part of it again
            target = self.new((self.rounds, 4, 4))
            self.statements.append(Loop(target.sizes, [(target, self.some(target.sizes))]))
            k = self.random.randrange(self.rounds)
            part = values.cut(target, self.random.choice((0, 1)), k, k + 1)
            assert isinstance(part, View)
            self.statements.append(Loop(part.sizes, [(part, Number(2.0, part.sizes))]))
            self.known.append(target)
        else:
            dims = self.random.choice(((0,), (1,), (2,)))
            value = self.some(sizes)
            target = self.new(tuple(1 if i in dims else size for i, size in enumerate(sizes)))
            self.statements.append(Total(target, value, dims))
            repeated = values.expand(target, (target.sizes[0], 4, 4))
            assert isinstance(repeated, View)
            self.known.append(repeated)

    def finish(self) -> list[Buffer]:
        outputs = []
        for view in self.random.sample(self.known, 3):
            target = self.new(view.sizes, "output")
            self.statements.append(Loop(view.sizes, [(target, view)]))
            outputs.append(target.buffer)
        return outputs


@pytest.mark.parametrize("seed", range(150))
def test_random_kernels(seed: int) -> None:
    made = Random(seed)
    for _ in range(made.random.randrange(4, 25)):
        made.statement()
    outputs = made.finish()
    rng = np.random.default_rng(seed)
    inputs = {
        view.buffer: rng.standard_normal(view.buffer.size) / 4 for view in made.known if view.buffer.kind == "input"
    }
    expected = dict(inputs)
    for s in made.statements:
        run(s, in_memory_of_its_own(expected), 0)
    found = dict(inputs)
    run_parts(parts(made.statements), found)
    for buffer in outputs:
        assert not np.isnan(expected[buffer]).any()
        np.testing.assert_array_equal(found[buffer], expected[buffer])


def own(name: str, *sizes: int) -> View:
    return View(Buffer(name, int(np.prod(sizes)), "own"), sizes, contiguous(sizes))


def chain(last: Callable[[View], View] = lambda x: x) -> list[Statement]:
    """z = x w, a = 2 z, y = a (seen by `last`) w, output y."""
    x, w, out = (
        View(Buffer(name, 3 * 64, kind), (3, 8, 8), (64, 8, 1))  # type: ignore[arg-type]
        for name, kind in (("x", "input"), ("w", "input"), ("out", "output"))
    )
    z, a, y = own("z", 3, 8, 8), own("a", 3, 8, 8), own("y", 3, 8, 8)
    return [
        Product(z, x, w),
        Loop((3, 8, 8), [(a, Expression("2.0 * {0}", (z,), (3, 8, 8)))]),
        Product(y, last(a), w),
        Loop((3, 8, 8), [(out, y)]),
    ]


def test_values_between_need_the_room_of_one_matrix() -> None:
    sections = parts(chain())
    assert [(section.rounds, len(section.statements)) for section in sections] == [(3, 4)]
    assert arena([Part(chain())])[1] == 2 * 192
    assert arena(sections)[1] == 2 * 64


def test_another_round_s_values_are_waited_for() -> None:
    def reversed_order(x: View) -> View:
        found = values.reverse(x, (0,))
        assert isinstance(found, View)
        return found

    sections = parts(chain(reversed_order))
    assert [(section.rounds, len(section.statements)) for section in sections] == [(3, 2), (3, 2)]
    assert arena(sections)[1] == 64 + 192  # y lies where z was


def test_without_several_matrices_nothing_changes() -> None:
    a, b = own("a", 1, 8, 8), own("b", 1, 8, 8)
    statements: list[Statement] = [Product(b, a, a), Loop((1, 8, 8), [(a, b)])]
    (section,) = parts(statements)
    assert (section.rounds, section.statements) == (1, statements)


def test_memories_one_after_the_other(check: Callable[..., list[Replaced]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three memories; their reads are added up, and what follows is multiplied by each again."""
    rounds: list[int] = []

    def seen(statements: Sequence[Statement]) -> list[Part]:
        found = parts(statements)
        rounds.extend(section.rounds for section in found)
        return found

    monkeypatch.setattr(kernel, "parts", seen)

    def memories(flat: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        w = flat.unflatten(1, (3, 16))  # [batch, memory, in, out]: the batch alone tells instances apart
        together = x @ w.transpose(1, 2).reshape(4, 16, 48)
        z = torch.nn.functional.silu(together.unflatten(2, (3, 16)).transpose(1, 2))  # [batch, memory, token, hidden]
        read = (z @ w).sum(1, keepdim=True)
        moved = torch.sigmoid(read @ w.mT) * x[:, None]
        return moved @ w, w - z.mT @ z

    w = torch.randn(4, 48, 16, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 16, 16, dtype=torch.float64, requires_grad=True)
    assert check(memories, w, x)
    assert 3 in rounds
