"""Prints the folds of fast memories, and the rules that they apply as functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nsam.backends.torch.emit.names import Names, identifier
from nsam.backends.torch.emit.printer import Printer, gate_sign
from nsam.backends.torch.rule_source import emit_initial, emit_step, scalar_keyword
from nsam.compiler.expressions import Node
from nsam.compiler.fast_memory import FastMemory, reusable
from nsam.compiler.passes import ALL, Passes
from nsam.compiler.rule_algebra import names
from nsam.compiler.rule_plan import RulePlan
from nsam.compiler.unsupported import unsupported
from nsam.dsl.checked import Memory

MOMENTUM_GATES = 3
"""Decay of the state, decay of the trace, write rate; what follows erases along the key, by a triangle."""


@dataclass(frozen=True)
class FoldSource:
    """Writes the folds of one unit; `prefix` names its functions."""

    prefix: str
    memories: dict[str, FastMemory]
    like: dict[int, Node]
    passes: Passes = ALL
    ahead: frozenset[int] = frozenset()
    later: frozenset[int] = frozenset()
    """Of those ahead of all loops, what native kernels make themselves."""
    stacked: Mapping[int, Node] = field(default_factory=dict)
    """Layer outputs that the folds of memories that move as one take over from the forward pass, by the fold's id."""

    @property
    def substitute(self) -> str:
        """The argument of what inverts a triangle."""
        return "" if "inverse" in self.passes else ", substitute=True"

    def fold(self, node: Node, printer: Printer) -> str:
        """The expression that builds a fold, or a part that folds share."""
        if node.id in self.ahead:
            return self.rows(node, printer)
        if node.op == "decay":
            like = printer.of(self.like[node.id])
            piece = piece_argument(node)
            return f"rt.decay({printer.of(node.args[0])}, at.length, {like}{gate_sign([node.args[0]])}{piece})"
        if node.op == "triangle":
            piece = piece_argument(node) if node.args[2].op == "number" else ""
            return f"rt.triangle({', '.join(printer.of(a) for a in node.args)}{piece}{self.substitute})"
        if node.op in ("summed", "generic"):
            return self.applied(node, self.memories[str(node.attr("memory"))], printer)
        return (self.rank_one if node.op.startswith("rank_one") else self.momentum)(node, printer)

    def rows(self, node: Node, p: Printer) -> str:
        """Decays or a triangle of many chunks, ahead of the loop that folds them."""
        chunks = f"at, {node.attr('block')}{', never=True' if node.attr('never') else ''}{piece_argument(node)}"
        chunks += ", later=at.native" if node.id in self.later else ""
        if node.op == "decay":
            return f"rt.decay_rows({p.of(node.args[0])}, {chunks}{gate_sign([node.args[0]])})"
        return f"rt.triangle_rows({', '.join(p.of(a) for a in node.args)}, {chunks}{self.substitute})"

    def unpacked(self, node: Node, p: Printer) -> str:
        """The statement that takes decays or a triangle of one chunk from their rows."""
        name, more = p.of(node), piece_argument(node)
        if node.id not in self.later:
            return f"{name} = rt.{node.op}_of({name}{more})"
        if node.op == "decay":
            return f"{name} = rt.decay_of({name}{more}{gate_sign([node.args[0]])})"
        return f"{name} = rt.triangle_of({', '.join(p.of(a) for a in (node, *node.args))}{more}{self.substitute})"

    def head(self, node: Node) -> str:
        """The fold's first arguments: the states and the tensor's path."""
        return f's, "{node.attr("memory")}.{node.attr("tensor")}"'

    def pairs(self, node: Node, printer: Printer) -> tuple[str, list[Node]]:
        """The (input, error) pairs, and the arguments after them."""
        count = int(str(node.attr("pairs")))
        flat = node.args[1 : 1 + 2 * count]
        text = ", ".join(f"({printer.of(u)}, {printer.of(g)})" for u, g in zip(flat[::2], flat[1::2], strict=True))
        return f"[{text}]", list(node.args[1 + 2 * count :])

    def rank_one(self, node: Node, p: Printer) -> str:
        """An affine recurrence along keys."""
        pairs, (decay, write, *erasing) = self.pairs(node, p)
        text = f"{self.head(node)}, {pairs}, {p.of(decay)}, {p.of(write)}"
        if erasing:
            text += "".join(f", {p.of(a)}" for a in erasing)
            forward = self.forward(node, p)
            text += f", forward={forward}" if forward else ""
        return f"rt.{node.op}({text})"

    def forwards(self, nodes: Iterable[Node], known: Names) -> list[Node]:
        """Layer outputs that folds take over from the memory's own forward pass; they need a name."""
        if "reuse" not in self.passes:
            return []
        return [forward for n in nodes if (forward := self.reused(n, known)) is not None]

    def reused(self, node: Node, known: Names) -> Node | None:
        """The layer output that a fold takes over where it has been computed."""
        return self.stacked.get(node.id) if node.attr("members") is not None else reusable(known.builder, node)

    def forward(self, node: Node, p: Printer) -> str | None:
        """The layer's output at its key if this function has already computed it."""
        made = self.reused(node, p.names) if "reuse" in self.passes else None
        return p.of(made) if made is not None and made.id in p.text else None

    def momentum(self, node: Node, p: Printer) -> str:
        """Linear momentum with scalar kernels."""
        pairs, gates = self.pairs(node, p)
        text = f'{self.head(node)}, "{node.attr("trace")}", {pairs}, {", ".join(p.of(g) for g in gates)}'
        return f"rt.{node.op}({text}{self.substitute if len(gates) > MOMENTUM_GATES else ''})"

    def applied(self, node: Node, fast: FastMemory, p: Printer) -> str:
        """Folds that apply the rule as it stands."""
        assert fast.plan is not None
        pairs, rest = self.pairs(node, p)
        named = node.attr("arguments")
        assert isinstance(named, tuple)
        gates = dict(zip([str(n) for n in named], rest, strict=False))
        tail = rest[len(gates) :]
        inputs = ", ".join(f'"{scalar_keyword(n)}": {p.of(g)}' for n, g in gates.items() if n in fast.plan.parameters)
        states = "".join(f'"{s.name}", ' for s in fast.plan.states)
        text = f"{self.head(node)}, {pairs}, {self.step_name(fast)}, ({states}), {{{inputs}}}"
        never = fast.memory.reset.kind == "never"
        if node.op == "summed":
            clock = ", never=True" if never else ""
            text += f", closes=at.closes({fast.period}{clock}), count={self.count(fast, summed=True)}"
        else:
            text += f", count={self.count(fast, summed=False)}"
            for flag in ("key", "err"):
                if node.attr(flag):
                    text += f", {flag}={p.of(tail.pop(0))}"
        if fast.window > 1:
            text += f", window={fast.window}"
        scale = node.attr("scale")
        if scale not in (None, 1):
            text += f", scale={scale!r}"
        text += vector_flag(fast.memory, str(node.attr("tensor")))
        return f"rt.{node.op.capitalize()}({text})"

    def count(self, fast: FastMemory, *, summed: bool) -> str:
        """The update's number since the reset, where the rule depends on it (from 1; 0 where it does not)."""
        assert fast.plan is not None
        never = fast.memory.reset.kind == "never"
        reset = int(fast.memory.reset.period or 0) if fast.memory.reset.kind == "every" else 0
        if not fast.plan.strides and not fast.plan.needs_count:
            return "0"
        clock = "clock_never" if never else "clock"
        if not fast.plan.strides:
            clock = f"{clock}.double()"
        elif fast.plan.needs_count:
            clock = f"int({clock})"
        else:  # which of the rule's periods close is static; counted from the block's start on, it is the same
            clock = "at.never" if never else "at.offset"
        clock = f"{clock} % {reset}" if reset else clock
        return f"({clock} + at.length) // {fast.period}" if summed else f"{clock} + 1"

    def step_name(self, fast: FastMemory) -> str:
        """The function that applies the memory's rule once."""
        return identifier(f"{self.prefix}_{fast.memory.name}_step")

    def functions(self) -> list[str]:
        """The rules' steps and initial states, as source."""
        found = []
        for fast in self.memories.values():
            if fast.plan is not None:
                found.append(emit_step(fast.plan, function=self.step_name(fast)))
                if fast.plan.states:
                    function = self.step_name(fast).replace("_step", "_initial")
                    found.append(emit_initial(before_first_token(fast.plan, fast.memory), function=function))
        return found


def piece_argument(node: Node) -> str:
    """The argument that tells how many tokens of a long chunk are folded at once, where a chunk is not folded whole."""
    return "" if node.attr("piece") is None else f", piece={node.attr('piece')}"


def vector_flag(memory: Memory, tensor: str) -> str:
    """The argument that tells a vector, kept as a column, from a matrix with one column."""
    axes = len(memory.structure.tensors()[tensor]) - (memory.structure.heads is not None)
    return ", vector=True" if axes == 1 else ""


def before_first_token(plan: RulePlan, memory: Memory) -> RulePlan:
    """The plan without its parameters: no token has given an argument yet when states start. Raises `ProgramError`."""
    used = {name for state in plan.states for name in names(state.initial)}
    varying = [name for name in plan.parameters if name in used]
    if varying:
        message = f"a state of rule `{plan.name}` starts from `{varying[0]}`, which varies with the token"
        raise unsupported(message, memory.span, "give it a number, or start the state from zeros")
    return replace(plan, parameters=())
