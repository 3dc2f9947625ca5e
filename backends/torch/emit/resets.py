"""Writes the functions that give memories with a state their initial states."""

from __future__ import annotations

from dataclasses import dataclass

from nsam.backends.torch.emit.end_to_end import (
    end_to_end_states,
)
from nsam.backends.torch.emit.folds import vector_flag
from nsam.backends.torch.emit.functions import INDENT, UnitSource
from nsam.backends.torch.emit.names import identifier
from nsam.backends.torch.emit.printer import Printer, state_bindings
from nsam.backends.torch.emit.starts import starting_order
from nsam.compiler.expressions import Node, postorder
from nsam.compiler.lower import held, memory_heads, state_shape
from nsam.dsl import checked as c


@dataclass
class Resets:
    """Functions that give fast memories their initial states."""

    source: UnitSource

    @property
    def unit(self) -> c.Unit:
        """The unit that is written."""
        return self.source.plan.unit

    def memories(self) -> list[c.Memory]:
        """Memories with a state of their own, sources of initial states first."""
        return [m for m in starting_order(self.unit) if m.fast or held(m)]

    def functions(self) -> list[str]:
        """All functions of one unit: rules, resets, loops, stages."""
        found = [self.reset(m) for m in self.memories()]
        if found or self.buffers():
            found.append(self.initial())
        return found

    def name(self, memory: c.Memory) -> str:
        """The function that resets a memory."""
        return identifier(f"{self.source.prefix}_reset_{memory.name}")

    def reset(self, memory: c.Memory) -> str:
        """The state of one memory after a reset."""
        tensors = list(memory.structure.tensors())
        listed = "".join(f'"{t}", ' for t in tensors).strip()
        heads = memory.structure.heads is not None
        kind = memory.initial.kind
        lines: list[str] = []
        if kind == "learned":
            lines.append(f'new = rt.learned(w, at.batch, "{memory.name}", ({listed}), heads={heads})')
            what = "meta-learned by the level below"
        elif kind == "zeros":
            shapes = ", ".join(f'"{t}": {state_shape(memory, t)}' for t in tensors)
            lines.append(f'new = rt.empty_memory(w, at, "{memory.name}", {memory_heads(memory)}, {{{shapes}}})')
            what = "zeros"
        elif kind == "memory":
            lines += self.from_memory(memory, listed, heads)
            what = f"what {memory.initial.memory} has learnt (transfer by initialization, eq. 28)"
        else:
            lines += self.generated(memory, tensors)
            what = "written by another memory (transfer by generation)"
        lines += self.rule_states(memory)
        head = f"def {self.name(memory)}(w: Weights, s: Weights, at: rt.At) -> dict[str, Tensor]:"
        body = [f'"""Initial state of {memory.name}: {what}."""', *lines, "return new"]
        return "\n".join([head, *(INDENT + line for line in body)]) + "\n"

    def from_memory(self, memory: c.Memory, listed: str, heads: bool) -> list[str]:
        """Initial state copied from another memory."""
        origin = self.unit.memory(str(memory.initial.memory))
        if origin.fast or held(origin):
            running = ", running=True" if origin.fast and origin.reads == "running" else ""
            lines = [f'new = rt.copied(s, "{origin.name}", "{memory.name}", ({listed}){running})']
        else:
            lines = [f'new = rt.learned(w, at.batch, "{origin.name}", ({listed}), heads={heads}, to="{memory.name}")']
        if any((t.source, t.target, t.kind) == (origin.name, memory.name, "direct") for t in self.unit.transfers):
            lines.append("new = {name: state.detach() for name, state in new.items()}  # a direct transfer")
        return lines

    def generated(self, memory: c.Memory, tensors: list[str]) -> list[str]:
        """Initial state cut from what another memory writes."""
        node = next(n for name, n in self.source.plan.lowered.initial if name == memory.name)
        inputs = [n for n in postorder([node]) if n.op == "input"]
        printer = Printer(self.source.names, self.source.folds.fold, inputs)
        printer.statements(postorder([node]), [node])
        lines = [f'{printer.names.of(n)} = s["input.{n.attr("name")}"]' for n in inputs]
        lines += [*state_bindings(printer, printer.weights, "w"), *printer.lines]
        heads = memory_heads(memory)
        shapes = ", ".join(
            f'("{memory.name}.{t}", {tuple(int(n) for n in shape[1 if memory.structure.heads else 0 :])})'
            for t, shape in memory.structure.tensors().items()
        )
        text = printer.of(node)
        if node.layout == "constant":  # made of parameters alone, without sequences and time
            text = f"({text}).expand(at.batch, 1, -1)"
        lines.append(f"new = rt.cut({text}, ({shapes},), heads={heads})")
        return lines

    def rule_states(self, memory: c.Memory) -> list[str]:
        """States that the memory's rule keeps."""
        if not memory.fast:
            return []
        if memory.end_to_end:
            return end_to_end_states(self.source, memory)
        fast = self.source.folds.memories[memory.name]
        lines: list[str] = []
        for fold in fast.folds:
            path = f"{memory.name}.{fold.tensor}"
            if fold.algorithm == "momentum":
                lines.append(f'new["{path}.{fold.node.attr("trace")}"] = rt.nothing(new["{path}"], at)')
            if fold.algorithm == "summed":
                lines.append(f'new["{path}.sum"] = rt.nothing(new["{path}"], at)')
            if fold.algorithm in ("summed", "generic") and fast.plan is not None and fast.plan.states:
                listed = "".join(f'"{st.name}", ' for st in fast.plan.states).strip()
                function = self.source.folds.step_name(fast).replace("_step", "_initial")
                # A rule with keys sees a vector as it is kept: the column that reads an input of 1.
                vector = "" if fold.node.attr("key") else vector_flag(memory, fold.tensor)
                lines.append(f'new |= rt.rule_states({function}, new["{path}"], "{path}", ({listed}){vector})')
        if fast.slowest is not None:
            listed = "".join(f'"{t}", ' for t in memory.structure.tensors()).strip()
            lines.append(f'new |= rt.waiting(new, "{memory.name}", ({listed}))')
        if fast.window > 1:
            lines += [f"new |= {self.buffer(n)}" for n in self.carries(memory)]
        return lines

    def carries(self, memory: c.Memory) -> list[Node]:
        """What a memory with a window keeps of earlier tokens."""
        return [n for n in self.all_nodes() if n.op == "carry" and n.attr("memory") == memory.name]

    def all_nodes(self) -> list[Node]:
        """Every node of the unit's loops and stages."""
        plan_ = self.source.plan
        found = [n for lv in plan_.levels for n in (*lv.before, *lv.after)]
        return found + [n for st in plan_.stages for n in st.nodes]

    def buffers(self) -> list[Node]:
        """Convolutions and attention: what they keep of earlier tokens."""
        return [n for n in self.all_nodes() if n.op in ("conv", "attention")]

    def buffer(self, node: Node) -> str:
        """An empty store for what an operation keeps of earlier tokens."""
        memory = node.attr("memory")
        if node.op == "conv":
            width = node.args[1].shape[1] - 1
            return f'{{"{memory}.site{node.attr("site")}": rt.blank(w, at.batch, {width}, {node.shape[-1]})}}'
        if node.op == "carry":
            heads = memory_heads(self.unit.memory(str(memory)))
            rows = int(str(node.attr("window"))) - 1
            return f'{{"{memory}.{node.attr("slot")}": rt.blank(w, at.batch, {heads}, {rows}, {node.shape[-1]})}}'
        key, value = node.args[1:]
        heads = int(
            self.unit.memory(str(memory)).structure.kv_heads or self.unit.memory(str(memory)).structure.heads or 1
        )
        return (
            f'{{"{memory}.keys": rt.blank(w, at.batch, {heads}, 0, {key.shape[-1]}), '
            f'"{memory}.values": rt.blank(w, at.batch, {heads}, 0, {value.shape[-1]})}}'
        )

    def initial(self) -> str:
        """The function that fills in every state at the start of a sequence."""
        lines = ['"""States at the start of a sequence."""', "new: dict[str, Tensor] = {}"]
        lines += [f"new |= {self.buffer(n)}" for n in self.buffers()]
        for memory in self.memories():
            first = next(iter(memory.structure.tensors()))
            lines.append(f'if "{memory.name}.{first}" not in s:')
            lines.append(f"{INDENT}new |= {self.name(memory)}(w, {{**new, **s}}, at)")
        head = f"def {self.source.prefix}_initial(w: Weights, s: Weights, at: rt.At) -> dict[str, Tensor]:"
        return "\n".join([head, *(INDENT + line for line in [*lines, "return new"])]) + "\n"
