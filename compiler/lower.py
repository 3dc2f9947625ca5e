"""Lowers a checked unit to plan expressions: values, reads of memories, and one fold for each fast weight.

Nothing here knows about time: which loop a node runs in is decided by `schedule.py`. A read of a fast memory is built
from its boundary `state`, or, where the rule's recurrence can show it, from the fold itself (`reads running`).
"""

from __future__ import annotations

from dataclasses import field

from nsam.compiler.end_to_end import EndToEnd, build_end_to_end, check_starts
from nsam.compiler.exact import exact_candidates
from nsam.compiler.expressions import Attr, Builder, Node, join
from nsam.compiler.fast_memory import FastMemory
from nsam.compiler.folds import build_fast_memory
from nsam.compiler.passes import ALL, Passes
from nsam.compiler.unsupported import unsupported
from nsam.dsl import checked as c
from nsam.dsl.records import dataclass


@dataclass(frozen=True, slots=True)
class Lowered:
    """A unit as plan expressions.

    `like` gives, for each `decay`, a state whose precision and device it takes.
    `events` are the `child` nodes (calls and repeats). `initial` gives, for fast memories with a generated initial
    state, the vector it is cut from. `end_to_end` are the memories that move by the model's own loss: here they are
    states that stay put, because a call never goes beyond their boundaries.
    """

    unit: c.Unit
    builder: Builder
    inputs: tuple[Node, ...]
    outputs: tuple[tuple[str, Node], ...]
    fast: tuple[FastMemory, ...]
    events: tuple[Node, ...]
    initial: tuple[tuple[str, Node], ...]
    like: dict[int, Node]
    end_to_end: tuple[EndToEnd, ...] = ()
    passes: Passes = ALL


def lower(unit: c.Unit, passes: Passes = ALL) -> Lowered:
    """Lower one unit (its children are lowered on their own). Raises `ProgramError` for what cannot be compiled."""
    return Lowering(unit, passes).run()


@dataclass()
class Lowering:
    """State of lowering one unit."""

    unit: c.Unit
    passes: Passes = ALL
    b: Builder = field(default_factory=Builder)
    values: dict[tuple[str, frozenset[str]], Node] = field(default_factory=dict)
    fast: dict[str, FastMemory] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)
    children: dict[tuple[str, frozenset[str]], Node] = field(default_factory=dict)
    like: dict[int, Node] = field(default_factory=dict)
    sites: dict[str, dict[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memories = {m.name: m for m in self.unit.memories}
        self.bindings = {s.name: s for s in self.unit.steps if isinstance(s, c.Binding)}
        self.child_steps = {s.name: s for s in self.unit.steps if not isinstance(s, c.Binding)}
        self.exact = exact_candidates(self.unit) if "exact" in self.passes else frozenset()
        nothing: frozenset[str] = frozenset()
        for item in self.unit.inputs:
            self.values[item.name, nothing] = self.input(item)

    def run(self) -> Lowered:
        """Lower everything that the outputs and the fast memories need."""
        learning = tuple(self.end_to_end(m) for m in self.unit.memories if m.end_to_end)
        nothing: frozenset[str] = frozenset()
        for step in self.unit.steps:
            if isinstance(step, c.Binding):
                self.ref(step.name, nothing)
            else:
                self.child(step, nothing)
        for memory in self.unit.memories:
            if memory.fast and not memory.end_to_end:
                self.fast_memory(memory)
        outputs = tuple((name, self.b.each_token(self.expr(value, nothing))) for name, value in self.unit.outputs)
        initial = tuple(
            (m.name, self.b.flatten(self.expr(m.initial.expression, self.direct_sources(m))))
            for m in self.unit.memories
            if m.initial.kind == "expression" and m.initial.expression is not None
        )
        inputs = tuple(self.values[i.name, nothing] for i in self.unit.inputs)
        events = tuple(self.children.values())
        check_starts(self.unit, initial)
        return Lowered(
            self.unit, self.b, inputs, outputs, tuple(self.fast.values()), events, initial, self.like, learning,
            self.passes,
        )  # fmt: skip

    def input(self, item: c.Input) -> Node:
        """An input as it comes from outside; scalars get an axis of size 1."""
        shape = tuple(int(n) for n in item.type.shape)
        layout = {"token": "flat", "sequence": "sequence", "constant": "constant"}[varies(self.unit, item)]
        if item.type.vocab is None and not shape:
            shape = (1,)
        node = self.b.make("input", (), shape, layout, name=item.name)  # type: ignore[arg-type]
        return self.b.name(node, item.name)

    # --- expressions -------------------------------------------------------------------------------

    def ref(self, name: str, direct: frozenset[str]) -> Node:
        """The value of a binding or input, with reads of the `direct` memories detached; not inside of calls."""
        if (name, direct) in self.values:
            return self.values[name, direct]
        if name not in self.bindings:
            return self.values[name, frozenset()]
        binding = self.bindings[name]
        if direct and "." in binding.source:  # into or out of a call or repeat that is written out here: as if it ran
            return self.ref(name, frozenset())
        node = self.expr(binding.value, direct)
        if node.op not in ("number", "input"):
            self.b.name(node, binding.name)
        self.values[name, direct] = node
        return node

    def expr(self, expr: c.Expr, direct: frozenset[str], own: c.Memory | None = None) -> Node:
        """Lower one expression. `own` is the memory whose clause it stands in (what `self` means)."""
        if isinstance(expr, c.Constant):
            return self.b.number(expr.value)
        if isinstance(expr, c.Ref):
            return self.ref(expr.name, direct)
        if isinstance(expr, c.State):
            return self.detached(self.state_value(self.memories[expr.memory]), expr.memory, direct)
        if isinstance(expr, c.Read):
            return self.read(expr, direct, own)
        if isinstance(expr, c.Output):
            return self.output(expr, direct)
        if isinstance(expr, c.Apply):
            return self.apply(expr, [self.expr(a, direct, own) for a in expr.arguments])
        raise unsupported(f"`{expr.span.text}` cannot stand here", expr.span)

    def detached(self, node: Node, memory: str, direct: frozenset[str]) -> Node:
        """`node` without outer gradient if `memory` is a declared direct source."""
        return self.b.make("detach", (node,), node.shape, node.layout) if memory in direct else node

    def apply(self, expr: c.Apply, args: list[Node]) -> Node:
        """A function of values."""
        name, b = expr.function, self.b
        heads = int(expr.option("heads", 1) or 1)
        if name in ("normalize", "rope", "softmax", "root_mean_square") and args[0].layout != "heads":
            base = expr.option("base")
            if heads > 1 or name == "rope":
                found = self.last_axis(name, b.split(args[0], heads), **({} if base is None else {"base": base}))
                return b.merge(found, heads)
            return self.last_axis(name, args[0])
        if name in ("normalize", "softmax"):
            if args[0].shape and args[0].shape[-1] % heads:
                raise unsupported(f"{heads} heads do not divide the {args[0].shape[-1]} numbers of a head", expr.span)
            return self.last_axis(name, args[0], **({"heads": heads} if heads > 1 else {}))
        if name in ("sum", "mean", "norm", "dot"):
            return b.reduce(name, *(b.flatten(a) for a in args))
        if name == "outer":
            return b.make("outer", args, (args[0].shape[-1], args[1].shape[-1]), join(*(a.layout for a in args)))
        if name in ("lp", "huber", "pseudo_huber"):
            return b.reduce(name, args[0], **dict(expr.options))
        if name == "concat":
            if all(a.op == "number" for a in args):
                args = [b.filled(a, (1,)) for a in args]
            shape = (sum(a.shape[-1] if a.shape else 1 for a in args),)
            return b.make("concat", args, shape, join(*(a.layout for a in args)))
        if name == "position":
            return b.make("position", args, (), "flat", n=expr.option("n"))
        if name == "index":
            return b.make("index", args, (1,), args[0].layout, i=expr.option("i"))
        if name == "slice":
            start, stop = int(expr.option("start") or 0), int(expr.option("stop") or 0)
            return b.make("slice", args, (stop - start,), args[0].layout, start=start, stop=stop)
        if name == "clip" and any(a.layout != "number" for a in args[1:]):
            x, low, high = b.aligned(args)  # bounds that vary have gradients of their own
            return b.apply("min", b.apply("max", x, low), high)
        if name in ELEMENTWISE_FUNCTIONS:
            return b.apply(name, *b.aligned(args))
        raise unsupported(
            f"`{name}` on values of a system has no compiled form yet", expr.span, "use the reference backend"
        )

    def last_axis(self, name: str, x: Node, **attrs: Attr) -> Node:
        """A function over the last axis that keeps the shape."""
        return self.b.make(name, (x,), x.shape, x.layout, **attrs)

    # --- children ----------------------------------------------------------------------------------

    def child(self, step: c.Child, direct: frozenset[str]) -> Node:
        """The node that runs a call or a repeat once."""
        if (step.name, direct) not in self.children:
            if isinstance(step, c.Call):
                given, inside = step.arguments, step.unit
            else:
                given, inside = tuple(a for _, a in (*step.carried, *step.captured)), step.body
            pairs = zip(inside.inputs, given, strict=True)
            args = [self.b.handed_over(self.expr(a, direct), varies(inside, item)) for item, a in pairs]
            node = self.b.make("child", args, (), "flat", name=step.name)
            self.children[step.name, direct] = node
        return self.children[step.name, direct]

    def output(self, expr: c.Output, direct: frozenset[str]) -> Node:
        """What a call or repeat returns."""
        step = self.child_steps[expr.child]
        shape = tuple(int(n) for n in expr.type.shape) or (1,)
        event = self.child(step, frozenset())
        node = self.b.make("output", (event,), shape, "flat", name=expr.name)
        inside = {f"{expr.child}"} & direct
        return self.b.make("detach", (node,), shape, "flat") if inside else node

    # --- memories ----------------------------------------------------------------------------------

    def weight(self, memory: c.Memory, tensor: str) -> Node:
        """A slow weight."""
        shape = tuple(int(n) for n in memory.structure.tensors()[tensor])
        return self.b.make("weight", (), shape, "weight", memory=memory.name, tensor=tensor)

    def state(self, memory: c.Memory, tensor: str) -> Node:
        """A fast weight at the memory's last boundary: [B, H, out, in], vectors as [B, H, n, 1]."""
        shape = state_shape(memory, tensor)
        return self.b.make("state", (), shape, "state", memory=memory.name, tensor=tensor)

    def state_value(self, memory: c.Memory) -> Node:
        """A vector memory's bare name."""
        if not memory.fast and not held(memory):
            return self.weight(memory, "weight")
        if memory.fast and memory.reads == "running":
            fast = self.fast_memory(memory)
            return self.b.merge(fast.running_row(self.b, "weight"), 1)
        return self.boundary_value(memory)

    def boundary_value(self, memory: c.Memory) -> Node:
        """The value of a vector memory at its last boundary, once for each token."""
        width = memory_width(memory)
        row = self.b.make("row", (self.state(memory, "weight"),), width, "heads")
        return self.b.make("expand_tokens", (self.b.merge(row, 1),), width, "flat")

    def read(self, expr: c.Read, direct: frozenset[str], own: c.Memory | None) -> Node:
        """`m(x)`, `m.T(x)`, or `self(x)` inside the clauses of `own`."""
        if expr.memory == "self":
            if own is None:
                raise AssertionError("self outside a memory")
            return self.self_read(own, expr, direct)
        memory = self.memories[expr.memory]
        if memory.structure.kind == "attention":
            return self.attention(memory, expr, direct)
        x = self.expr(expr.argument, direct, own)
        if not memory.fast and not held(memory):
            node = self.slow_read(memory, x, expr)
        else:
            node = self.fast_read(memory, x, expr.transposed)
        return self.detached(node, memory.name, direct)

    def self_read(self, own: c.Memory, expr: c.Read, direct: frozenset[str]) -> Node:
        """`self(x)` in a clause: always the state of the last boundary."""
        heads = memory_heads(own)
        if own.structure.kind == "vector":
            return self.detached(self.boundary_value(own), own.name, direct)
        x = self.expr(expr.argument, direct, own)
        flat = x.layout != "heads"
        inside = self.layers(own, self.b.split(x, heads) if flat else x, expr.transposed, self.state, heads, x)
        return self.detached(self.b.merge(inside, heads) if flat else inside, own.name, direct)

    def fast_read(self, memory: c.Memory, x: Node, transposed: bool) -> Node:
        """`m(x)` of a memory with a state: the boundary's, or the running one as its fold shows it."""
        heads = memory_heads(memory)
        x = self.b.split(x, heads)
        if memory.fast and (memory.name in self.exact or memory.reads == "running"):
            fast = self.fast_memory(memory)
            if fast.shows(memory.reads):
                return self.b.merge(fast.read(self, x, transposed), heads)
        return self.b.merge(self.layers(memory, x, transposed, self.state, heads, x), heads)

    def layers(self, memory: c.Memory, x: Node, transposed: bool, weight: object, heads: int, source: Node) -> Node:
        """Apply a memory's layers to `x`, heads split, with `weight(memory, tensor)` giving each tensor."""
        from nsam.compiler.layers import apply_layers

        return apply_layers(self.b, memory, x, transposed, lambda tensor: weight(memory, tensor))  # type: ignore[operator]

    def slow_read(self, memory: c.Memory, x: Node, expr: c.Read) -> Node:
        """A read of weights that stay put during the sequence."""
        from nsam.compiler.layers import apply_slow

        sites = self.sites.setdefault(memory.name, {})
        site = sites.setdefault(x.id, len(sites))
        return apply_slow(self.b, memory, x, expr.transposed, lambda t: self.weight(memory, t), site)

    def attention(self, memory: c.Memory, expr: c.Read, direct: frozenset[str]) -> Node:
        """Causal softmax attention, the non-parametric memory (eq. 62-63)."""
        if memory.context is None or memory.context.key is None:
            raise unsupported("attention needs `learn key -> value`", memory.span)
        inner = self.direct_sources(memory)
        heads = int(memory.structure.heads or 1)
        kv_heads = int(memory.structure.kv_heads or heads)
        key = self.b.split(self.expr(memory.context.key, inner), kv_heads)
        value = self.b.split(self.expr(memory.context.value, inner), kv_heads)
        query = self.b.split(self.expr(expr.argument, direct), heads)
        window = None if memory.structure.window is None else int(memory.structure.window)
        node = self.b.make("attention", (query, key, value), value.shape, "heads", memory=memory.name, window=window)
        return self.detached(self.b.merge(node, heads), memory.name, direct)

    def direct_sources(self, memory: c.Memory) -> frozenset[str]:
        """Memories whose values enter this memory's clauses without gradient."""
        return frozenset(t.source for t in self.unit.transfers if t.kind == "direct" and t.target == memory.name)

    def end_to_end(self, memory: c.Memory) -> EndToEnd:
        """A memory that moves by the model's own loss."""
        direct, heads = self.direct_sources(memory), memory_heads(memory)
        return build_end_to_end(memory, lambda e: self.b.gate(self.expr(e, direct, memory), heads))

    def fast_memory(self, memory: c.Memory) -> FastMemory:
        """The folds of a fast memory, built on first use."""
        if memory.name not in self.fast:
            if memory.name in self.started:
                raise AssertionError(f"same-time cycle through {memory.name} reached lowering")
            self.started.add(memory.name)
            self.fast[memory.name] = build_fast_memory(self, memory)
        return self.fast[memory.name]


ELEMENTWISE_FUNCTIONS = frozenset(
    "add sub mul div neg pow exp log sqrt abs sign sin cos tanh sigmoid silu gelu gelu_tanh relu softplus "
    "max min clip".split()
)


def varies(unit: c.Unit, item: c.Input) -> str:
    """How an input varies: per `token`, `sequence` or `constant`. What a repeat hands on always may vary."""
    return "token" if item.name in dict(unit.outputs) else item.type.per


def held(memory: c.Memory) -> bool:
    """Whether a memory that does not move in the sequence has a state of its own: written at each reset by another."""
    return not memory.fast and memory.initial.kind in ("memory", "expression")


def memory_heads(memory: c.Memory) -> int:
    """Number of independent copies (1 when no heads are declared)."""
    return int(memory.structure.heads or 1)


def memory_width(memory: c.Memory) -> tuple[int, ...]:
    """Width of a vector memory's value."""
    return (int(memory.structure.sizes[0]),)


def state_shape(memory: c.Memory, tensor: str) -> tuple[int, ...]:
    """Matrix shape of a fast tensor of one head; vectors are columns [n, 1]."""
    shape = tuple(int(n) for n in memory.structure.tensors()[tensor])
    if memory.structure.heads is not None:
        shape = shape[1:]
    return shape if len(shape) == 2 else (*shape, 1)
