"""Writes called systems out into the unit that calls them.

A call whose arguments depend on a memory of the calling unit, and whose result that memory (or another one of the same
loop) learns from, has to run inside the loop over chunks. Its memories then become memories of the calling unit, under
the paths that they have anyway: `titans.mem`, `repeat.0.titans.mem`.
"""

from __future__ import annotations

from dataclasses import replace

from nsam.dsl import checked as c


def inline(unit: c.Unit, names: frozenset[str]) -> c.Unit:
    """Return `unit` with the calls and repeats in `names` written out. Parameters keep their paths."""
    memories: list[c.Memory] = list(unit.memories)
    transfers: list[c.Transfer] = list(unit.transfers)
    steps: list[c.Binding | c.Child] = []
    for step in unit.steps:
        if isinstance(step, c.Binding) or step.name not in names:
            steps.append(step)
        elif isinstance(step, c.Call):
            inputs = dict(zip((i.name for i in step.unit.inputs), step.arguments, strict=True))
            outputs = _write_out(step.unit, step.name, inputs, memories, steps, transfers)
            steps += [_bind(_result(step.name, name), value) for name, value in outputs.items()]
        else:
            carried = dict(step.carried)
            for i in range(int(step.count)):
                path = f"{step.name}.{i}"
                inputs = {**carried, **dict(step.captured)}
                outputs = _write_out(step.body, path, inputs, memories, steps, transfers)
                steps += [_bind(_result(path, name), value) for name, value in outputs.items()]
                carried = {name: _ref(_result(path, name), value) for name, value in outputs.items()}
            steps += [_bind(_result(step.name, name), value) for name, value in carried.items()]
    outside = _Rename("", names)
    own = {m.name for m in unit.memories}
    return replace(
        unit,
        memories=tuple(outside.memory(m) if m.name in own else m for m in memories),
        steps=tuple(outside.step(s) for s in steps),
        outputs=tuple((name, outside.expr(value)) for name, value in unit.outputs),
        transfers=tuple(transfers),
    )


def _result(path: str, name: str) -> str:
    """What a result of a written-out call is called (an input of the same name has the name without `.out`)."""
    return f"{path}.{name}.out"


def _bind(name: str, value: c.Expr) -> c.Binding:
    return c.Binding(name, name, value, value.span)


def _ref(name: str, like: c.Expr) -> c.Expr:
    return c.Ref(like.type, like.span, name)


def _write_out(
    unit: c.Unit,
    path: str,
    inputs: dict[str, c.Expr],
    memories: list[c.Memory],
    steps: list[c.Binding | c.Child],
    transfers: list[c.Transfer],
) -> dict[str, c.Expr]:
    """Add what `unit` declares under `path`; return its outputs in the calling unit's names."""
    inner = inline(unit, frozenset(s.name for s in unit.children))
    rename = _Rename(f"{path}.", frozenset())
    steps += [_bind(f"{path}.{name}", value) for name, value in inputs.items()]
    steps += [rename.step(s) for s in inner.steps]
    memories += [rename.memory(m) for m in inner.memories]
    transfers += [replace(t, source=f"{path}.{t.source}", target=f"{path}.{t.target}") for t in inner.transfers]
    return {name: rename.expr(value) for name, value in inner.outputs}


class _Rename:
    """Puts a prefix before every name of a unit, and turns results of written-out calls into plain names."""

    def __init__(self, prefix: str, gone: frozenset[str]) -> None:
        self.prefix, self.gone = prefix, gone

    def expr(self, expr: c.Expr) -> c.Expr:
        """An expression in the calling unit's names."""
        if isinstance(expr, c.Ref):
            return replace(expr, name=self.prefix + expr.name)
        if isinstance(expr, c.State):
            return replace(expr, memory=self.prefix + expr.memory)
        if isinstance(expr, c.Read):
            memory = expr.memory if expr.memory == "self" else self.prefix + expr.memory
            return replace(expr, memory=memory, argument=self.expr(expr.argument))
        if isinstance(expr, c.Apply):
            return replace(expr, arguments=tuple(map(self.expr, expr.arguments)))
        if isinstance(expr, c.Output):
            if expr.child in self.gone:
                return c.Ref(expr.type, expr.span, self.prefix + _result(expr.child, expr.name))
            return replace(expr, child=self.prefix + expr.child)
        return expr

    def step(self, step: c.Binding | c.Child) -> c.Binding | c.Child:
        """A binding, a call or a repeat in the calling unit's names."""
        if isinstance(step, c.Binding):
            return replace(step, name=self.prefix + step.name, value=self.expr(step.value))
        if isinstance(step, c.Call):
            return replace(step, name=self.prefix + step.name, arguments=tuple(map(self.expr, step.arguments)))
        carried = tuple((name, self.expr(value)) for name, value in step.carried)
        captured = tuple((name, self.expr(value)) for name, value in step.captured)
        return replace(step, name=self.prefix + step.name, carried=carried, captured=captured)

    def memory(self, memory: c.Memory) -> c.Memory:
        """A memory and its clauses in the calling unit's names."""
        context, rule, initial = memory.context, memory.rule, memory.initial
        if context is not None:
            key = None if context.key is None else self.expr(context.key)
            context = replace(context, key=key, value=self.expr(context.value))
        if rule is not None:
            rule = replace(rule, arguments=tuple((name, self.expr(value)) for name, value in rule.arguments))
        if initial.memory is not None:
            initial = replace(initial, memory=self.prefix + initial.memory)
        if initial.expression is not None:
            initial = replace(initial, expression=self.expr(initial.expression))
        return replace(memory, name=self.prefix + memory.name, context=context, rule=rule, initial=initial)
