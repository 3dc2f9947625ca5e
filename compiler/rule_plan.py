"""A learning rule as straight-line code.

`lower_rule` turns a checked rule, with the memories nested in it, into a `RulePlan`: assignments over matrices of the
host's shape [..., out, in], each with the stride (in updates of the host) at which it runs. Inner gradients of the
nested memories are derived here; nothing depends on the name of a rule.

Periods: a memory `every n updates summed` adds its inner gradients up (eq. 71) and applies its rule when the host's
update count is a multiple of n; without `summed` its rule folds over the n updates and only what `reads boundary` shows
waits for the boundary. Work that depends on nothing but such a slow state is kept beside it and redone when it moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace

from nsam.compiler.rule_algebra import Algebra, Kind, ref
from nsam.dsl.checked import Apply, Constant, Expr, Ref, Rule
from nsam.dsl.records import dataclass
from nsam.dsl.rule_keys import step_needs

INPUTS = ("grad", "key", "err")
COUNT = "count."
"""The number of updates, as a name of a plan; the dot keeps it apart from a user's `count`."""
GRAM = "gram."
"""Σ over the rows of a step's key of their outer product, [columns, columns]: what most rules need of it."""
WEIGHT = "weight."
"""The weights of a step's tokens, [tokens, 1], where a rule uses the `key` or `err` of each: see `rule_tokens.py`."""
_SUFFIXES = frozenset({"value", "key", "grad", "sum", "total", "running", "run", "loss"})
"""Last parts of names that are not the program's: what belongs to a memory, here and in the states of a model."""


def own(name: str) -> str:
    """Return the plan's name for what a rule calls `name`; no two names become one."""
    return f"{name}_" if name.rstrip("_") in _SUFFIXES else name


@dataclass(frozen=True, slots=True)
class Assign:
    """`target = value`, run when the host's update count is a multiple of `stride`.

    On other updates `target` is the value of the name `otherwise`, or does not exist where that is None.
    """

    target: str
    value: Expr
    stride: int = 1
    otherwise: str | None = None


@dataclass(frozen=True, slots=True)
class PlanState:
    """A tensor kept between updates.

    `initial` is an expression in parameters, a scalar (it fills the tensor) or a multiple of the identity, or for a
    `derived` state an expression in the states before it. `shape` gives rows and columns where they are not the host's.
    """

    name: str
    initial: Expr
    derived: bool = False
    shape: tuple[Expr, Expr] | None = None


@dataclass(frozen=True, slots=True)
class RulePlan:
    """A rule ready to be emitted.

    Names: `self`, the inputs `grad`, `key`, `err` (on the step clock `GRAM` for `key`, or with `WEIGHT` the rows of its
    tokens, as all names in `tokens` are), `COUNT` (updates since the
    reset, the current one included), the parameters, the states as they are before the update, and the targets of
    `body`. `results` gives the name that holds the new value of `self` and of every state, in order. `kinds` names the
    scalars (all else are matrices). `inputs` is the subset of the inputs that is used, `strides` the periods greater
    than 1, ascending.
    """

    name: str
    parameters: tuple[str, ...]
    states: tuple[PlanState, ...]
    body: tuple[Assign, ...]
    results: tuple[tuple[str, str], ...]
    inputs: frozenset[str]
    kinds: Mapping[str, Kind] = field(hash=False)
    needs_count: bool = False
    tokens: frozenset[str] = frozenset()

    @property
    def strides(self) -> tuple[int, ...]:
        """The periods, in updates, of what does not run at every update."""
        return tuple(sorted({assign.stride for assign in self.body if assign.stride > 1}))

    @property
    def algebra(self) -> Algebra:
        """Simplifying constructors that know this plan's scalars."""
        return Algebra(dict(self.kinds))

    def due(self, count: int) -> frozenset[int]:
        """Return the strides that close at update `count` (from 1)."""
        return frozenset(stride for stride in self.strides if count % stride == 0)

    def at(self, due: frozenset[int]) -> RulePlan:
        """Return the plan for an update at which exactly the strides `due` close: the same without conditions."""
        from nsam.compiler.rule_passes import straighten

        body = []
        for a in self.body:
            if a.stride == 1 or a.stride in due:
                body.append(Assign(a.target, a.value))
            elif a.otherwise is not None:
                body.append(Assign(a.target, ref(a.otherwise)))
        return straighten(replace(self, body=tuple(body)))


def lower_rule(rule: Rule, fixed: Mapping[str, Expr] | None = None, *, steps: bool = False) -> RulePlan:
    """Lower `rule`. Parameters in `fixed` are replaced by the given expressions; the others stay names.

    With `steps` for the step clock, where `outer(key, key)` is `GRAM` and `dot(key, key)` its trace; a rule that needs
    the `key` or `err` of each token has a plan over the rows of all of them.
    """
    from nsam.compiler.rule_lowering import Lowering
    from nsam.compiler.rule_passes import cache_slow, clean
    from nsam.compiler.rule_sharing import share
    from nsam.compiler.rule_tokens import over_tokens

    tokens = steps and step_needs(rule) == "tokens"
    plan = Lowering(rule, steps and not tokens).lower(dict(fixed or {}))
    plan = clean(share(clean(cache_slow(clean(plan)))))
    return over_tokens(plan) if tokens else plan


def number(expr: Expr) -> float | int:
    """Return the value of a constant expression; ValueError when it is not one."""
    folded = Algebra().simplify(expr)
    if not isinstance(folded, Constant):
        raise ValueError("not a constant expression")
    return folded.value


def dump(plan: RulePlan) -> str:
    """Return the plan as text, one assignment a line."""
    lines = [f"rule {plan.name}({', '.join(plan.parameters)})"]
    lines += [f"  state {s.name} = {text(s.initial)}" for s in plan.states]
    for a in plan.body:
        when = "" if a.stride == 1 else f"   every {a.stride}" + (f" else {a.otherwise}" if a.otherwise else "")
        lines.append(f"  {a.target} = {text(a.value)}{when}")
    lines += [f"  {name} <- {value}" for name, value in plan.results]
    return "\n".join(lines)


_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "matmul": "@", "pow": "^"}


def text(expr: Expr) -> str:
    """Return an expression as text with full brackets."""
    if isinstance(expr, Constant):
        return f"{expr.value:g}"
    if isinstance(expr, Ref):
        return expr.name
    if isinstance(expr, Apply) and expr.function in _SIGNS:
        left, right = expr.arguments
        return f"({text(left)} {_SIGNS[expr.function]} {text(right)})"
    if isinstance(expr, Apply):
        return f"{expr.function}({', '.join(text(argument) for argument in expr.arguments)})"
    return str(expr)
