"""Periods of `every`: one number, or a range within which the surprise decides."""

from __future__ import annotations

from typing import Any

from nsam.dsl import syntax
from nsam.dsl.checked import Frequency
from nsam.dsl.constants import Evaluator, Unknown
from nsam.dsl.findings import Findings
from nsam.dsl.sizes import divides

LARGEST_PERIOD = 2**63 - 1
"""As large as whole numbers are elsewhere: a literal, or a parameter given from outside."""


def period_of(evaluator: Any, node: syntax.Expression) -> Any:
    """Return a period: a whole number from 1 to 2^63 - 1, or inf; N0223 below 1, N0211 beyond."""
    value = evaluator.value(node)
    if value == float("inf"):
        return value
    if (isinstance(value, float) and value < 1) or (isinstance(value, int) and value < 1):
        raise evaluator.findings.error(
            "N0223",
            f"a period of {value}",
            node.span,
            "at least 1 is needed",
            help="1 is the fastest; `inf` never moves",
        )
    if value == Unknown("float"):
        return 1
    period = evaluator.integer(node, "a period")
    if isinstance(period, int) and period > LARGEST_PERIOD:
        raise evaluator.findings.error(
            "N0211",
            "this period is longer than 2^63",
            node.span,
            "longer than any sequence",
            help="write `inf` for never",
        )
    return period


def adaptive(evaluator: Evaluator, node: syntax.Every, fastest: Any, *, task: bool) -> Frequency:
    """Return `every n..m tokens when surprise > x`: a decision at every n-th token, at the latest after m.

    N0242 where there is no surprise inside the sequence, N0243 where n does not divide m.
    """
    assert node.slowest is not None
    assert node.threshold is not None
    if node.unit != "token" or node.summed or task:
        why = "`summed`" if node.summed else "`minimize task`" if task else f"the {node.unit} clock"
        raise evaluator.findings.error(
            "N0242",
            f"an adaptive period does not go with {why}",
            node.span,
            "decided by the surprise inside the sequence",
            help="give one period, or learn a key and value on the token clock, without `summed`",
        )
    slowest = period_of(evaluator, node.slowest)
    endless = float("inf") in (fastest, slowest)
    if endless or divides(fastest, slowest) is False:
        raise evaluator.findings.error(
            "N0243",
            f"the periods {fastest}..{slowest} do not fit together",
            node.slowest.span,
            "both must be finite" if endless else f"{slowest} is no multiple of {fastest}",
            help="decisions fall on multiples of the smaller period; the larger one is one of them",
        )
    return Frequency(fastest, "token", False, node.span, slowest, evaluator.number(node.threshold))


def not_adaptive(findings: Findings, node: syntax.Every) -> None:
    """Raise Skip after N0242 where a period must not depend on the surprise."""
    if node.slowest is not None:
        raise findings.error(
            "N0242",
            "an adaptive period is for memories of a system",
            node.span,
            "there is no surprise here",
            help="give one period",
        )
