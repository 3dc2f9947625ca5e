"""Which reads are stacked, in which order work then stands, and where stacking would make a read wait for itself."""

from __future__ import annotations

import pytest

from nsam.compiler.expressions import Builder, Node
from nsam.compiler.rows import Stacked, stack_rows

NONE: frozenset[str] = frozenset()


class Graph:
    """A builder with one input a name and one state a memory."""

    def __init__(self) -> None:
        self.b = Builder()
        self.state = self.b.make("state", (), (4, 4), "state", memory="m", tensor="weight")

    def tokens(self, name: str) -> Node:
        return self.b.split(self.b.make("input", (), (4,), "flat", name=name), 1)

    def read(self, x: Node) -> Node:
        return self.b.linear(x, self.state)


def in_order(found: Stacked) -> bool:
    """Whether all that a node is computed from, its stack in place of its own operation, stands before it."""
    position = {n.id: i for i, n in enumerate(found.nodes)}
    for node in found.nodes:
        part = found.parts.get(node.id)
        needed = node.args if part is None else (part.whole,)
        if any(position.get(a.id, -1) >= position[node.id] for a in needed):
            return False
    return True


def test_reads_of_one_state_become_one_product() -> None:
    g = Graph()
    key, query = g.tokens("k"), g.tokens("q")
    reads = [g.read(key), g.read(query)]
    acts = [g.b.apply("silu", read) for read in reads]
    found = stack_rows(g.b, [*reads, *acts], NONE)
    assert {n.id for n in reads} == set(found.parts)
    whole = found.parts[reads[0].id].whole
    assert whole.op == "linear"
    assert whole.args[0].op == "rows"
    assert set(whole.args[0].args) == {key, query}
    assert sorted(part.index for part in found.parts.values()) == [0, 1]
    assert in_order(found)


def test_what_follows_row_by_row_is_applied_to_the_stack() -> None:
    g = Graph()
    second = g.b.make("state", (), (4, 4), "state", memory="m", tensor="w2")
    reads = [g.read(g.tokens(name)) for name in "kqv"]
    acts = [g.b.apply("silu", read) for read in reads]
    outs = [g.b.linear(act, second) for act in acts]
    found = stack_rows(g.b, [n for each in zip(reads, acts, outs, strict=True) for n in each], NONE)
    assert [n.op for n in found.nodes].count("rows") == 1
    top = found.parts[outs[0].id].whole
    assert top.args[0].op == "silu"
    assert top.args[0].args[0] is found.parts[reads[0].id].whole
    for read, act, out in zip(reads, acts, outs, strict=True):
        assert found.parts[read.id].index == found.parts[act.id].index == found.parts[out.id].index
    assert in_order(found)


def test_a_read_never_waits_for_itself() -> None:
    g = Graph()
    first = g.read(g.tokens("x"))
    again = g.read(g.b.apply("tanh", first))
    found = stack_rows(g.b, [first, again.args[0], again], NONE)
    assert not found.parts
    assert found.nodes == (first, again.args[0], again)


def test_two_stacks_do_not_wait_for_each_other() -> None:
    """a₁ needs b₁ and b₂ needs a₂: each pair is free on its own, both at once would be a cycle."""
    g = Graph()
    other = g.b.make("state", (), (4, 4), "state", memory="n", tensor="weight")
    b1 = g.b.linear(g.tokens("x"), other)
    a1 = g.read(g.b.apply("tanh", b1))
    a2 = g.read(g.tokens("y"))
    b2 = g.b.linear(g.b.apply("tanh", a2), other)
    found = stack_rows(g.b, [b1, a1.args[0], a1, a2, b2.args[0], b2], NONE)
    assert len({p.whole.id for p in found.parts.values()}) == 1
    assert in_order(found)


@pytest.mark.parametrize("longer", [NONE, frozenset({"m"})])
def test_windows_and_values_without_tokens_are_left_alone(longer: frozenset[str]) -> None:
    g = Graph()
    steady = g.b.make("row", (g.state,), (4,), "heads")
    reads = [g.read(g.tokens("k")), g.read(g.tokens("q")), g.read(steady)]
    found = stack_rows(g.b, [steady, *reads], longer)
    assert set(found.parts) == (set() if longer else {reads[0].id, reads[1].id})
