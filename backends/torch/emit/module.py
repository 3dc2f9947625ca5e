"""Writes the whole file: one class a system, children before parents, each with the functions of its loops."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from nsam.backends.torch.emit.end_to_end import (
    end_to_end_attributes,
    end_to_end_forward,
    end_to_end_states,
    end_to_end_steps,
    end_to_end_tasks,
)
from nsam.backends.torch.emit.folds import vector_flag
from nsam.backends.torch.emit.functions import INDENT, UnitSource, starting_order
from nsam.backends.torch.emit.names import identifier
from nsam.backends.torch.emit.printer import Printer, state_bindings
from nsam.backends.torch.rule_source import KERNELS
from nsam.compiler.end_to_end import learns_end_to_end
from nsam.compiler.expressions import Node, postorder
from nsam.compiler.lower import held, memory_heads, state_shape
from nsam.compiler.schedule import UnitPlan, plan
from nsam.dsl import checked as c

HEADER = '''"""{title}

Written by nsam {version}. Parameters and states are named by memory path, as in the program.
Shapes: B sequences, T tokens, H heads; rows are tokens.
"""

from __future__ import annotations

{imports}

Weights = dict[str, Tensor]
Result = tuple[dict[str, Tensor], tuple[Tensor, ...]]
'''


@dataclass
class ModuleSource:
    """The source of a unit and of everything it calls."""

    version: str = "0.1.0"
    units: list[tuple[c.Unit, str]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    plans: dict[str, UnitPlan] = field(default_factory=dict)

    def write(self, unit: c.Unit) -> str:
        """Return the file. The class of `unit` is the last one; `class_name` gives its name."""
        name = self.add(unit, root=True)
        title = f"{name}: {signature(unit)}"
        header = HEADER.format(title=title, version=self.version, imports=imports("\n".join(self.parts)))
        return "\n\n".join([header, *self.parts])

    def class_name(self, unit: c.Unit) -> str:
        """The class that was written for `unit`."""
        return next(name for known, name in self.units if known == unit)

    def add(self, unit: c.Unit, *, root: bool = False) -> str:
        """Write `unit` unless an equal one has been written; returns its class name."""
        for known, name in self.units:
            if known == unit:
                return name
        planned = plan(unit)
        steps = planned.unit.children
        children = {step.name: self.add(step.unit if isinstance(step, c.Call) else step.body) for step in steps}
        name = self.fresh_class(unit.name)
        self.units.append((unit, name))
        self.plans[name] = planned
        source = UnitSource(planned, identifier(name_to_prefix(name)))
        self.parts += [
            *self.functions(source),
            ClassSource(source, name, children, root and learns_end_to_end(unit)).write(),
        ]
        return name

    def functions(self, source: UnitSource) -> list[str]:
        """All functions of one unit: rules, resets, loops, stages."""
        steps = source.folds.functions()
        resets = Resets(source).functions()
        stages = [source.stage_function(i) for i, st in enumerate(source.plan.stages) if st.nodes]
        return [*steps, *end_to_end_steps(source), *resets, *source.loop_functions(), *stages]

    def fresh_class(self, path: str) -> str:
        """A class name that nothing else has."""
        base = "".join(word.capitalize() for part in path.split(".") for word in part.split("_"))
        name, number = base, 2
        while any(name == taken for _, taken in self.units):
            name, number = f"{base}{number}", number + 1
        return name


def name_to_prefix(name: str) -> str:
    """`HopeRepeat` → `hope_repeat`."""
    return "".join(f"_{ch.lower()}" if ch.isupper() else ch for ch in name).lstrip("_")


def signature(unit: c.Unit) -> str:
    """`titans(dim=128, heads=4)`."""
    given = ", ".join(f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in unit.parameters.items())
    return f"{unit.name}({given})"


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
            lines.append(f'new = rt.empty_memory(w, at.batch, "{memory.name}", {memory_heads(memory)}, {{{shapes}}})')
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
        lines.append(f"new = rt.cut({printer.of(node)}, ({shapes},), heads={heads})")
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
                lines.append(f'new["{path}.{fold.node.attr("trace")}"] = rt.nothing(new["{path}"])')
            if fold.algorithm == "summed":
                lines.append(f'new["{path}.sum"] = rt.nothing(new["{path}"])')
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


@dataclass
class ClassSource:
    """The class of one unit."""

    source: UnitSource
    name: str
    children: dict[str, str]
    end_to_end: bool = False
    """Whether this is the whole model, whose own loss moves memories in it."""

    @property
    def unit(self) -> c.Unit:
        """The unit that is written."""
        return self.source.plan.unit

    def write(self) -> str:
        """The class as source."""
        base = "EndToEnd" if self.end_to_end else "System"
        lines = [f"class {self.name}(rt.{base}):", f'{INDENT}"""{signature(self.unit)}"""', ""]
        lines += [INDENT + line if line else "" for line in self.attributes()]
        lines += [INDENT + line if line else "" for line in self.init()]
        lines.append("")
        lines += [INDENT + line if line else "" for line in self.forward()]
        if self.end_to_end:
            inputs = [self.source.names.of(n) for n in self.source.plan.lowered.inputs]
            expected = [expectation(item, x) for item, x in zip(self.unit.inputs, inputs, strict=True)]
            entry = end_to_end_forward(self.unit, inputs, expected)
            lines += ["", *(INDENT + line if line else "" for line in entry)]
        return "\n".join(lines) + "\n"

    def attributes(self) -> list[str]:
        """Class attributes that say what the parameters are."""
        lines = []
        if self.end_to_end:
            lines += end_to_end_attributes(self.unit)
        lines += end_to_end_tasks(self.source, starting_order(self.unit), Resets(self.source).name)
        fast = "".join(f'"{m.name}", ' for m in self.unit.memories if m.fast and not m.end_to_end).strip()
        if fast:
            lines.append(f"fast_memories = ({fast})")
        kept = [m.name for m in self.unit.memories if m.fast and m.reset.kind == "never"]
        if kept:
            lines.append(f"kept_memories = frozenset({{{', '.join(repr(k) for k in kept)}}})".replace("'", '"'))
        matrices = [
            f"{m.name}.{t}"
            for m in self.unit.memories
            if m.structure.kind in ("linear", "mlp") and owns(m)
            for t in m.structure.tensors()
            if not t.startswith("b")
        ]
        if matrices:
            lines.append("matrices = frozenset({" + ", ".join(f'"{x}"' for x in matrices) + "})")
        periods = [
            (f"{m.name}.{t}", m.frequency.period)
            for m in self.unit.memories
            if m.frequency is not None and m.frequency.unit == "step" and owns(m) and m.frequency.period != 1
            for t in m.structure.tensors()
        ]
        if periods:
            text = ", ".join(f'"{k}": {"math.inf" if p == math.inf else p}' for k, p in periods)
            lines.append(f"step_periods = {{{text}}}")
        return [*lines, ""] if lines else []

    def init(self) -> list[str]:
        """The constructor: one attribute a memory, one a call."""
        lines = ["def __init__(self) -> None:", f"{INDENT}super().__init__()"]
        tree: Tree = {}
        for memory in self.unit.memories:
            if owns(memory):
                *above, last = memory.name.split(".")
                inside = tree
                for part in above:
                    inside = inside.setdefault(part, {})  # type: ignore[assignment]
                inside[last] = f"rt.Memory({', '.join(f'{t}={v}' for t, v in initial_values(memory))})"
        for name, built in tree.items():
            first, *more = container(built)
            lines.append(f"{INDENT}self.{name} = {first}")
            lines += [INDENT + line for line in more]
        for step in self.unit.children:
            kind = self.children[step.name]
            if isinstance(step, c.Call):
                lines.append(f"{INDENT}self.{step.name} = {kind}()")
            else:
                lines.append(f"{INDENT}self.{step.name} = nn.ModuleList({kind}() for _ in range({int(step.count)}))")
        return lines

    def forward(self) -> list[str]:
        """The forward method: stages, loops and calls in order."""
        lowered, names = self.source.plan.lowered, self.source.names
        inputs = [names.of(n) for n in lowered.inputs]
        listed = "".join(f", {x}: Tensor" for x in inputs)
        several = len(lowered.outputs) > 1
        result = "tuple[Tensor, ...]" if several else "Tensor"
        name = "piece" if self.end_to_end else "forward"
        lines = [f"def {name}(self{listed}, state: rt.State | None = None) -> tuple[{result}, rt.State]:"]
        lines.append(f'{INDENT}"""{self.shapes()}"""')
        body: list[str] = []
        for item, node in zip(self.unit.inputs, lowered.inputs, strict=True):
            if not self.end_to_end:
                body.append(expectation(item, names.of(node)))
            if item.type.per == "sequence":
                body.append(f"{names.of(node)} = {names.of(node)}.unsqueeze(1)")
            elif item.type.vocab is None and not item.type.shape:
                body.append(f"{names.of(node)} = rt.column({names.of(node)})")
        resets = Resets(self.source)
        first = next((n for n in lowered.inputs if n.layout == "flat"), lowered.inputs[0])
        initial = f", {self.source.prefix}_initial" if resets.memories() or resets.buffers() else ""
        clock = ", clock=True" if self.source.needs_clock else ""
        kept = "".join(
            f", {n.attr('name')}={names.of(n)}" for n in lowered.inputs if n.layout == "sequence" and lowered.initial
        )
        body.append(f"w, s, at, children = self.begin(state, {names.of(first)}{initial}{clock}{kept})")
        if self.source.places is not None:
            body.append(f"rt.require_places(at, {self.source.places})")
        uses_new = any(loop for loop in self.source.loops)
        if uses_new:
            body.append("new: dict[str, Tensor] = {}")
        for index, stage in enumerate(self.source.plan.stages):
            body += self.stage(index)
            if stage.loop:
                body += self.source.run_loop(0, self.source.inputs(0))
            elif stage.event is not None:
                body += self.event(stage.event)
        outputs = ", ".join(self.final(n) for _, n in lowered.outputs)
        body.append(f"return {f'({outputs})' if several else outputs}, self.end(s, at, children)")
        return [*lines, *(INDENT + line for line in body)]

    def shapes(self) -> str:
        """One line on what goes in and comes out."""
        text = []
        for item in self.unit.inputs:
            lead = {"token": "B, T", "sequence": "B", "constant": ""}[item.type.per]
            text.append(f"{item.name} [{', '.join([lead, *(str(n) for n in item.type.shape)])}]")
        return f"Inputs {', '.join(text)}; returns the output and the state to carry on."

    def stage(self, index: int) -> list[str]:
        """The call of one stage's function."""
        if not self.source.plan.stages[index].nodes:
            return []
        inputs, outputs = self.source.stage_border(index)
        passed = "".join(f", {self.final(n)}" for n in inputs)
        targets = ", ".join(self.source.names.of(n) for n in outputs)
        call = f"{self.source.stage_name(index)}(w, s, at{passed})"
        update = "s = rt.update(s, part)"
        return [f"part, ({targets}{',' if outputs else ''}) = {call}", update] if outputs else []

    def event(self, event: Node) -> list[str]:
        """A call of a system, or a repeat."""
        step = next(st for st in self.unit.children if st.name == event.attr("name"))
        names = self.source.names
        results = self.results(event)
        args = [self.final(n) for n in event.args]
        if isinstance(step, c.Call):
            targets = results.get("output", "_")
            return [f'{targets} = self.call("{step.name}", children, {", ".join(args)})']
        count = len(step.carried)
        carried = ", ".join(args[:count]) + ("," if count == 1 else "")
        captured = "".join(f", {a}" for a in args[count:])
        targets = ", ".join(results.get(name, names.fresh("unused")) for name, _ in step.carried)
        return [f'{targets} = self.run_repeat("{step.name}", children, ({carried}){captured})']

    def results(self, event: Node) -> dict[str, str]:
        """Variables for the outputs of a call or repeat that somebody reads."""
        found: dict[str, str] = {}
        plan_ = self.source.plan
        roots: list[Node] = [n for _, n in plan_.lowered.outputs]
        roots += [n for st in plan_.stages for n in (*st.nodes, *([st.event] if st.event else []))]
        roots += [n for lv in plan_.levels for n in (*lv.before, *lv.after)]
        for node in postorder(roots):
            if node.op == "output" and node.args[0] is event:
                name = str(node.attr("name"))
                found[name] = self.source.names.of(node)
        return found

    def final(self, node: Node) -> str:
        """A value in the class's forward."""
        while node.op == "given":
            node = node.args[0]
        if node.op == "number":
            return f"torch.tensor({node.value})"
        if node.op == "weight":
            return f'w["{node.attr("memory")}.{node.attr("tensor")}"]'
        return self.source.names.of(node)


Tree = dict[str, "str | Tree"]


def container(built: str | Tree) -> list[str]:
    """The lines that build a memory, a list of memories, or what a written-out call holds."""
    if isinstance(built, str):
        return [built]
    listed = all(name.isdigit() for name in built)
    lines = ["nn.ModuleList([" if listed else "nn.ModuleDict({"]
    for name, inner in built.items():
        first, *more = container(inner)
        block = [first if listed else f'"{name}": {first}', *more]
        lines += [INDENT + line for line in [*block[:-1], f"{block[-1]},"]]
    return [*lines, "])" if listed else "})"]


def expectation(item: c.Input, name: str) -> str:
    """The statement that checks an input."""
    shape = "".join(f"{int(n)}, " for n in item.type.shape).strip()
    vocab = "" if item.type.vocab is None else f", vocab={int(item.type.vocab)}"
    per = "" if item.type.per == "token" else f', per="{item.type.per}"'
    return f'rt.expect("{item.name}", {name}, ({shape}){vocab}{per})'


def owns(memory: c.Memory) -> bool:
    """Whether the memory has parameters: slow weights, or a learnt initial state."""
    if memory.initial.kind == "zeros" and not memory.fast:
        return bool(memory.structure.tensors())
    return memory.initial.kind == "learned" and bool(memory.structure.tensors())


def initial_values(memory: c.Memory) -> Iterable[tuple[str, str]]:
    """Default initial values: variance 1/fan-in, 0.02 for tables, 0.5 for taps, gains 1, vectors 0."""
    for tensor, shape in memory.structure.tensors().items():
        listed = ", ".join(str(int(n)) for n in shape)
        kind, std = memory.structure.kind, memory.initial.deviation
        bias = tensor.startswith("b")
        if memory.initial.kind == "zeros":
            yield tensor, f"rt.zeros({listed})"
        elif std is None and kind in ("rmsnorm", "layernorm") and not bias:
            yield tensor, f"rt.ones({listed})"
        elif bias or (std is None and kind == "vector"):
            yield tensor, f"rt.zeros({listed})"
        else:
            default = {"table": "0.02", "conv": "0.5"}.get(kind, f"{int(shape[-1])} ** -0.5")
            yield tensor, f"rt.normal({listed}, std={default if std is None else repr(float(std))})"


def imports(text: str) -> str:
    """The imports that `text` needs."""
    kernels = [name for name in KERNELS if re.search(rf"(?<![\w.]){name}\(", text)]
    lines = ["import math", ""] if "math." in text else []
    lines += ["import torch"] if "torch." in text else []
    lines += ["from torch import Tensor, nn" if "nn." in text else "from torch import Tensor"]
    lines += ["from torch.nn import functional as F"] if "F." in text else []
    lines += ["", "from nsam.backends.torch import runtime as rt"]
    if kernels:
        lines.append(f"from nsam.backends.torch.orthogonalize import {', '.join(kernels)}")
    return "\n".join(lines)
