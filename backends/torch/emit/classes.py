"""Writes the class of one unit: parameters, attributes, the forward method."""

from __future__ import annotations

import keyword
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from nsam.backends.torch.emit.end_to_end import (
    end_to_end_attributes,
    end_to_end_forward,
    end_to_end_tasks,
)
from nsam.backends.torch.emit.functions import INDENT, UnitSource
from nsam.backends.torch.emit.keys import path_of, reads_of
from nsam.backends.torch.emit.resets import Resets
from nsam.backends.torch.emit.starts import starting_order
from nsam.backends.torch.runtime.system import System
from nsam.compiler.expressions import Node, postorder
from nsam.compiler.lower import varies
from nsam.compiler.step_keys import own_step_rule, owns
from nsam.compiler.wavefront import Segments
from nsam.dsl import checked as c


def signature(unit: c.Unit) -> str:
    """`titans(dim=128, heads=4)`."""
    given = ", ".join(f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in unit.parameters.items())
    return f"{unit.name}({given})"


@dataclass
class ClassSource:
    """The class of one unit."""

    source: UnitSource
    name: str
    children: dict[str, str]
    end_to_end: bool = False
    """Whether this is the whole model, whose own loss moves memories in it."""
    segments: Segments | None = None
    """How the sequence may be cut, of the body of a repeat."""

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
            expected = expectations(self.unit.inputs, inputs, [item.type.per for item in self.unit.inputs])
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
        ruled = [
            f"{m.name}.{t}" for m in self.unit.memories if own_step_rule(m) and owns(m) for t in m.structure.tensors()
        ]
        if ruled:
            lines.append("with_rules = frozenset({" + ", ".join(f'"{x}"' for x in ruled) + "})")
        reads = reads_of(self.source.names.sites, self.source.recorded)
        if reads:
            lines.append("layer_reads = {" + ", ".join(f'"{path}": {count}' for path, count in reads.items()) + "}")
        told = Counter(path_of(slot) for slot in self.source.names.slots.values())
        if self.source.by_token:
            listed = ", ".join(f'"{path}": {told[path]}' for path in sorted(self.source.by_token))
            lines.append(f"token_reads = {{{listed}}}")
        if self.segments is not None:
            lines += segment_attributes(self.segments)
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
            lines += held(name, container(built))
        for step in self.unit.children:
            kind = self.children[step.name]
            once = f"{kind}()"
            made = once if isinstance(step, c.Call) else f"nn.ModuleList({once} for _ in range({int(step.count)}))"
            lines += held(step.name, [made])
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
        if not self.end_to_end:
            body = expectations(self.unit.inputs, inputs, [varies(self.unit, item) for item in self.unit.inputs])
        for item, node in zip(self.unit.inputs, lowered.inputs, strict=True):
            if node.layout == "sequence":
                body.append(f"{names.of(node)} = {names.of(node)}.unsqueeze(1)")
            if item.type.vocab is None and not item.type.shape:
                body.append(f"{names.of(node)} = rt.column({names.of(node)})")
        resets = Resets(self.source)
        first = next((n for n in lowered.inputs if n.layout == "flat"), lowered.inputs[0])
        initial = f", {self.source.prefix}_initial" if resets.memories() or resets.buffers() else ""
        clock = ", clock=True" if self.source.needs_clock else ""
        sequence = [n for n in lowered.inputs if n.layout == "sequence" and lowered.initial]
        listed = ", ".join(f'"{n.attr("name")}": {names.of(n)}' for n in sequence)
        kept = f", sequence={{{listed}}}" if listed else ""
        body.append(f"w, s, at, children = self.begin(state, {names.of(first)}{initial}{clock}{kept})")
        if self.source.places is not None:
            body.append(f"rt.require_places(at, {self.source.places})")
        slots = self.source.names.slots.values()
        body += [f'{names.of(slot)} = self.slot(w, at, "{path_of(slot)}")' for slot in slots]
        uses_new = any(loop for loop in self.source.loops)
        if uses_new:
            body.append("new: dict[str, Tensor] = {}")
        for index, stage in enumerate(self.source.plan.stages):
            body += self.stage(index)
            if stage.loop:
                body += self.source.run_loops()
            elif stage.event is not None:
                body += self.event(stage.event)
        pairs = zip(lowered.outputs, self.unit.outputs, strict=True)
        outputs = ", ".join(self.final(n) + ("" if e.type.shape else ".squeeze(-1)") for (_, n), (_, e) in pairs)
        returned = f"{f'({outputs})' if several else outputs}, self.end(s, at, children)"
        told = self.source.names.sites or self.source.names.slots
        body.append(f"return self.handed_over({returned}, s, at)" if told else f"return {returned}")
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
            call = f'{targets} = self.call("{step.name}", children, {", ".join(args)})'
            return [call, *columns(results, step.unit.outputs)]
        count = len(step.carried)
        carried = ", ".join(args[:count]) + ("," if count == 1 else "")
        captured = "".join(f", {a}" for a in args[count:])
        targets = ", ".join(results.get(name, names.fresh("unused")) for name, _ in step.carried)
        call = f'{targets} = self.run_repeat("{step.name}", children, ({carried}){captured})'
        return [call, *columns(results, step.body.outputs)]

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
            return f"rt.blank(w, 1) + {node.value}"  # the one channel of a number, the same for all tokens
        if node.op == "weight":
            return f'w["{node.attr("memory")}.{node.attr("tensor")}"]'
        return self.source.names.of(node)


def segment_attributes(segments: Segments) -> list[str]:
    """How the sequence of a repeat's body may be cut."""
    if segments.undivided is not None:
        return [f'undivided = "{segments.undivided}"']
    timeless = ", ".join(map(str, segments.timeless))
    return [f"block_tokens = {segments.tokens}", *([f"timeless = frozenset({{{timeless}}})"] if timeless else [])]


def columns(results: Mapping[str, str], outputs: Iterable[tuple[str, c.Expr]]) -> list[str]:
    """Numbers a token, [B, T] outside of the unit that computes them, as [B, T, 1]."""
    numbers = [results[name] for name, expr in outputs if not expr.type.shape and name in results]
    return [f"{x} = rt.column({x})" for x in numbers]


Tree = dict[str, "str | Tree"]


def held(name: str, built: list[str]) -> list[str]:
    """The statement that gives a class a module: as an attribute, where its name can be one and means nothing else."""
    first, *more = built
    plain = name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")
    if plain and name != "training" and not hasattr(System, name):
        return [f"{INDENT}self.{name} = {first}", *(INDENT + line for line in more)]
    *lines, last = [f'self.hold("{name}", {first}', *more]
    return [INDENT + line for line in (*lines, f"{last})")]


def container(built: str | Tree) -> list[str]:
    """The lines that build a memory, a list of memories, or what a written-out call holds."""
    if isinstance(built, str):
        return [built]
    listed = all(name.isdigit() for name in built)
    plain = not any(hasattr(nn.ModuleDict, name) or name == "training" for name in built)
    lines = ["nn.ModuleList([" if listed else "nn.ModuleDict({" if plain else "rt.Group(**{"]
    for name, inner in built.items():
        first, *more = container(inner)
        block = [first if listed else f'"{name}": {first}', *more]
        lines += [INDENT + line for line in [*block[:-1], f"{block[-1]},"]]
    return [*lines, "])" if listed else "})"]


def expectations(items: Sequence[c.Input], names: Sequence[str], pers: Sequence[str]) -> list[str]:
    """The statements that check inputs, each by itself and against each other."""
    given = list(zip(items, names, pers, strict=True))
    lines = [expectation(item, name, per) for item, name, per in given]
    tokens, sequences = (
        [f'("{item.name}", {name})' for item, name, per in given if per == kind] for kind in ("token", "sequence")
    )
    if len(tokens) + len(sequences) > 1 and tokens:
        more = f", sequences=[{', '.join(sequences)}]" if sequences else ""
        lines.append(f"rt.agree({', '.join(tokens)}{more})")
    return lines


def expectation(item: c.Input, name: str, per: str = "token") -> str:
    """The statement that checks an input."""
    shape = "".join(f"{int(n)}, " for n in item.type.shape).strip()
    vocab = "" if item.type.vocab is None else f", vocab={int(item.type.vocab)}"
    said = "" if per == "token" else f', per="{per}"'
    return f'rt.expect("{item.name}", {name}, ({shape}){vocab}{said})'


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
