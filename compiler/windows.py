"""Which rules can take a window with rows of zeros where its first tokens are not there yet.

The compiled form gives a rule as many rows of `key` and `err` as the window is long, and zeros for the tokens before
the first. What adds rows up leaves out zeros by itself; what counts them, or makes something else of a zero, does not.
"""

from __future__ import annotations

from dataclasses import replace

from nsam.compiler.rule_plan import RulePlan
from nsam.compiler.unsupported import unsupported
from nsam.dsl.checked import Apply, Constant, Expr, Ref, RuleUse
from nsam.dsl.records import dataclass

_KEEP_ZERO = frozenset({"neg", "abs", "sqrt", "sign", "sin", "erf", "tanh", "relu", "silu", "gelu", "gelu_tanh"})
_ELEMENTWISE = frozenset(
    {"add", "sub", "mul", "div", "pow", "max", "min", "clip", "exp", "log", "cos", "sigmoid", "softplus", "at_least"}
    | {"inverse_or_zero", "ones_like", "zeros_like", *_KEEP_ZERO}
)
_TOTALS = frozenset({"sum", "norm", "dot", "trace"})


@dataclass(frozen=True, slots=True)
class _Rows:
    """A value with an axis for the window's rows: the first or the last one, and whether missing rows are zeros."""

    first: bool = True
    zero: bool = True


class _Counts(Exception):
    """A function that missing rows would change."""


def require_sums(plan: RulePlan, use: RuleUse) -> None:
    """Check that rows of zeros in place of tokens before the first one change nothing; `ProgramError` otherwise."""
    function = counts_rows(plan)
    if function is not None:
        what = "a product (`@`, `outer`)" if function == "matmul" else f"`{function}`"
        message = f"rule `{plan.name}` takes {what} of a window's rows, of which the first tokens have fewer"
        help_text = "what adds rows up has a compiled form: `outer(err, key)`, `transpose(key) @ …`, `sum(key^2)`"
        raise unsupported(message, use.span, help_text)


def counts_rows(plan: RulePlan) -> str | None:
    """Return the function of a rule whose value rows of zeros would change; None where there is none."""
    known: dict[str, _Rows | None] = {"key": _Rows(), "err": _Rows()}
    try:
        for assign in plan.body:
            known[assign.target] = _value(assign.value, known)
    except _Counts as found:
        return str(found)
    return None


def _value(expr: Expr, known: dict[str, _Rows | None]) -> _Rows | None:
    if isinstance(expr, Ref):
        return known.get(expr.name)
    if not isinstance(expr, Apply):
        return None
    name, arguments = expr.function, [_value(argument, known) for argument in expr.arguments]
    rows = [x for x in arguments if x is not None]
    if not rows or name == "cols":
        return None
    if name == "transpose":
        return replace(rows[0], first=not rows[0].first)
    if name == "matmul":
        return _product(*arguments)
    if name in _TOTALS and any(x.zero for x in rows):
        return None
    if name in ("normalize", "orthogonalize") and rows[0].zero and rows[0].first:
        return rows[0]
    if name in _ELEMENTWISE and len({x.first for x in rows}) == 1:
        return replace(rows[0], zero=_zero(expr, arguments))
    raise _Counts(name)


def _product(a: _Rows | None, b: _Rows | None) -> _Rows | None:
    if a is not None and b is not None:
        if not a.first and b.first and (a.zero or b.zero):
            return None
    elif (a is not None and a.first) or (b is not None and not b.first):
        return a or b
    raise _Counts("matmul")


def _zero(expr: Apply, arguments: list[_Rows | None]) -> bool:
    """Whether an elementwise function of rows is zero where rows are missing."""
    zeros = [x is not None and x.zero for x in arguments]
    if expr.function == "mul":
        return any(zeros)
    if expr.function in ("add", "sub"):
        return all(zeros)
    if expr.function == "div":
        return zeros[0] and arguments[1] is None
    if expr.function == "pow":
        exponent = expr.arguments[1]
        return zeros[0] and isinstance(exponent, Constant) and exponent.value > 0
    return expr.function in _KEEP_ZERO and zeros[0]
