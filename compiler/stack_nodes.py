"""Grows tuples of equal operations, one a memory, from the memories' states upwards, and makes one node of each.

A tuple is stacked where its operations are equal and each argument is the same for all memories, or is a tuple that is
stacked itself. Where the arguments of an otherwise equal operation differ (each memory is read at an input of its own),
they are gathered first. Stacked values have layout `stacked`: [B, H, M, T, *shape].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field
from typing import TypeAlias

from nsam.compiler.expressions import ELEMENTWISE, Attr, Node, valued
from nsam.compiler.fast_memory import FastMemory, reusable
from nsam.compiler.rows import Part, in_order
from nsam.compiler.schedule import UnitPlan
from nsam.dsl.records import dataclass

REDUCED = frozenset("sum dot mean norm normalize normalize_pullback root_mean_square length softmax ones".split())
LOSSES = frozenset("lp huber pseudo_huber inside".split())
READ = frozenset({"linear", "linear_t", "row", "detach"})
FOLD = frozenset({"rank_one", "momentum", "triangle"})
STACKED = ELEMENTWISE | REDUCED | LOSSES | READ | FOLD
GATHERED = ELEMENTWISE | {"linear", "linear_t"}

Signature: TypeAlias = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """What stacking made of a level's nodes, see `stacks.Stacks`."""

    folds: tuple[tuple[str, Node], ...]
    nodes: tuple[tuple[Node, ...], tuple[Node, ...]]
    parts: dict[int, Part]
    forward: dict[int, Node]


@dataclass()
class Stacking:
    """Stacks `members` in the `lists` of a level: what runs before its inner loop, and after it.

    `known` are parts of other stacks. `name` is what the memories are called together.
    """

    plan: UnitPlan
    lists: tuple[tuple[Node, ...], tuple[Node, ...]]
    members: Sequence[FastMemory]
    name: str
    known: dict[int, Part]
    parts: dict[int, Part] = field(default_factory=dict)
    place: dict[int, int] = field(default_factory=dict)
    before: dict[int, set[int]] = field(default_factory=dict)
    by_id: dict[int, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.b = self.plan.lowered.builder
        self.names = {m.memory.name for m in self.members}
        for place, nodes in enumerate(self.lists):
            for node in nodes:
                self.place[node.id], self.by_id[node.id] = place, node
        for node in self.by_id.values():
            part = self.known.get(node.id)
            needed = valued(node.args) if part is None else [part.whole]
            self.before[node.id] = {a.id for a in needed if a.id in self.by_id}

    @property
    def count(self) -> int:
        """How many memories move as one."""
        return len(self.members)

    def run(self) -> Made | None:
        """Stack all that can be; None where some memory's fold cannot."""
        columns = zip(*(fast.folds for fast in self.members), strict=True)
        folds = [[fold.node for fold in column] for column in columns]
        for column in folds:
            self.state([node.args[0] for node in column])
        while self.grow(gather=False) or self.grow(gather=True):
            pass
        if any(node.id not in self.parts for column in folds for node in column):
            return None
        wholes = [self.parts[column[0].id].whole for column in folds]
        forward = {}
        for column, whole in zip(folds, wholes, strict=True):
            made = reusable(self.b, column[0])
            if made is not None and made.id in self.parts:
                forward[whole.id] = self.parts[made.id].whole
        tensors = [fold.tensor for fold in self.members[0].folds]
        return Made(tuple(zip(tensors, wholes, strict=True)), self.ordered(), self.parts, forward)

    def state(self, nodes: Sequence[Node]) -> None:
        """The common state of one tensor."""
        tensor, shape = nodes[0].attr("tensor"), (self.count, *nodes[0].shape)
        attributes = {"memory": self.name, "tensor": tensor, "members": self.count}
        self.share(nodes, self.b.make("state", (), shape, "state", **attributes))

    # --- which operations belong together ------------------------------------------------------------

    def grow(self, *, gather: bool) -> bool:
        """Stack more operations on what is stacked; with `gather` one tuple whose arguments differ. Whether any was."""
        changed = False
        for nodes in self.tuples(gather=gather):
            if all(n.id not in self.parts for n in nodes) and self.together(nodes) and self.stack(nodes):
                changed = True
                if gather:
                    return True
        return changed

    def tuples(self, *, gather: bool) -> list[list[Node]]:
        """Equal operations, one a memory, in the order of the memories; the earliest first."""
        found: dict[Signature, dict[int, list[Node]]] = {}
        for node in self.by_id.values():
            if node.id in self.parts or node.id in self.known or node.op not in (GATHERED if gather else STACKED):
                continue
            for index in {self.parts[a.id].index for a in valued(node.args) if a.id in self.parts}:
                signature = self.signature(node, index, gather=gather)
                found.setdefault(signature, {}).setdefault(index, []).append(node)
        whole = [by_index for by_index in found.values() if len(by_index) == self.count]
        alone = [by_index for by_index in whole if all(len(nodes) == 1 for nodes in by_index.values())]
        return [[by_index[i][0] for i in range(self.count)] for by_index in alone]

    def signature(self, node: Node, index: int, *, gather: bool) -> Signature:
        """What operations of several memories must agree on, seen from memory number `index`."""
        arguments: list[object] = []
        for a in valued(node.args):
            part = self.parts.get(a.id)
            if part is not None and part.index == index:
                arguments.append(("stacked", part.whole.id))
            elif gather and a.layout == "heads":
                arguments.append(("gathered", a.shape))
            else:
                arguments.append(("shared", a.id))
        return (node.op, self.place[node.id], node.layout, node.shape, self.attributes(node), *arguments)

    def attributes(self, node: Node) -> tuple[tuple[str, Attr], ...]:
        """A node's attributes, its memory aside."""
        return tuple((k, self.name if k == "memory" and v in self.names else v) for k, v in node.attrs)

    def together(self, nodes: Sequence[Node]) -> bool:
        """Whether operations are different ones, and none of them waits for another."""
        ids = {n.id for n in nodes}
        return len(ids) == len(nodes) and not any(ids & self.needs(n) for n in nodes)

    def needs(self, node: Node) -> set[int]:
        """All that a node waits for, where what is stacked waits for what any of its parts needs."""
        found: set[int] = set()
        queue = [*self.before[node.id]]
        while queue:
            i = queue.pop()
            if i not in found:
                found.add(i)
                queue += self.before[i]
        return found

    # --- the stacked node ----------------------------------------------------------------------------

    def stack(self, nodes: Sequence[Node]) -> bool:
        """Make one node of a tuple of equal operations, unless it reads in a way that cannot be stacked."""
        columns = list(zip(*(valued(n.args) for n in nodes), strict=True))
        if any(not self.fits(nodes[0], i, column) for i, column in enumerate(columns)):
            return False
        node, place = nodes[0], self.place[nodes[0].id]
        op, layout = node.op, node.layout if node.layout in ("fold", "state") else "stacked"
        common = [self.common(column) for column in columns]
        if op in ("rank_one", "momentum") and self.wide(node, common):
            op = f"{op}_wide"
        else:
            common = [self.across(a, place) if a.layout in ("heads", "fold") and not _stacked(a) else a for a in common]
        for a, column in zip(common, columns, strict=True):
            self.insert(a, place, valued(column))
        attributes = dict(self.attributes(node)) | {"members": self.count}
        whole = self.b.make(op, common, node.shape, layout, **attributes)
        self.insert(whole, place, common)
        self.share(nodes, whole)
        return True

    def fits(self, node: Node, position: int, column: Sequence[Node]) -> bool:
        """Whether an argument of a tuple can be that of one stacked operation."""
        first = column[0]
        if first.layout == "state":
            return first.id in self.parts
        if node.op in ("linear", "linear_t") and position == 1:
            return False
        if first.id in self.parts or first.layout in ("number", "heads"):
            return True
        if first.layout in ("constant", "weight"):
            return len(first.shape) <= 1
        return first.layout == "fold" and all(a is first for a in column)

    def common(self, column: Sequence[Node]) -> Node:
        """An argument for all memories: the same, a stacked value, or different values gathered."""
        first = column[0]
        part = self.parts.get(first.id)
        if part is not None and all(self.belongs(a, part.whole, i) for i, a in enumerate(column)):
            return part.whole
        if all(a is first for a in column):
            return first
        return self.b.make("gather", column, first.shape, "stacked", members=self.count)

    def belongs(self, node: Node, whole: Node, index: int) -> bool:
        """Whether a node is number `index` of a stacked one."""
        part = self.parts.get(node.id)
        return part is not None and part.whole is whole and part.index == index

    def wide(self, fold: Node, common: Sequence[Node]) -> bool:
        """Whether all memories write at the same inputs with the same gates: only their errors differ."""
        last = 1 + 2 * int(str(fold.attr("pairs")))
        errors = common[2:last:2]
        rest = [*common[1:last:2], *common[last:]]
        return all(map(_stacked, errors)) and not any(map(_stacked, rest))

    def across(self, x: Node, place: int) -> Node:
        """What all memories share, with an axis for the memory."""
        made = self.b.make("across", (x,), x.shape, x.layout if x.layout == "fold" else "stacked", members=self.count)
        self.insert(made, place, [x])
        return made

    # --- order ---------------------------------------------------------------------------------------

    def insert(self, node: Node, place: int, needed: Iterable[Node]) -> None:
        """Add a node of a stack."""
        if node.id not in self.by_id and _stacked(node) and node.op != "state":
            self.by_id[node.id] = node
            self.place[node.id] = place
            self.before[node.id] = {a.id for a in needed if a.id in self.by_id}

    def share(self, members: Sequence[Node], whole: Node) -> None:
        """Take each member from the stack."""
        for index, node in enumerate(members):
            self.parts[node.id] = Part(whole, index, len(members), "memories")
            if node.id in self.before:
                self.before[node.id] = {whole.id}

    def ordered(self) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        """The nodes of the two lists, arguments first."""
        first, second = ([n for n in self.by_id.values() if self.place[n.id] == place] for place in (0, 1))
        return tuple(in_order(first, self.before)), tuple(in_order(second, self.before))


def _stacked(node: Node) -> bool:
    """Whether a node has an axis for the memory."""
    return node.attr("members") is not None
