"""Reads of one memory at several inputs as one product over all their rows.

An objective reads a memory at its key and, where it makes its own targets, at its value; a query reads it as well.
Each is a product with the same state, so where the inputs are known at the same time their rows are stacked: one
product of three times the rows instead of three. What follows row by row (an activation) is applied to the stack, which
is the input of the next layer's product as it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Literal

from nsam.compiler.expressions import ELEMENTWISE, Builder, Node, valued
from nsam.compiler.schedule import UnitPlan
from nsam.dsl.records import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """What a node has in a stack: number `index` of `count` equal parts of `whole`, along its rows or its memories."""

    whole: Node
    index: int
    count: int
    axis: Literal["rows", "memories"] = "rows"


@dataclass(frozen=True, slots=True)
class Stacked:
    """The nodes of a function in the order in which they are computed, and those that are parts of a stack, by id."""

    nodes: tuple[Node, ...]
    parts: dict[int, Part]


def stacked(plan: UnitPlan, nodes: Sequence[Node], known: Mapping[int, Part]) -> Stacked:
    """The work of one function as it is computed: with reads stacked, unless the pass `rows` is off.

    `known` are nodes that are parts of something already.
    """
    if "rows" not in plan.passes:
        return Stacked(tuple(nodes), {})
    longer = frozenset(f.memory.name for f in plan.lowered.fast if f.window > 1)
    return stack_rows(plan.lowered.builder, nodes, longer, known)


def stack_rows(
    b: Builder, nodes: Sequence[Node], longer: frozenset[str], known: Mapping[int, Part] | None = None
) -> Stacked:
    """Stack the reads in `nodes`, arguments first, wherever that makes no read wait for itself.

    `longer` are memories whose keys have more rows than there are tokens (those of a window): they are left alone.
    """
    return _Stacking(b, list(nodes), longer, known or {}).run()


def in_order(nodes: Sequence[Node], before: Mapping[int, Iterable[int]]) -> list[Node]:
    """`nodes` as they were, but each after those that it needs: of the ids in `before`, those that are among them."""
    by_id = {n.id: n for n in nodes}
    done: set[int] = set()
    found: list[Node] = []
    for root in nodes:
        stack = [root.id]
        while stack:
            waiting = [i for i in sorted(before[stack[-1]]) if i not in done and i in by_id]
            if waiting:
                stack += waiting[:1]
                continue
            node = by_id[stack.pop()]
            if node.id not in done:
                done.add(node.id)
                found.append(node)
    return found


@dataclass()
class _Stacking:
    b: Builder
    nodes: list[Node]
    longer: frozenset[str]
    known: Mapping[int, Part]
    parts: dict[int, Part] = field(default_factory=dict)
    before: dict[int, set[int]] = field(default_factory=dict)

    def run(self) -> Stacked:
        here = {n.id for n in self.nodes}
        for node in self.nodes:
            part = self.known.get(node.id)
            needed = valued(node.args) if part is None else [part.whole]
            self.before[node.id] = {a.id for a in needed if a.id in here}
        for members in self.groups():
            self.stack(members)
        return Stacked(tuple(in_order(self.nodes, self.before)), self.parts)

    # --- groups ------------------------------------------------------------------------------------

    def groups(self) -> list[list[Node]]:
        """Reads of one state at inputs that do not depend on each other, first layers first."""
        reads: dict[int, list[Node]] = {}
        for node in self.nodes:
            if self.stackable(node):
                reads.setdefault(node.args[1].id, []).append(node)
        depth = self.depths()
        found: list[list[Node]] = []
        for members in reads.values():
            apart: list[list[Node]] = []
            for node in sorted(members, key=lambda n: (-depth[n.id], n.id)):
                fits = (g for g in apart if not any(self.linked(node, other) for other in g))
                group = next(fits, None)
                if group is None:
                    apart.append(group := [])
                group.append(node)
            found += [sorted(group, key=lambda n: n.id) for group in apart if len(group) > 1]
        return sorted(found, key=lambda group: max(n.id for n in group))

    def stackable(self, node: Node) -> bool:
        """Whether a node reads a state with one row for each token."""
        if node.op != "linear" or node.args[1].op != "state" or node.id in self.known:
            return False
        if not _by_token(node.args[0]):
            return False
        return str(node.args[1].attr("memory")) not in self.longer

    def depths(self) -> dict[int, int]:
        """Length of the longest chain of nodes that ends in each."""
        found: dict[int, int] = {}
        for node in self.nodes:
            found[node.id] = max((found[i] + 1 for i in self.before[node.id]), default=0)
        return found

    def linked(self, one: Node, other: Node) -> bool:
        """Whether one of two nodes needs the other."""
        return other.id in self.needs(one) or one.id in self.needs(other)

    def needs(self, node: Node) -> set[int]:
        """All that a node needs, directly or not."""
        found: set[int] = set()
        queue = [node.id]
        while queue:
            for i in self.before.get(queue.pop(), ()):
                if i not in found:
                    found.add(i)
                    queue.append(i)
        return found

    # --- stacks ------------------------------------------------------------------------------------

    def stack(self, members: list[Node]) -> None:
        """Replace reads by parts of one product, unless something that one of them needs would wait for another."""
        ids = {n.id for n in members}
        if any(ids & self.needs(n) for n in members):
            return
        members, rows = self.rows(members)
        read, state = members[0], members[0].args[1]
        whole = self.b.make(read.op, (rows, state), read.shape, read.layout, **dict(read.attrs))
        self.b.name(whole, f"{state.attr('memory')}_rows_{state.attr('tensor')}")
        self.insert(rows, {a.id for n in members for a in valued(n.args[:1])})
        self.insert(whole, {rows.id})
        self.share(members, whole)

    def rows(self, members: list[Node]) -> tuple[list[Node], Node]:
        """The stacked inputs: what is applied to a stack's parts one by one is applied to the stack instead."""
        inputs = [n.args[0] for n in members]
        (first, *_) = inputs
        if first.op in ELEMENTWISE and len(first.args) == 1 and all(x.op == first.op for x in inputs):
            known = [self.parts.get(x.args[0].id) for x in inputs]
            whole = known[0].whole if known[0] is not None else None
            if whole is not None and all(p is not None and p.whole is whole and p.count == len(inputs) for p in known):
                order = sorted(range(len(inputs)), key=lambda i: known[i].index)  # type: ignore[union-attr]
                inputs, members = [inputs[i] for i in order], [members[i] for i in order]
                applied = self.b.make(first.op, (whole,), whole.shape, whole.layout, **dict(first.attrs))
                self.insert(applied, {whole.id})
                self.share(inputs, applied)
                return members, applied
        return members, self.b.make("rows", inputs, first.shape, first.layout, **_members(first))

    def insert(self, node: Node, needed: set[int]) -> None:
        """Add a node of a stack."""
        if node.id not in self.before:
            self.nodes.append(node)
            self.before[node.id] = needed & self.before.keys()

    def share(self, members: Iterable[Node], whole: Node) -> None:
        """Take each member from the stack."""
        members = list(members)
        for index, node in enumerate(members):
            self.parts[node.id] = Part(whole, index, len(members))
            self.before[node.id] = {whole.id}


def _by_token(x: Node) -> bool:
    """Whether a value certainly has one row for each token: it was made of values that do."""
    seen: set[int] = set()
    queue = [x]
    while queue:
        node = queue.pop()
        if node.id in seen:
            continue
        seen.add(node.id)
        if node.op in ("input", "expand_tokens", "output") or (node.op in ("embedding", "conv", "attention")):
            return node.layout in ("flat", "heads")
        queue += [a for a in node.args if a.layout in ("flat", "heads", "stacked")]
    return False


def _members(node: Node) -> dict[str, int]:
    """The attribute of a value that has an axis for the memory."""
    members = node.attr("members")
    return {} if members is None else {"members": int(str(members))}
