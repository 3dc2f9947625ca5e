"""Objectives with a name, and which of them is meant by a name that other frameworks have, or that is misspelt."""

from __future__ import annotations

from nsam.dsl import syntax
from nsam.dsl.diagnostics import Fix
from nsam.dsl.findings import Findings, Skip, suggest
from nsam.dsl.functions import FUNCTIONS
from nsam.dsl.spans import Span

NAMED: dict[str, tuple[str, ...]] = {
    "dot": (),
    "l2": (),
    "lp": ("p",),
    "huber": ("delta",),
    "pseudo_huber": ("delta",),
    "oja": (),
    "task": (),
}
"""Objectives with a name, and their arguments."""

ELSEWHERE: dict[str, str] = {
    "mse": "l2",
    "mse_loss": "l2",
    "l2_loss": "l2",
    "square": "l2",
    "squared": "l2",
    "squared_error": "l2",
    "mean_squared_error": "l2",
    "l1": "lp(1)",
    "l1_loss": "lp(1)",
    "mae": "lp(1)",
    "smooth_l1": "huber(1)",
    "smooth_l1_loss": "huber(1)",
    "hebb": "dot",
    "hebbian": "dot",
    "cosine": "dot",
    "inner_product": "dot",
    "loss": "task",
}
"""What other frameworks call them, or something near."""


def written(name: str) -> str:
    """Return an objective as a program writes it: `l2`, `huber(delta)`."""
    return f"{name}({', '.join(NAMED[name])})" if NAMED[name] else name


def meant(name: str) -> str | None:
    """Return the objective, as a program writes it, that `name` may stand for."""
    near = suggest(name, NAMED)
    return ELSEWHERE.get(name.lower()) or (written(near) if near else None)


def check_named(findings: Findings, objective: syntax.Expression) -> None:
    """Refuse arguments for an objective that has none (N0203), and a name that is no objective (N0228).

    `objective` is all that stands behind `minimize`. A call with `self` in it is an expression, of functions.
    """
    if isinstance(objective, syntax.Name):
        if objective.id not in (*NAMED, "self", "key", "value"):
            raise _unknown(findings, objective.id, objective.span, meant(objective.id))
    elif isinstance(objective, syntax.Call) and objective.function not in FUNCTIONS and objective.function != "self":
        name = objective.function
        if NAMED.get(name) == ():
            raise _without_arguments(findings, name, objective)
        if name not in NAMED and (name.lower() in ELSEWHERE or not _reads(objective)):
            raise _unknown(findings, name, objective.function_span, meant(name))


def in_expression(name: str) -> str | None:
    """Return what to do where an objective's name stands in an expression; None for other names."""
    if name not in NAMED and name.lower() not in ELSEWHERE:
        return None
    return "a named objective stands alone; in an expression it is written out: `sum((self(key) - value)^2) / 2`"


def _without_arguments(findings: Findings, name: str, call: syntax.Call) -> Skip:
    given = len(call.arguments)
    return findings.error(
        "N0203",
        f"`{name}` takes no arguments, {given} {'is' if given == 1 else 'are'} given",
        call.span,
        "an objective without arguments",
        help=f"write `minimize {name}`",
        fix=Fix(call.span, name),
    )


def _unknown(findings: Findings, name: str, span: Span, other: str | None) -> Skip:
    listed = f"objectives are {', '.join(map(written, NAMED))}, and expressions of `self(key)` and `value`"
    return findings.error(
        "N0228",
        f"there is no objective `{name}`",
        span,
        "not known here",
        notes=[listed] if other else (),
        help=f"did you mean `{other}`?" if other else listed,
    )


def _reads(node: syntax.Expression) -> bool:
    """Whether `self` is in an expression."""
    match node:
        case syntax.Name():
            return node.id == "self"
        case syntax.Unary():
            return _reads(node.operand)
        case syntax.Binary():
            return _reads(node.left) or _reads(node.right)
        case syntax.Call():
            return node.function == "self" or any(_reads(argument.value) for argument in node.arguments)
    return False
