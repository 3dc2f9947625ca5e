"""Writes what a class knows of memories that move by the model's own loss, and the whole model's entry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from nsam.backends.torch.emit.folds import before_first_token, vector_flag
from nsam.backends.torch.emit.names import identifier
from nsam.backends.torch.emit.printer import Printer, state_bindings
from nsam.backends.torch.rule_source import emit_initial, emit_step, scalar_keyword
from nsam.compiler.end_to_end import EndToEnd, predicts_its_input, scores
from nsam.compiler.expressions import postorder
from nsam.dsl import checked as c

if TYPE_CHECKING:
    from nsam.backends.torch.emit.functions import UnitSource


def _learning(source: UnitSource) -> dict[str, EndToEnd]:
    return {each.memory.name: each for each in source.plan.lowered.end_to_end}


def _step_name(source: UnitSource, memory: c.Memory) -> str:
    return identifier(f"{source.prefix}_{memory.name}_step")


def _listed(names: Iterable[str]) -> str:
    return "(" + "".join(f'"{name}", ' for name in names).strip() + ")"


def end_to_end_steps(source: UnitSource) -> list[str]:
    """The rules' steps and initial states, as source."""
    found = []
    for each in _learning(source).values():
        function = _step_name(source, each.memory)
        found.append(emit_step(each.plan, function=function))
        if each.plan.states:
            initial = before_first_token(each.plan, each.memory)
            found.append(emit_initial(initial, function=function.replace("_step", "_initial")))
        if each.arguments:
            found.append(_arguments(source, each, function.replace("_step", "_arguments")))
    return found


def _arguments(source: UnitSource, each: EndToEnd, function: str) -> str:
    """The function that computes a rule's arguments from slow weights."""
    nodes = [node for _, node in each.arguments]
    printer = Printer(source.names, source.folds.fold)
    printer.statements(postorder(nodes), nodes)
    given = {scalar_keyword(name): node for name, node in each.arguments if name in each.plan.parameters}
    listed = ", ".join(f'"{name}": {printer.of(node)}' for name, node in given.items())
    body = [*state_bindings(printer, printer.weights, "w"), *printer.lines, f"return {{{listed}}}"]
    what = f'"""Arguments of rule {each.plan.name}."""'
    head = f"def {function}(w: Weights) -> dict[str, Tensor]:"
    return "\n".join([head, *(f"    {line}" for line in (what, *body))]) + "\n"


def end_to_end_states(source: UnitSource, memory: c.Memory) -> list[str]:
    """Statements that give a memory's sums and its rule's states at a reset."""
    each = _learning(source)[memory.name]
    lines = []
    for tensor in memory.structure.tensors():
        path = f"{memory.name}.{tensor}"
        lines.append(f'new["{path}.sum"] = rt.nothing(new["{path}"], at)')
        if each.plan.states:
            function = _step_name(source, memory).replace("_step", "_initial")
            states = f"{_listed(s.name for s in each.plan.states)}{vector_flag(memory, tensor)}"
            lines.append(f'new |= rt.rule_states({function}, new["{path}"], "{path}", {states})')
    return lines


def end_to_end_tasks(source: UnitSource, order: list[c.Memory], reset: Callable[[c.Memory], str]) -> list[str]:
    """The class attribute `tasks`; `order` has sources of initial states first, `reset` names a memory's reset."""
    learning = _learning(source)
    if not learning:
        return []
    lines = ["tasks = {"]
    for memory in order:
        each = learning.get(memory.name)
        if each is None:
            continue
        tensors = memory.structure.tensors()
        text = f"{each.period}, {_listed(tensors)}, {_step_name(source, memory)}"
        if each.plan.states:
            text += f", states={_listed(s.name for s in each.plan.states)}"
        if each.arguments:
            text += f", arguments={_step_name(source, memory).replace('_step', '_arguments')}"
        vectors = [tensor for tensor in tensors if vector_flag(memory, tensor)]
        if vectors:
            text += f", vectors={_listed(vectors)}"
        if memory.reset.kind == "every":
            text += f", reset={int(memory.reset.period or 0)}, restart={reset(memory)}"
        lines.append(f'    "{memory.name}": rt.Task({text}),')
    return [*lines, "}"]


def end_to_end_attributes(unit: c.Unit) -> list[str]:
    """Class attributes of the whole model. Raises `ProgramError` when its output is no vector of scores."""
    flags = ", ".join(str(given.type.per == "token") for given in unit.inputs)
    return [
        f"per_token = ({flags},)",
        f"classes = {scores(unit)}",
        f"predicts_its_input = {predicts_its_input(unit)}",
    ]


def end_to_end_forward(unit: c.Unit, inputs: list[str], expected: list[str]) -> list[str]:
    """The whole model's `forward`: it takes targets, and cuts the sequence at the memories' boundaries.

    `expected` are the statements that check the inputs.
    """
    listed = "".join(f", {x}: Tensor" for x in inputs)
    given = f"({', '.join(inputs)},)"
    known = " Without them, the next token of the input is each token's target." if predicts_its_input(unit) else ""
    return [
        f"def forward(self{listed}, state: rt.State | None = None, *, targets: Tensor | None = None)"
        " -> tuple[Tensor, rt.State]:",
        '    """Run and learn chunk by chunk. `targets` are integers [B, T], targets[:, t] the one of token t.',
        "",
        "    The last one may be left out where it is not known yet; then the next call's targets begin with it.",
        *([f"   {known}"] if known else []),
        '    """',
        *(f"    {line}" for line in expected),
        f"    return self.learn({given}, state, targets)",
    ]
