"""Writes the functions of one unit: what runs before, inside and after the loops over blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from nsam.backends.torch.emit.folds import FoldSource
from nsam.backends.torch.emit.keys import NO_SLOTS, NOWHERE, sites, slots, slots_of
from nsam.backends.torch.emit.light import light
from nsam.backends.torch.emit.moves import advances, quoted
from nsam.backends.torch.emit.names import Names, identifier
from nsam.backends.torch.emit.precision import wide_products
from nsam.backends.torch.emit.printer import Printer, clocks, each_token, state_bindings
from nsam.compiler import loops as planned
from nsam.compiler.arrange import Arranged, arrange
from nsam.compiler.expressions import Node, postorder, valued
from nsam.compiler.fast_memory import FastMemory
from nsam.compiler.instances import made_later
from nsam.compiler.schedule import Level, UnitPlan

INDENT = "    "
TIMELESS = frozenset({"sequence", "constant", "number", "weight", "state"})


@dataclass(frozen=True)
class Loop:
    """A loop of the plan and the name of the function that runs one of its blocks."""

    function: str
    plan: planned.Loop

    @property
    def level(self) -> Level | None:
        """The level that the loop stands for; None for a segment of several blocks."""
        return self.plan.level


@dataclass
class UnitSource:
    """Everything written for one unit; inputs of `recorded` are summed up, of `by_token` kept, see `keys.py`."""

    plan: UnitPlan
    prefix: str
    recorded: frozenset[str] = frozenset()
    by_token: frozenset[str] = frozenset()
    names: Names = field(init=False)
    arranged: Arranged = field(init=False)
    folds: FoldSource = field(init=False)
    loops: list[Loop] = field(init=False)

    def __post_init__(self) -> None:
        self.names = Names(self.plan.lowered.builder)
        for item in self.plan.lowered.inputs:
            self.names.of(item)
        for node in postorder(n for st in self.plan.stages for n in (*st.nodes, *([st.event] if st.event else []))):
            if node.op == "output":
                child, name = str(node.args[0].attr("name")), str(node.attr("name"))
                self.plan.lowered.builder.name(node, f"{child}_y" if name == "output" else name)
        fast = {f.memory.name: f for f in self.plan.lowered.fast}
        self.arranged = arrange(self.plan)
        forward = self.arranged.stacks.forward
        self.folds = FoldSource(
            self.prefix, fast, self.plan.lowered.like, self.plan.passes, self.plan.ahead, made_later(self.plan), forward
        )
        wide = wide_products(self.plan.lowered.fast)
        self.names.wide = wide | {part.whole.id for i, part in self.arranged.parts.items() if i in wide}
        self.names.sites = sites(self.plan, self.recorded)
        self.names.slots = slots(self.plan, self.by_token)
        for slot in self.names.slots.values():
            self.names.of(slot)
        self.loops = [Loop(self.loop_name(loop), loop) for loop in planned.plan_loops(self.plan)]

    # --- loops ---------------------------------------------------------------------------------------

    def loop_name(self, loop: planned.Loop) -> str:
        """`titans_every_64`, `titans_segment_64`."""
        if loop.level is None:
            return identifier(f"{self.prefix}_segment_{loop.period}")
        return identifier(f"{self.prefix}_every_{'_'.join(map(str, loop.level.cuts))}")

    def made_of(self, node: Node) -> list[Node]:
        """What a node is computed from, and what triangles are that may be made where it is."""
        triangles = [a for a in node.args if a.id in self.folds.later and a.op == "triangle"]
        return [*node.args, *(b for a in triangles for b in a.args)]

    # --- what crosses the borders of functions -------------------------------------------------------

    def inside(self, level: int) -> list[Node]:
        """All nodes that run in level `level` or deeper."""
        return [n for lv in self.plan.levels if lv.index >= level for n in (*lv.before, *lv.after)]

    def inputs(self, level: int) -> list[Node]:
        """Values from outside that level `level` and deeper ones need, in a fixed order."""
        inside = self.inside(level)
        here = {n.id for n in inside}
        found: dict[int, Node] = {}
        for node in inside:
            for a in valued(self.made_of(node)):
                if a.id not in here and self.passed(a):
                    found.setdefault(a.id, a)
        found |= slots_of(inside, self.names.slots)
        for fast in self.folds.memories.values():
            if self.level_of(fast) >= level:
                for a in self.loss_nodes(fast, level)[1]:
                    found.setdefault(a.id, a)
        return list(found.values())

    def loss_nodes(self, fast: FastMemory, level: int) -> tuple[list[Node], list[Node]]:
        """Nodes of a memory's loss that run in level `level` or deeper, and the values they need from outside.

        What could be computed outside, but what nothing else asks for, is left to who looks at the loss.
        """
        local: list[Node] = []
        outside: dict[int, Node] = {}
        seen: set[int] = set()
        stack = [(fast.loss, False)]
        while stack:
            node, done = stack.pop()
            if done:
                local.append(node)
            elif node.id not in seen:
                seen.add(node.id)
                free = node.op in ("given", "shown", "number", "weight", "state") or node.layout == "fold"
                if not free and node.id in self.computed and self.plan.places[node.id].level < level:
                    outside[node.id] = node
                    continue
                stack.append((node, True))
                if node.layout != "fold" or node.op == "shown":
                    stack += [(a, False) for a in reversed(node.args)]
        return local, list(outside.values())

    @cached_property
    def computed(self) -> frozenset[int]:
        """What is computed whether somebody looks at inner losses or not, by id; inputs and results of calls too."""
        made = self.nodes()
        events = [stage.event for stage in self.plan.stages if stage.event is not None]
        outside = [a for n in (*made, *events, *self.judged) for a in (n, *n.args)]
        return frozenset(n.id for n in outside)

    @property
    def judged(self) -> list[Node]:
        """The keys and values that objectives name."""
        return [n for fast in self.folds.memories.values() for n in fast.judged]

    def passed(self, node: Node) -> bool:
        """Whether a value is handed to functions as an argument."""
        if node.layout == "fold":
            return node.id in self.folds.ahead
        return node.op not in ("number", "weight", "state", "child")

    def outputs(self, level: int) -> list[Node]:
        """Values computed in level `level` or deeper that something outside needs."""
        here = {n.id for n in self.inside(level)}
        wanted: dict[int, Node] = {}
        outside = [n for lv in self.plan.levels if lv.index < level for n in (*lv.before, *lv.after)]
        outside += [n for stage in self.plan.stages for n in (*stage.nodes, *([stage.event] if stage.event else []))]
        roots = [n for _, n in self.plan.lowered.outputs]
        losses = [f.loss for f in self.folds.memories.values() if self.level_of(f) < level]
        lost = [n for loss in losses for n in self.reached(loss, here)]
        for node in [*(a for o in outside for a in valued(o.args)), *valued(roots), *lost]:
            if node.id in here:
                wanted.setdefault(node.id, node)
        return list(wanted.values())

    def reached(self, loss: Node, here: set[int]) -> list[Node]:
        """The values among `here` that a loss outside is computed from."""
        found: dict[int, Node] = {}
        seen: set[int] = set()
        todo = [loss]
        while todo:
            node = todo.pop()
            stands_for = node.op in ("given", "shown")
            if node.id in seen or (node.layout == "fold" and not stands_for):
                continue
            seen.add(node.id)
            if node.id in here and not stands_for and self.passed(node):
                found[node.id] = node
            else:
                todo += node.args
        return list(found.values())

    def level_of(self, fast: FastMemory) -> int:
        """The level in which a memory folds."""
        return next(lv.index for lv in self.plan.levels if fast.memory.name in lv.memories)

    # --- functions -----------------------------------------------------------------------------------

    def loop_functions(self) -> list[str]:
        """Functions of all loops, innermost first."""
        return [self.loop_function(i) for i in reversed(range(len(self.loops)))]

    def level_index(self, position: int) -> int:
        """The level that loop `position` stands for or encloses."""
        return next(lp.level.index for lp in self.loops[position:] if lp.level is not None)

    def loop_function(self, position: int) -> str:
        """The function of one loop: what runs before the inner loop, the loop, what runs after, and the new states."""
        loop = self.loops[position]
        level = self.level_index(position)
        inputs, outputs = self.inputs(level), self.outputs(level)
        if loop.level is None:
            body = ["new: dict[str, Tensor] = {}", *self.run_loop(position + 1, inputs), *self.results(outputs)]
            return self.function(
                loop.function, inputs, f"{loop.plan.period} tokens, compiled as one.", body, loop.plan.compiled
            )
        printer = Printer(self.names, self.folds.fold, inputs, clock="clock")
        inner_outputs: list[Node] = []
        inner_inputs: list[Node] = []
        deeper = position + 1 < len(self.loops)
        if deeper:
            inner_outputs, inner_inputs = self.outputs(level + 1), self.inputs(level + 1)
        both = (*loop.level.before, *loop.level.after)
        before, after = self.arranged.nodes[level]
        folded = [n for n in (*before, *after) if n.id not in self.arranged.parts]
        keep = [*outputs, *inner_inputs, *self.folds.forwards(folded, self.names)]
        printer.parts = self.arranged.parts
        printer.statements(before, [*keep, *self.needed(after)])
        lines = list(printer.lines)
        printer.lines = []
        if deeper:
            lines += self.run_loop(position + 1, inner_inputs)
            printer.text |= {n.id: (self.names.of(n), 9) for n in inner_outputs}
        printer.statements(after, keep)
        lines += printer.lines
        lines += self.surprises(loop.level, printer)
        lines += self.losses(loop.level, printer)
        lines += advances(self.plan, self.prefix, self.arranged.stacks.of(loop.level), loop.level, printer)
        used = {a.id for n in both if n.id not in self.folds.ahead for a in self.made_of(n)}
        rows = [n for n in inputs if n.layout == "fold" and n.id in used]
        unpacked = [self.folds.unpacked(n, printer) for n in sorted(rows, key=lambda n: n.op)]  # decays first
        opening = [*state_bindings(printer, printer.weights, "w"), *state_bindings(printer, printer.states, "s")]
        opening += [*clocks(lines), "new: dict[str, Tensor] = {}", *unpacked]
        what = self.describe(loop.level)
        if self.needs_clock and position == len(self.loops) - 1:
            lines += [f'new["{c}"] = s["{c}"] + at.length' for c in ("clock", "clock.never")]
        return self.function(
            loop.function, inputs, what, [*opening, *lines, *self.results(outputs)], loop.plan.compiled
        )

    def needed(self, nodes: Iterable[Node]) -> list[Node]:
        """What nodes are computed from: of a part of something, that."""
        parts = self.arranged.parts
        return valued(a for n in nodes for a in ((parts[n.id].whole,) if n.id in parts else n.args))

    @property
    def needs_clock(self) -> bool:
        """Whether something in the unit depends on the token's number."""
        return any(n.op in ("rope", "position") for n in self.nodes()) or any(
            f.plan is not None and f.plan.needs_count for f in self.folds.memories.values()
        )

    @property
    def places(self) -> int | None:
        """How many positions the unit knows: the fewest that a `position(x, n)` in it allows."""
        found = [int(str(n.attr("n"))) for n in self.nodes() if n.op == "position"]
        return min(found, default=None)

    def nodes(self) -> list[Node]:
        """Everything that the unit computes, in whatever loop."""
        inside = [n for lv in self.plan.levels for n in (*lv.before, *lv.after)]
        return [*inside, *(n for stage in self.plan.stages for n in stage.nodes)]

    def describe(self, level: Level) -> str:
        """One line on what moves in this loop."""
        if not level.memories:
            return "Tokens up to the next reset."
        names = ", ".join(level.memories)
        verb = "moves" if len(level.memories) == 1 else "move"
        exact = [m for m in level.memories if self.folds.memories[m].exact]
        if exact:
            return f"{names} {verb} every token; this block folds the exact recurrence in parallel."
        if len(level.cuts) == 1:
            every = "token" if level.cuts[0] == 1 else f"{level.cuts[0]} tokens"
            return f"{names} {verb} every {every}; gradients are taken at the last boundary (eq. 90)."
        return f"{names} {verb} at their own boundaries; this piece of a chunk lies between two of them."

    def function(
        self,
        name: str,
        inputs: Sequence[Node],
        what: str,
        body: Sequence[str],
        compiled: int | None,
        stage: str | None = None,
    ) -> str:
        """A whole function: decorator, signature, docstring, body."""
        arguments = "".join(f", {self.names.of(n)}: Tensor" for n in inputs)
        head = [f"@rt.block({compiled})"] if compiled else [f"@rt.{stage}"] if stage else []
        if len(arguments) > 70:
            arguments = "".join(f"\n{INDENT}{self.names.of(n)}: Tensor," for n in inputs)
            signature = (
                f"def {name}(\n{INDENT}w: Weights,\n{INDENT}s: Weights,\n{INDENT}at: rt.At,{arguments}\n) -> Result:"
            )
        else:
            signature = f"def {name}(w: Weights, s: Weights, at: rt.At{arguments}) -> Result:"
        return "\n".join([*head, signature, f'{INDENT}"""{what}"""', *(INDENT + line for line in body)]) + "\n"

    def results(self, outputs: Sequence[Node]) -> list[str]:
        """The return statement."""
        listed = ", ".join(each_token(n, self.names.of(n)) for n in outputs)
        return [f"return new, ({listed}{',' if len(outputs) == 1 else ''})"]

    def run_loops(self) -> list[str]:
        """Statements that run all loops over the sequence; memories that move as one are one state meanwhile."""
        found = self.arranged.stacks.found
        said = [(stack.name, quoted(stack.memories), quoted(stack.tensors)) for stack in found]
        return [
            *(f's = rt.together(s, "{name}", {memories}, {tensors})' for name, memories, tensors in said),
            *self.run_loop(0, self.inputs(0)),
            *(f's = rt.apart(s, "{name}", {memories})' for name, memories, _ in said),
        ]

    def run_loop(self, position: int, inputs: Sequence[Node]) -> list[str]:
        """Statements that run loop `position` over the current block, block by block."""
        loop = self.loops[position]
        outputs = self.outputs(self.level_index(position))
        timed = [n for n in inputs if n.layout not in TIMELESS]
        cuts = "".join(f"({p}, {never}), " for p, never in loop.plan.cuts)
        lists = [self.names.of(n) + "_parts" for n in outputs]
        lines = [f"{x}: list[Tensor] = []" for x in lists]
        names = [self.names.of(n) for n in timed]
        unpack = f"({', '.join(n + '_' for n in names)}{',' if len(names) == 1 else ''})"
        listed = "".join(f", {each_token(n, self.names.of(n))}" for n in timed)
        matrices = "".join(f"{i}, " for i, n in enumerate(timed) if is_matrix(n))
        listed += f", matrices=({matrices.strip()})" if matrices else ""
        lines.append(f"for inner, {unpack} in rt.pieces(at, {loop.plan.period}, ({cuts.strip()}){listed}):")
        order = {self.names.of(n): n for n in inputs}
        passed = "".join(f", {name}{'_' if n in timed else ''}" for name, n in order.items())
        targets = ", ".join(f"{self.names.of(n)}_" for n in outputs)
        lines.append(f"{INDENT}part, ({targets}{',' if outputs else ''}) = {loop.function}(w, s, inner{passed})")
        if not outputs:
            lines[-1] = f"{INDENT}part, _ = {loop.function}(w, s, inner{passed})"
        lines.append(f"{INDENT}s, new = rt.update(s, part), rt.update(new, part)")
        lines += [f"{INDENT}{x}.append({self.names.of(n)}_)" for x, n in zip(lists, outputs, strict=True)]
        joined = zip(lists, outputs, strict=True)
        lines += [f"{self.names.of(n)} = rt.join({x}{', 1' if is_matrix(n) else ''})" for x, n in joined]
        return lines

    # --- memories --------------------------------------------------------------------------------------

    def surprises(self, level: Level, printer: Printer) -> list[str]:
        """The objectives that adaptive memories decide by."""
        printer.lines, printer.sites, printer.slots = [], NOWHERE, NO_SLOTS
        for fast in (self.folds.memories[name] for name in level.memories):
            if fast.slowest is not None:
                live = self.live(fast.loss, printer)
                printer.statements([n for n in self.loss_nodes(fast, level.index)[0] if n.id in live], [fast.loss])
        return printer.lines

    def losses(self, level: Level, printer: Printer) -> list[str]:
        """Inner losses, recorded only when somebody looks."""
        lines: list[str] = []
        for name in level.memories:
            fast = self.folds.memories[name]
            inside = Printer(self.names, self.folds.fold, clock="clock")
            inside.text, inside.parts = dict(printer.text), printer.parts
            inside.weights, inside.states = printer.weights, printer.states
            inside.sites, inside.slots = NOWHERE, NO_SLOTS
            live = self.live(fast.loss, inside)
            inside.statements([n for n in self.loss_nodes(fast, level.index)[0] if n.id in live], [fast.loss])
            lines += [INDENT + line for line in inside.lines]
            rows = f"{each_token(fast.loss, inside.of(fast.loss, 9))}[:, :, -at.length :]"
            lines.append(f'{INDENT}new["{name}.loss"] = s["{name}.loss"] + {rows}.detach().sum(2).mean()')
        return ["if at.observe:", *lines] if lines else []

    def live(self, root: Node, printed: Printer) -> set[int]:
        """What `root` is still to be computed from: parts come out of what has been printed."""
        found: set[int] = set()
        todo = [root]
        while todo:
            node = todo.pop()
            if node.id not in found and node.id not in printed.text:
                found.add(node.id)
                todo += [] if node.id in printed.parts else node.args
        return found

    # --- stages ----------------------------------------------------------------------------------------

    def stage_border(self, index: int) -> tuple[list[Node], list[Node]]:
        """What stage `index` takes from outside and what later work needs of it."""
        stage = self.plan.stages[index]
        here = {n.id for n in stage.nodes}
        inputs: dict[int, Node] = {}
        for node in stage.nodes:
            for a in valued(node.args):
                if a.id not in here and self.passed(a):
                    inputs.setdefault(a.id, a)
        inputs |= slots_of(stage.nodes, self.names.slots)
        users: list[Node] = [n for _, n in self.plan.lowered.outputs]
        for later in self.plan.stages[index + 1 :]:
            users += [a for n in later.nodes for a in n.args]
        users += [a for st in self.plan.stages[index:] if st.event for a in st.event.args]
        users += self.inputs(0) if self.loops else []
        outputs: dict[int, Node] = {}
        for node in valued(users):
            if node.id in here:
                outputs.setdefault(node.id, node)
        return list(inputs.values()), list(outputs.values())

    def stage_function(self, index: int) -> str:
        """The function of one stage over the whole sequence."""
        stage = self.plan.stages[index]
        inputs, outputs = self.stage_border(index)
        printer = Printer(self.names, self.folds.fold, inputs)
        printer.statements(stage.nodes, outputs)
        opening = [*state_bindings(printer, printer.weights, "w"), *state_bindings(printer, printer.states, "s")]
        body = [*opening, "new: dict[str, Tensor] = {}", *printer.lines, *self.results(outputs)]
        chunks = {int(str(n.attr("block"))) for n in stage.nodes if n.id in self.folds.ahead}
        never = any(n.attr("never") for n in stage.nodes if n.id in self.folds.ahead)
        title, little = self.stage_title(index), light(stage.nodes, self.folds.later)
        if little and not chunks:
            return self.function(self.stage_name(index), inputs, f"{title} Too little to compile.", body, None)
        how = f"{math.lcm(*chunks)}{', never=True' if never else ''}{', light=True' if little else ''}"
        kind = f"aligned({how})" if chunks else "stage"
        return self.function(self.stage_name(index), inputs, title, body, None, stage=kind)

    def stage_name(self, index: int) -> str:
        """`titans_before`, `titans_after`, or a number where there are more."""
        loop_at = next((i for i, st in enumerate(self.plan.stages) if st.loop), None)
        used = [i for i, st in enumerate(self.plan.stages) if st.nodes]
        if loop_at is not None and len({i <= loop_at for i in used}) == len(used):
            return f"{self.prefix}_{'before' if index <= loop_at else 'after'}"
        return f"{self.prefix}_stage" if len(used) == 1 else f"{self.prefix}_stage_{used.index(index) + 1}"

    def stage_title(self, index: int) -> str:
        """One line on why this work stands here."""
        loop_at = next((i for i, st in enumerate(self.plan.stages) if st.loop), None)
        if loop_at is None:
            return "All tokens at once: nothing here moves during the sequence."
        if index <= loop_at:
            return "All tokens at once: what depends on no fast memory, hoisted out of the loop."
        return "All tokens at once: what no memory's update needs, after the loop."


def is_matrix(node: Node) -> bool:
    """Whether a value is a matrix a token, [B, T, n, m], which looks like [B, heads, T, n]."""
    return node.layout == "flat" and len(node.shape) == 2
