"""Which parameters a rule that uses `key` can serve on the step clock, and why it cannot serve the others.

Such a rule needs a layer's inputs at the tokens of a step: their mean outer product, or with the errors at its outputs
those of each token. A parameter has them where its gradient is a sum over the inputs of its own layer: the weight of a
linear or mlp memory that is read at inputs only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias

from nsam.compiler.end_to_end import learns_end_to_end
from nsam.dsl import checked as c
from nsam.dsl.diagnostics import Report
from nsam.dsl.records import dataclass
from nsam.dsl.rule_keys import Needs, needs_keys, step_needs, wanted
from nsam.dsl.spans import Span

Keys: TypeAlias = "bool | Literal['tokens']"
"""What a module brings of the inputs of all its layers: nothing, the sums of outer products, or each token's."""


def check_keys(keys: object) -> None:
    """Raise ValueError for what is none of them."""
    if not isinstance(keys, bool) and keys != "tokens":
        raise ValueError(f'keys is False, True or "tokens", not {keys!r}')


@dataclass(frozen=True, slots=True)
class Unserved:
    """A parameter without a layer's inputs: the reason, and whether `for others` means it."""

    reason: str
    span: Span
    others: bool


def train_needs_keys(train: c.Train) -> Keys:
    """What the rules of the training level need of the inputs of layers."""
    needs = {step_needs(use.rule) for use, _ in train.rules}
    return "tokens" if "tokens" in needs else "sums" in needs


def needs_own_keys(units: Iterable[c.Unit]) -> bool:
    """Whether a memory on the step clock has a rule of its own that uses `key`."""
    return any(_asks(own_step_rule(memory)) for unit in units for memory in unit.memories)


def own_step_rule(memory: c.Memory) -> c.RuleUse | None:
    """The rule of a memory on the step clock that has one of its own."""
    steps = memory.frequency is not None and memory.frequency.unit == "step"
    return memory.rule if steps else None


def owns(memory: c.Memory) -> bool:
    """Whether the memory has parameters: slow weights, or a learnt initial state."""
    if memory.initial.kind == "zeros" and not memory.fast:
        return bool(memory.structure.tensors())
    return memory.initial.kind == "learned" and bool(memory.structure.tensors())


def moves(memory: c.Memory) -> bool:
    """Whether the memory has parameters that are not frozen."""
    frequency = memory.frequency
    return owns(memory) and not (frequency is not None and frequency.unit == "step" and frequency.period == math.inf)


def unserved(unit: c.Unit, end_to_end: bool) -> dict[str, Unserved]:
    """The parameters of one unit, its children left out, that no rule with `key` can serve, by path.

    `end_to_end`: whether the model that the unit belongs to moves memories by its own loss.
    """
    transposed = {e.memory for e in _expressions(unit) if isinstance(e, c.Read) and e.transposed}
    starts = _starts(unit)
    found: dict[str, Unserved] = {}
    for memory in filter(owns, unit.memories):
        name, kind = memory.name, memory.structure.kind
        layer = kind in ("linear", "mlp")
        for tensor in memory.structure.tensors():
            if not layer:
                reason = f"`{name}` is a {kind}, whose gradient is no sum over the inputs of a layer"
            elif tensor.startswith("b"):
                reason = f"a bias of `{name}` has no layer input"
            elif memory.fast:
                reason = f"it is what `{name}`, which moves during the sequence, starts from"
            elif end_to_end:
                reason = "the gradients by which the model moves its memories read it too"
            elif name in transposed:
                reason = f"`{name}.T(…)` reads it the other way round"
            elif name in starts:
                reason = f"`{starts[name]}` starts from it"
            else:
                continue
            found[f"{name}.{tensor}"] = Unserved(reason, memory.span, not layer or tensor.startswith("b"))
    return found


def recorded(unit: c.Unit, keys: Keys, end_to_end: bool) -> frozenset[str]:
    """The weights of one unit whose inputs a module sums up: of all with `keys` True, else where a rule asks."""
    return _served(unit, end_to_end, lambda own, need: need == "sums" or (keys is True and need != "tokens"))


def kept_by_token(unit: c.Unit, keys: Keys, end_to_end: bool) -> frozenset[str]:
    """The weights of one unit for which a module keeps input and error of each token: as for `recorded`."""
    return _served(unit, end_to_end, lambda own, need: need == "tokens" or (keys == "tokens" and own is None))


def _served(unit: c.Unit, end_to_end: bool, asks: Callable[[c.RuleUse | None, Needs], bool]) -> frozenset[str]:
    cannot = unserved(unit, end_to_end)
    found: set[str] = set()
    for memory in filter(owns, unit.memories):
        own = own_step_rule(memory)
        if asks(own, "" if own is None else step_needs(own.rule)):
            found.update(f"{memory.name}.{tensor}" for tensor in memory.structure.tensors())
    return frozenset(found - cannot.keys())


def whole_model(unit: c.Unit) -> dict[str, Unserved]:
    """The same as `unserved` for a model, by `state_dict` name."""
    end_to_end = learns_end_to_end(unit)
    return {path + name: why for path, part in _units(unit, "") for name, why in unserved(part, end_to_end).items()}


def _units(unit: c.Unit, path: str) -> Iterator[tuple[str, c.Unit]]:
    yield path, unit
    for step in unit.children:
        if isinstance(step, c.Call):
            yield from _units(step.unit, f"{path}{step.name}.")
        else:
            for index in range(int(step.count)):
                yield from _units(step.body, f"{path}{step.name}.{index}.")


def _asks(use: c.RuleUse | None) -> bool:
    return use is not None and needs_keys(use.rule)


def _expressions(unit: c.Unit) -> Iterator[c.Expr]:
    """Every expression of a unit, with all that is inside."""
    roots = [value for _, value in unit.outputs]
    for step in unit.steps:
        if isinstance(step, c.Binding):
            roots.append(step.value)
        elif isinstance(step, c.Call):
            roots += step.arguments
        else:
            roots += [value for _, value in (*step.carried, *step.captured)]
    for memory in unit.memories:
        roots += c.memory_expressions(memory)
    for root in roots:
        yield from c.walk(root)


def _starts(unit: c.Unit) -> dict[str, str]:
    """Memories that take part in an initial state, through `let` names too, and of which memory."""
    values = {binding.name: binding.value for binding in unit.bindings}
    found: dict[str, str] = {}
    for memory in unit.memories:
        if memory.initial.memory is not None:
            found.setdefault(memory.initial.memory, memory.name)
        todo = [] if memory.initial.expression is None else [memory.initial.expression]
        seen: set[str] = set()
        while todo:
            for part in c.walk(todo.pop()):
                if isinstance(part, c.Read | c.State):
                    found.setdefault(part.memory, memory.name)
                elif isinstance(part, c.Ref) and part.name in values and part.name not in seen:
                    seen.add(part.name)
                    todo.append(values[part.name])
    return found


# --- what `nsam check` says ------------------------------------------------------------------------


def check_step_keys(unit: c.Unit, train: c.Train | None, report: Report) -> None:
    """Reject rules with `key` or `err` on the step clock that cannot serve what they are to move (N0226)."""
    parts = list(_parts(unit))
    if not (train is not None and train_needs_keys(train)) and not needs_own_keys(parts):
        return
    end_to_end = learns_end_to_end(unit)
    for part in parts:
        cannot = unserved(part, end_to_end)
        for memory in filter(moves, part.memories):
            for tensor in memory.structure.tensors():
                why = cannot.get(f"{memory.name}.{tensor}")
                use = None if why is None else _rule_of(memory, why, train)
                if why is not None and use is not None:
                    report.add(
                        *refusal(use, f"{memory.name}.{tensor}", why),
                        help=way_out(own_step_rule(memory) is not None, why),
                    )
                    break


def _rule_of(memory: c.Memory, why: Unserved, train: c.Train | None) -> c.RuleUse | None:
    """The rule with `key` that is to move a parameter."""
    own = own_step_rule(memory)
    roles = ("all", "others" if why.others else "matrices")
    shared = [] if train is None else [use for use, role in train.rules if role in roles]
    return next((use for use in ([own] if own is not None else shared) if needs_keys(use.rule)), None)


def refusal(use: c.RuleUse, parameter: str, why: Unserved) -> tuple[str, str, Span, str]:
    """Code, message, place and label for a parameter that a rule cannot serve."""
    message = f"rule `{use.rule.name}` needs {wanted(use.rule)}, and `{parameter}` has none: {why.reason}"
    return "N0226", message, why.span, "cannot follow this rule"


def way_out(own: bool, why: Unserved) -> str:
    """What to do about it; `own` where the rule is that of one memory, not of the level."""
    if why.others and not own:
        return "give this rule `for matrices`, and others one of the gradient alone: `adamw(lr = 1e-3) for others`"
    alone = "choose a rule of the gradient alone, such as gd, muon or adamw"
    one = "; memories that this one can serve may have it to themselves: `minimize task; by …; every 1 step`"
    return alone if own else alone + one


def _parts(unit: c.Unit) -> Iterator[c.Unit]:
    """A unit and all below it, the body of a repeat once."""
    yield unit
    for step in unit.children:
        yield from _parts(step.body if isinstance(step, c.Repeat) else step.unit)
