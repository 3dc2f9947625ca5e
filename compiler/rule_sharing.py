"""Common subexpressions of rule plans: what is written twice is computed once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from nsam.compiler.rule_algebra import Algebra, call, names, ref, substitute
from nsam.compiler.rule_plan import Assign, RulePlan
from nsam.dsl.checked import Apply, Expr

_FREE = frozenset(
    {"transpose", "identity", "zeros_like", "ones_like", "zeros_of", "ones_of", "neg", "rows", "cols", "count_of"}
)


def share(plan: RulePlan) -> RulePlan:
    """Give every repeated computation on matrices a name, largest first."""
    body = list(plan.body)
    number = 0
    while (repeated := _largest_repeated(body, plan.algebra)) is not None:
        number += 1
        name = f"shared.{number}"
        users = [i for i, assign in enumerate(body) if repeated in _parts(assign.value)]
        stride = math.gcd(*(body[i].stride for i in users))
        for i in users:
            body[i] = replace(body[i], value=_named(body[i].value, repeated, name))
        body.insert(users[0], Assign(name, repeated, stride))
        plan = replace(plan, kinds={**plan.kinds, name: plan.algebra.kind(repeated)})
    return replace(plan, body=tuple(body))


def _named(expr: Expr, repeated: Expr, name: str) -> Expr:
    return substitute(expr, lambda e: ref(name) if e == repeated else None, call)


def _largest_repeated(body: list[Assign], algebra: Algebra) -> Expr | None:
    counts: Counter[Expr] = Counter(part for assign in body for part in _parts(assign.value))
    found = [part for part, count in counts.items() if count > 1 and _costs(part, algebra)]
    return max(found, key=_size, default=None)


def _costs(expr: Expr, algebra: Algebra) -> bool:
    """Whether `expr` is work on whole matrices."""
    if not isinstance(expr, Apply) or expr.function in _FREE:
        return False
    return any(algebra.kind(ref(name)) == "matrix" for name in names(expr))


def _parts(expr: Expr) -> Iterator[Expr]:
    yield expr
    if isinstance(expr, Apply):
        for argument in expr.arguments:
            yield from _parts(argument)


def _size(expr: Expr) -> int:
    return sum(1 for _ in _parts(expr))
