"""The values that a unit's generated functions compute, with their sizes and what the backward pass needs of them."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from nsam.compiler.expressions import ELEMENTWISE, Node, undetached
from nsam.compiler.fast_memory import piece_of, reusable
from nsam.compiler.lower import memory_heads
from nsam.compiler.schedule import UnitPlan
from nsam.dsl.records import dataclass

FLOAT_BYTES = 4
INDEX_BYTES = 8
SAME = frozenset({"given", "shown", "detach", "split", "gate", "row", "index", "slice", "flatten", "lift", "output"})
"""Nodes whose value lies in the storage of their argument."""
EXPANDED = frozenset({"expand_heads", "expand_like", "expand_tokens", "each_sequence", "ones", "position", "number"})
LINEAR = frozenset({"add", "sub", "neg", "sign", "step_at", "inside", "identity_at"})
"""Elementwise functions whose backward pass needs no value."""
SLOPES = frozenset({"silu_slope", "gelu_slope", "gelu_tanh_slope"})
BY_RESULT = frozenset({"exp", "sqrt", "sigmoid", "tanh"})
REDUCTIONS = frozenset({"dot", "norm", "sum", "mean", "lp", "huber", "pseudo_huber", "length", "root_mean_square"})


@dataclass(frozen=True, slots=True)
class Value:
    """One value over a whole sequence. `size` in bytes; `again`: cheap to compute again from `args`; `needs`: what its
    backward pass needs."""

    key: str
    size: float
    args: tuple[str, ...] = ()
    again: bool = False
    needs: tuple[str, ...] = ()
    memory: str = ""


class Values:
    """All values of one unit over `tokens` tokens; `table` holds them by key."""

    def __init__(self, planned: UnitPlan, tokens: int) -> None:
        self.plan, self.tokens = planned, tokens
        self.table: dict[str, Value] = {}
        self.heads = {m.name: memory_heads(m) for m in planned.unit.memories}
        self.home: dict[str, str] = {}
        self.operands: set[str] = set()
        self.found_heads: dict[int, int] = {}
        self.function = ""

    def functions(self) -> Iterator[list[Value]]:
        """Values of each compiled function, arguments first."""
        for index, stage in enumerate(self.plan.stages):
            if stage.nodes:
                yield self.written(f"stage {index}", stage.nodes)
            if stage.loop:
                nodes = [n for lv in self.plan.levels for n in lv.before]
                nodes += [n for lv in reversed(self.plan.levels) for n in lv.after]
                yield self.written("block", sorted(nodes, key=lambda n: n.id))

    def written(self, function: str, nodes: tuple[Node, ...] | list[Node]) -> list[Value]:
        """The values that one function computes."""
        self.function = function
        for node in nodes:
            self.of(node)
        return [v for key, v in self.table.items() if self.home[key] == function]

    # --- values --------------------------------------------------------------------------------------

    def of(self, node: Node) -> str | None:
        """The key of a node's value; None for what costs nothing: numbers, parameters, constants."""
        while node.op in SAME and node.args:
            if node.op == "output":
                return self.add(f"%{node.id}", self.rows(node), source=True)
            node = node.args[0]
        key = f"%{node.id}"
        if node.op in EXPANDED or node.layout in ("number", "weight", "constant") or node.op == "child":
            return None
        if key in self.table:
            return key
        if node.op == "input":
            whole = node.attr("name") is not None and not node.shape
            size = INDEX_BYTES * self.tokens if whole else self.rows(node)
            return self.add(key, size, source=True)
        if node.op == "state":
            return self.state(node)
        if node.layout == "fold":
            return self.fold(node)
        return self.plain(node, key)

    def add(
        self,
        key: str,
        size: float,
        args: tuple[str | None, ...] = (),
        needs: tuple[str | None, ...] = (),
        *,
        again: bool = False,
        product: bool = False,
        memory: str = "",
        source: bool = False,
    ) -> str:
        """Put a value into the table; it belongs to `memory`, else to that of its arguments. A `source` belongs to no
        function: it comes from outside. A `product` needs its operands whole in the backward pass too: these are not
        computed again.
        """
        if key not in self.table:
            given, needed = (tuple(dict.fromkeys(k for k in keys if k is not None)) for keys in (args, needs))
            memory = memory or next((m for a in given if (m := self.table[a].memory)), "")
            self.table[key] = Value(key, size, given, again and bool(given), needed, memory)
            self.home[key] = "" if source else self.function
            if product:
                self.operands.update(needed)
        return key

    def rows(self, node: Node) -> float:
        """Bytes of a value over all tokens."""
        return FLOAT_BYTES * self.count(node) * max(1, prod(node.shape))

    def count(self, node: Node) -> int:
        """Rows of a value: one a token, times heads."""
        if node.layout == "heads":
            return self.tokens * self.heads_of(node)
        return self.tokens if node.layout == "flat" else 1

    def heads_of(self, node: Node) -> int:
        """Heads of a value in the layout `heads`."""
        if node.id not in self.found_heads:  # asked once a node: many paths may lead to one
            self.found_heads[node.id] = self.look_for_heads(node)
        return self.found_heads[node.id]

    def look_for_heads(self, node: Node) -> int:
        """What a node says itself, else what its arguments have."""
        if node.attr("heads") is not None:
            return int(str(node.attr("heads")))
        if node.attr("memory") is not None:
            return self.heads[str(node.attr("memory"))]
        found = [self.heads_of(a) for a in node.args if a.layout in ("heads", "state", "fold")]
        return max(found, default=1)

    def state(self, node: Node) -> str:
        """A fast weight, once for each chunk."""
        memory = str(node.attr("memory"))
        size = FLOAT_BYTES * self.heads[memory] * prod(node.shape)
        fast = [f for f in self.plan.lowered.fast if f.memory.name == memory]
        chunks = len(self.chunks(fast[0].folds[0].node)) if fast else 1
        return self.add(f"%{node.id}", size * chunks, memory=memory, source=True)

    def chunks(self, node: Node) -> list[int]:
        """Lengths of the pieces over which a node runs."""
        return self.plan.pieces(node, self.tokens)

    # --- plain nodes -----------------------------------------------------------------------------------

    def plain(self, node: Node, key: str) -> str:
        """Any node that is no fold."""
        args = tuple(self.of(a) for a in node.args)
        size, op = self.rows(node), node.op
        if op in ("linear", "linear_t"):
            memory = str(undetached(node.args[1]).attr("memory"))
            return self.add(key, size, args, args, product=True, memory=memory)
        if op in ("fold_read", "fold_read_t", "fold_row"):
            return self.read(node, key)
        if op in REDUCTIONS:
            needs = () if op in ("sum", "mean") else (*args, key if op in ("norm", "length") else None)
            return self.add(key, size, args, needs)
        if op in ("normalize", "rmsnorm", "layernorm", "softmax"):
            scale = self.add(f"{key} scale", FLOAT_BYTES * self.count(node), args[:1], args[:1])
            needs = (key,) if op == "softmax" else (args[0], scale)
            memory = "" if len(node.args) == 1 else str(undetached(node.args[1]).attr("memory"))
            return self.add(key, size, (args[0], scale), needs, again=True, memory=memory)
        if op == "attention":
            memory = str(node.attr("memory"))
            heads = int(self.plan.unit.memory(memory).structure.heads or 1)
            size = FLOAT_BYTES * self.tokens * heads * node.shape[-1]
            scale = self.add(f"{key} scale", FLOAT_BYTES * self.tokens * heads, (), (), memory=memory)
            return self.add(key, size, args, (*args, key, scale), product=True, memory=memory)
        if op == "embedding":
            return self.add(key, size, args, args, memory=str(undetached(node.args[1]).attr("memory")))
        if op == "conv":
            return self.add(key, size, args, args, again=True, memory=str(node.attr("memory")))
        if op in SLOPES:  # their factors are kept
            factors = [self.add(f"{key} factor {i}", size, args) for i in range(2)]
            return self.add(key, size, tuple(factors), tuple(factors), again=True)
        if op == "outer" or op in ELEMENTWISE:
            return self.add(key, size, args, self.slopes(node, key, args), again=True)
        return self.add(key, size, args, (), again=True)

    def slopes(self, node: Node, key: str, args: tuple[str | None, ...]) -> tuple[str | None, ...]:
        """What the derivative of an elementwise function is computed from."""
        if node.op in LINEAR:
            return ()
        if node.op in BY_RESULT:
            return (key,)
        if node.op in ("mul", "outer"):
            left, right = args
            return (left if right is not None else None, right if left is not None else None)
        if node.op == "div":
            return args if args[1] is not None else ()
        return args

    # --- folds -----------------------------------------------------------------------------------------

    def fold(self, node: Node) -> str:
        """An update over chunks, or a part that updates share; the key of what reads of it need."""
        key = f"%{node.id}"
        if key in self.table:
            return key
        if node.op == "decay":
            return self.decay(node, key)
        if node.op == "triangle":
            return self.triangle(node, key)
        if node.op == "rank_one":
            return self.rank_one(node, key)
        if node.op == "momentum":
            return self.momentum(node, key)
        return self.applied(node, key)

    def squares(self, node: Node, heads: int) -> float:
        """Bytes of a chunk × chunk matrix for each chunk and head."""
        return FLOAT_BYTES * heads * sum(n * n for n in self.chunks(node))

    def decay(self, node: Node, key: str) -> str:
        """Decays between tokens; nothing where the retention is a number."""
        keep = self.of(node.args[0])
        if keep is None:
            return self.add(key, 0.0)
        heads = self.heads_of(node.args[0])
        total = self.add(f"{key} total", FLOAT_BYTES * self.tokens * heads, (keep,), (keep,))
        return self.add(key, self.squares(node, heads), (total,), (key,), again=True)

    def triangle(self, node: Node, key: str) -> str:
        """The Gram matrix of the keys and the inverse."""
        key_node, erase, decay = node.args
        rows, rate, between = self.of(key_node), self.of(erase), self.of(decay)
        size = self.squares(node, self.key_heads(node))
        gram = self.add(f"{key} gram", size, (rows,), (rows,), product=True, memory="triangle")
        lower = self.add(f"{key} lower", size, (gram, rate, between), self.factors(gram, rate, between), again=True)
        return self.add(key, size, (lower,), (key,), memory="triangle")

    def factors(self, *keys: str | None) -> tuple[str | None, ...]:
        """What a product of several values needs: all of them."""
        return keys if sum(key is not None for key in keys) > 1 else ()

    def key_heads(self, triangle: Node) -> int:
        """A triangle belongs to as many heads as its key."""
        return self.heads_of(triangle.args[0])

    def rank_one(self, node: Node, key: str) -> str:
        """P, what each token writes, and what its solve needs."""
        memory, (out, _) = str(node.attr("memory")), node.shape
        size = FLOAT_BYTES * self.tokens * self.heads[memory] * out
        pairs = int(str(node.attr("pairs")))
        flat = [self.of(a) for a in node.args[1 : 1 + 2 * pairs]]
        decay, write, *erasing = (self.of(a) for a in node.args[1 + 2 * pairs :])
        start = self.of(node.args[0])
        written: list[str | None] = []
        for i, (u, g) in enumerate(zip(flat[::2], flat[1::2], strict=True)):
            value = self.add(f"{key} written {i}", size, (write, g), self.factors(write, g), again=True, memory=memory)
            written += [u, value]
        if len(erasing) == 3:
            rate, rows, inverse = erasing
            made = reusable(self.plan.lowered.builder, node)
            known = None if made is None else f"%{made.id}"
            if known is None or known not in self.table:
                known = self.add(f"{key} along", size, (rows, start), (rows, start), product=True, memory=memory)
            along = (known, self.later(node, key, size, rows, start))
            right = self.add(
                f"{key} right", size, (rate, decay, *along, *written), (rate, decay, *along), again=True, memory=memory
            )
            solved = self.add(f"{key} solved", size, (inverse, right), (inverse, right), product=True, memory=memory)
            written = [rows, solved, *(w for u, w in zip(written[::2], written[1::2], strict=True) if u != rows)]
        faded = decay is not None and self.table[decay].size > 0
        weighted = self.weighted(key, size, written, (decay,) if faded else ())
        self.add(f"{key} end", 0.0, tuple(weighted), tuple(weighted), again=True, product=True, memory=memory)
        return self.add(key, 0.0, tuple(written), (decay, start if faded else None), again=True, memory=memory)

    def later(self, node: Node, key: str, size: float, rows: str | None, start: str | None) -> str | None:
        """What stands along the keys of all pieces of a chunk but the first, which start from states of their own."""
        tokens = self.tokens - sum(min(n, piece_of(node) or n) for n in self.plan.blocks(node, self.tokens))
        if not tokens:
            return None
        part, memory = size * tokens / self.tokens, str(node.attr("memory"))
        return self.add(f"{key} later", part, (rows, start), (rows, start), product=True, memory=memory)

    def weighted(
        self, key: str, size: float, written: list[str | None], decays: tuple[str | None, ...]
    ) -> list[str | None]:
        """What tokens write as it reaches the end of a chunk, by each of `decays`: operands of the update."""
        found = list(written[::2])
        for i, value in enumerate(written[1::2]):
            for j, decay in enumerate(decays):
                needs = self.factors(value, decay)
                found.append(self.add(f"{key} weighted {i} {j}", size, (value, decay), needs, again=True))
            found += [] if decays else [value]
        return found

    def momentum(self, node: Node, key: str) -> str:
        """As a rank-one update, with the kernel of both decays."""
        memory, (out, into) = str(node.attr("memory")), node.shape
        heads = self.heads[memory]
        size = FLOAT_BYTES * self.tokens * heads * out
        pairs = int(str(node.attr("pairs")))
        flat = [self.of(a) for a in node.args[1 : 1 + 2 * pairs]]
        decay, surprise, write, *erasing = (self.of(a) for a in node.args[1 + 2 * pairs :])
        start = self.of(node.args[0])
        trace = FLOAT_BYTES * heads * out * into * len(self.chunks(node))
        kept = self.add(f"{key} trace", trace, memory=memory, source=True)
        square = self.squares(node, heads)
        gates = (decay, surprise)
        kernel = self.add(f"{key} kernel", square if any(gates) else 0.0, gates, gates)
        written: list[str | None] = []
        for i, (u, g) in enumerate(zip(flat[::2], flat[1::2], strict=True)):
            value = self.add(f"{key} written {i}", size, (write, g), self.factors(write, g), again=True, memory=memory)
            written += [u, value]
        if erasing:
            erase, fade, rows = erasing
            gram = self.add(f"{key} gram", square, (rows,), (rows,), product=True, memory=memory)
            inverse = self.add(
                f"{key} inverse", square, (gram, kernel), (f"{key} inverse", gram, kernel), memory=memory
            )
            reads = [
                self.add(f"{key} along {i}", size, (rows, s), (rows, s), product=True, memory=memory)
                for i, s in enumerate((start, kept))
            ]
            cross = [
                self.add(f"{key} cross {i}", square, (u, rows), (u, rows, kernel), memory=memory)
                for i, u in enumerate(written[::2])
            ]
            right = self.add(
                f"{key} right", size, (*reads, *cross, kernel), (*reads, kernel, *cross), again=True, memory=memory
            )
            solved = self.add(f"{key} solved", size, (inverse, right), (inverse, right), product=True, memory=memory)
            written += [rows, solved]
            del erase, fade
        weighted = self.weighted(key, size, written, (kernel, surprise or decay))
        self.add(f"{key} end", 0.0, tuple(weighted), tuple(weighted), again=True, product=True, memory=memory)
        return self.add(key, 0.0, tuple(written), (kernel, start, kept), again=True, memory=memory)

    def applied(self, node: Node, key: str) -> str:
        """A rule as it stands: once a chunk, or for every token."""
        memory, (out, into) = str(node.attr("memory")), node.shape
        fast = self.plan.fast(memory)
        args = tuple(self.of(a) for a in node.args)
        states = 2 + (len(fast.plan.states) if fast.plan is not None else 0)
        times = len(self.chunks(node)) if node.op == "summed" else self.tokens
        size = float(FLOAT_BYTES * self.heads[memory] * out * into * times * states)
        return self.add(key, size, args, (*args, key), memory=memory)

    def read(self, node: Node, key: str) -> str:
        """A read of the state after every token."""
        fold = node.args[0].args[0]
        made = self.fold(fold)
        memory, size = str(fold.attr("memory")), self.rows_of(fold, node)
        rows = self.of(node.args[1]) if len(node.args) > 1 else None
        if fold.op in ("summed", "generic"):
            return self.add(key, size, (rows, made), (rows, made), memory=memory)
        decay = self.of(next(a for a in fold.args if a.op == "decay")) if fold.op == "rank_one" else f"{made} kernel"
        square = self.squares(fold, self.heads[memory])
        written = self.table[made].args
        needs: list[str | None] = [rows, self.of(fold.args[0])]
        pairs = max(1, len(written) // 2)
        for i in range(pairs):
            gram = self.add(f"{key} gram {i}", square, (rows, made), (rows, *written), product=True, memory=memory)
            faded = self.add(
                f"{key} faded {i}", square, (gram, decay), self.factors(gram, decay), again=True, memory=memory
            )
            needs.append(faded)
        start = self.add(f"{key} start", size, (rows, self.of(fold.args[0])), (), memory=memory)
        if decay is not None and self.table[decay].size:
            needs += [start, decay]
        return self.add(key, size, (rows, made), tuple(needs), memory=memory)

    def rows_of(self, fold: Node, node: Node) -> float:
        """Bytes of a read: its width for every token and head."""
        return FLOAT_BYTES * self.tokens * self.heads[str(fold.attr("memory"))] * max(1, prod(node.shape))
