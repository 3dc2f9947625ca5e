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
    found = []
    memories = [s for s in rule_statements(use.rule) if isinstance(s, c.RuleMemory)]
    if update.erases:
        found.append("57, 88")
    if any(m.context.key is not None for m in memories):
        found.append("48–49")
    elif any(m.structure.kind == "mlp" for m in memories):
        found.append("50, 52")
    elif memories:
        found.append("33–34")
    if any(_uses(s, "orthogonalize") for s in rule_statements(use.rule)):
        found.append("42")
    if any(m.period > 1 for m in memories):
        found.append("75")
    if not found and update.affine and objective is not None:
        return objective_equation(objective, transposed)
    return f"eq. {', '.join(found)}" if found else ""


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
