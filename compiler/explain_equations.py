"""Where the paper (arXiv 2512.24695) has an equation: from features of a program to equation numbers.

The features are an objective, the shape of a rule, a schedule, a way in which memories meet. Names of systems, memories
and rules play no part.
"""

from __future__ import annotations

from collections.abc import Iterator

from nsam.compiler.explain_rules import Update
from nsam.dsl import checked as c

ATTENTION = "eq. 62–63"
DIRECT = "eq. 24–27"
GENERATED = "section 3.3"
SELF_TARGET = "eq. 87"
WINDOW = "eq. 68"


def objective_equation(objective: c.Objective, transposed: bool) -> str:
    """The objective's equation; `transposed` tells that it reads the transposed memory."""
    if transposed:
        return "eq. 66–67"
    return {"dot": "eq. 64", "l2": "eq. 65", "oja": "eq. 66–67"}.get(objective.name, "")


def rule_statements(rule: c.Rule) -> Iterator[c.RuleStatement]:
    """Every statement of a rule and of the rules of the memories in it."""
    for statement in rule.statements:
        yield statement
        if isinstance(statement, c.RuleMemory):
            yield from rule_statements(statement.rule.rule)


def update_equation(use: c.RuleUse, update: Update, objective: c.Objective | None, transposed: bool) -> str:
    """The equations that the rule's update has the shape of."""
    found = list(_momentum(use.rule))
    turned = any(_uses(s, "orthogonalize") for s in rule_statements(use.rule))
    if turned:
        found.append("42")
    if turned and "50" in found:
        found.append("52")
    if update.erases:
        found.append("57, 88")
    if _own_surprise(use.rule):
        found.append("59–60")
    if any(m.period > 1 for m in _memories(use.rule)):
        found.append("75")
    if not found and update.affine and objective is not None:
        return objective_equation(objective, transposed)
    return f"eq. {', '.join(sorted(dict.fromkeys(found)))}" if found else ""


def _memories(rule: c.Rule) -> list[c.RuleMemory]:
    return [s for s in rule_statements(rule) if isinstance(s, c.RuleMemory)]


def _momentum(rule: c.Rule) -> Iterator[str]:
    """Memories of the gradient: its sum or average, a map from it to a target, a network of it.

    What else a rule keeps is no momentum: squares of gradients, or what it has seen of its keys.
    """
    lets = _lets(rule)
    for memory in (s for s in rule.statements if isinstance(s, c.RuleMemory)):
        key, value = memory.context.key, memory.context.value
        if key is None:
            if _linear(value, "grad", lets):
                yield "33–34"
        elif memory.structure.kind == "mlp":
            if _mentions(key, "grad", lets):
                yield "50"
        elif _mentions(key, "grad", lets) and not _mentions(value, "grad", lets):
            yield "48–49" if memory.objective.name == "l2" else "46–47"


def _own_surprise(rule: c.Rule) -> bool:
    """Whether a layer learns from the sum of its answer and its error, through a function that is not linear."""
    lets = _lets(rule)
    values = [s.value for s in rule.statements if isinstance(s, c.RuleLet | c.RuleUpdate)]
    applied = [node for value in values for node in c.walk(value) if isinstance(node, c.Apply) and node.arguments]
    return any(node.function not in _LINEAR and _surprise(node.arguments[0], lets) for node in applied)


def _surprise(expr: c.Expr, lets: dict[str, c.Expr]) -> bool:
    if isinstance(expr, c.Ref) and expr.name in lets:
        return _surprise(lets[expr.name], lets)
    return (
        isinstance(expr, c.Apply)
        and expr.function in ("add", "sub")
        and all(any(_mentions(a, name, lets) for a in expr.arguments) for name in ("self", "key", "err"))
    )


_LINEAR = frozenset({"add", "sub", "mul", "div", "neg", "matmul", "transpose", "outer", "sum", "mean", "dot"})


def _lets(rule: c.Rule) -> dict[str, c.Expr]:
    return {s.name: s.value for s in rule.statements if isinstance(s, c.RuleLet)}


def _mentions(expr: c.Expr, name: str, lets: dict[str, c.Expr]) -> bool:
    """Whether `expr` is made of `name`, through lets too."""
    todo, seen = [expr], set[str]()
    while todo:
        for node in c.walk(todo.pop()):
            if not isinstance(node, c.Ref):
                continue
            if node.name == name:
                return True
            if node.name in lets and node.name not in seen:
                seen.add(node.name)
                todo.append(lets[node.name])
    return False


def _linear(expr: c.Expr, name: str, lets: dict[str, c.Expr]) -> bool:
    """Whether `expr` is affine in `name` and mentions it."""
    todo, seen = [expr], set[str]()
    while todo:
        part = todo.pop()
        if isinstance(part, c.Ref):
            if part.name != name and part.name not in lets:
                return False
            if part.name != name and part.name not in seen:
                seen.add(part.name)
                todo.append(lets[part.name])
            continue
        if not isinstance(part, c.Apply) or part.function not in _LINEAR:
            return False
        made = [a for a in part.arguments if _mentions(a, name, lets)]
        if not made or (part.function not in ("add", "sub") and len(made) != 1):
            return False
        todo += made
    return True


def _uses(statement: c.RuleStatement, function: str) -> bool:
    if not isinstance(statement, c.RuleLet | c.RuleUpdate):
        return False
    return any(isinstance(e, c.Apply) and e.function == function for e in c.walk(statement.value))


def schedule_equation(frequency: c.Frequency, reads: str) -> str:
    """The equation that says when a memory moves and which state its gradients see."""
    if frequency.unit == "step":
        return "eq. 70–71"
    if frequency.period == 1 and frequency.slowest is None:
        return "eq. 15–16" if reads == "running" and not frequency.summed else ""
    return "eq. 71" if frequency.summed else "eq. 90"


def initial_equation(initial: c.Initial) -> str:
    """The equation behind an initial state."""
    return {"learned": "eq. 28", "memory": "eq. 28, 72", "expression": GENERATED}.get(initial.kind, "")
