"""Which memories move as one, and in which order their operations then stand."""

from __future__ import annotations

import pytest

import nsam
from nsam.compiler.arrange import Arranged, arrange
from nsam.compiler.expressions import Node
from nsam.compiler.passes import ALL, Passes, passes_without
from nsam.compiler.schedule import plan
from nsam.compiler.stacks import why_none

HEAD = """nsam 1
use std.rules (gd, dgd, momentum)
system s(dim: int = 4) {
  input x: [dim]
  memory p, q, r : linear(dim -> dim)
  memory rate, keep : linear(dim -> 1)
"""
FIRST = "a : linear(dim -> dim) { learn p(x) -> q(x); minimize l2; by dgd(lr = sigmoid(rate(x))); every 4 tokens }"


def arranged(*memories: str, output: str = "a(x) + b(x)", passes: Passes = ALL) -> tuple[Arranged, str]:
    """A system of these memories as its loops are computed, and why nothing in it is stacked."""
    declared = "".join(f"  memory {memory}\n" for memory in memories)
    unit = nsam.loads(f"{HEAD}{declared}  output {output}\n}}\n").instantiate("s", {})
    planned = plan(unit, passes)
    return arrange(planned), why_none(planned)


def names(found: Arranged) -> list[tuple[str, ...]]:
    return [stack.memories for stack in found.stacks.found]


def like(**changes: str) -> str:
    """Memory b: as `FIRST`, but for some clauses."""
    clauses = {
        "structure": "linear(dim -> dim)", "key": "p(x)", "value": "r(x)", "objective": "l2",
        "rule": "dgd(lr = sigmoid(rate(x)))", "period": "4", "more": "",
    } | changes  # fmt: skip
    return (
        "b : {structure} {{ learn {key} -> {value}; minimize {objective}; by {rule}; every {period} tokens; {more} }}"
    ).format(**clauses)


def test_memories_that_share_keys_and_gates_move_as_one() -> None:
    found, _ = arranged(FIRST, like())
    assert names(found) == [("a", "b")]
    assert found.stacks.found[0].name == "a+b"
    assert found.stacks.found[0].tensors == ("weight",)
    assert dict(found.stacks.found[0].folds)["weight"].op == "rank_one_wide"


@pytest.mark.parametrize(
    "changes",
    [
        {"structure": "linear(dim -> dim, bias)"},
        {"structure": "linear(dim -> dim, heads = 2)"},
        {"key": "r(x)"},
        {"rule": "dgd(lr = sigmoid(keep(x)))"},
        {"rule": "gd(lr = sigmoid(rate(x)))"},
        {"rule": "momentum(lr = 0.1, beta = 0.5)"},
        {"objective": "huber(1)"},
        {"period": "8"},
        {"more": "reads running"},
        {"more": "reset every 8 tokens"},
        {"more": "reset never"},
    ],
)
def test_memories_that_differ_stay_apart(changes: dict[str, str]) -> None:
    found, why = arranged(FIRST, like(**changes))
    assert names(found) == []
    assert why.startswith(("no two memories of equal structure", "memories of equal structure and period have keys"))


def test_a_memory_that_another_one_starts_from_within_a_sequence_stays_apart() -> None:
    assert names(arranged(FIRST, like(), like(more="init a; reset every 8 tokens").replace("b", "c", 1))[0]) == []


def test_the_pass_can_be_switched_off() -> None:
    found, why = arranged(FIRST, like(), passes=passes_without("stack"))
    assert names(found) == []
    assert why == "pass `stack` is switched off"


def test_what_one_memory_gives_another_is_computed_first() -> None:
    """a(x) is read at x and b at what a gives: these two reads stay apart, the rest does not."""
    found, _ = arranged(FIRST, like(), output="b(a(x))")
    assert names(found) == [("a", "b")]
    products = [n for n in work(found) if n.op == "linear" and n.args[1].op == "state"]
    assert [n.layout for n in products] == ["heads", "heads", "stacked"]
    in_order(found)


def test_a_key_may_come_out_of_one_of_the_memories() -> None:
    memories = [FIRST.replace("p(x)", "normalize(a(x))"), like(key="normalize(a(x))")]
    found, _ = arranged(*memories)
    assert names(found) == [("a", "b")]
    in_order(found)


def test_many_memories_have_a_short_name() -> None:
    many = [like().replace("b :", f"a_long_name_{i} :", 1) for i in range(4)]
    found, _ = arranged(*many, output=" + ".join(f"a_long_name_{i}(x)" for i in range(4)))
    assert found.stacks.found[0].name == "a_long_name_0+3"


def work(found: Arranged) -> list[Node]:
    """What is computed, without the parts that come out of something whole."""
    return [n for before, after in found.nodes.values() for n in (*before, *after) if n.id not in found.parts]


def in_order(found: Arranged) -> None:
    for before, after in found.nodes.values():
        position = {n.id: i for i, n in enumerate((*before, *after))}
        for node in (*before, *after):
            part = found.parts.get(node.id)
            needed = node.args if part is None else (part.whole,)
            assert all(position.get(a.id, -1) < position[node.id] for a in needed)
