"""`init`: learned, zeros, a copy of another memory, or a generator's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nsam.dsl import syntax
from nsam.dsl.checked import Binding, Expr, Initial, Output, Read, Ref, walk
from nsam.dsl.constants import Unknown, is_symbolic, show
from nsam.dsl.diagnostics import Label
from nsam.dsl.findings import did_you_mean
from nsam.dsl.memories import Info
from nsam.dsl.reads import SystemExpressions
from nsam.dsl.sizes import equal, product
from nsam.dsl.structures import state_size
from nsam.dsl.types import shape_text
from nsam.dsl.words import counted

if TYPE_CHECKING:
    from nsam.dsl.bodies import Body

DRAWN = frozenset(
    "rand randn random normal randn_like uniform gaussian xavier xavier_normal xavier_uniform glorot "
    "kaiming kaiming_normal kaiming_uniform he trunc_normal orthogonal".split()
)
"""What other frameworks call a random start."""


class InitialExpressions(SystemExpressions):
    """The expression of an `init` clause: names that mean nothing are often those of other frameworks' starts."""

    def hint(self, name: str, known: Sequence[str]) -> str | None:
        """Return what to write instead."""
        if name in DRAWN:
            return "`init learned` draws numbers, and learns them; `init learned normal(0.02)` says how far from 0"
        if name in ("learned", "zeros"):
            return f"write `init {name}`, without parentheses"
        return did_you_mean(name, [*known, "learned", "zeros"]) or (
            "a state starts as `learned`, `learned normal(s)`, `zeros`, as another memory (`init other`), "
            "or from an expression that writes each of its numbers"
        )


def build_initial(body: Body, info: Info, node: syntax.Init) -> Initial:
    """Return the initial state that an `init` clause describes."""
    if node.kind == "zeros":
        return Initial("zeros")
    if node.kind == "learned" or node.expression is None:
        return Initial("learned", None if node.deviation is None else _deviation(info, node.deviation))
    expression = node.expression
    if isinstance(expression, syntax.Name) and expression.id in body.memories:
        return Initial("memory", memory=_copied(body, info, expression))
    return Initial("expression", expression=_generated(body, info, node, expression))


def _deviation(info: Info, node: syntax.Expression) -> float:
    value = info.evaluator.number(node)
    if is_symbolic(value):
        return Unknown("float")  # type: ignore[return-value]
    if not 0 <= value < float("inf"):
        raise info.evaluator.findings.error(
            "N0211", f"a standard deviation of {show(value)}", node.span, "a number from 0 is needed"
        )
    return float(value)


def _copied(body: Body, info: Info, node: syntax.Name) -> str:
    other = body.single(node.id, node.span, "start from a memory that is declared on its own")
    if other is info:
        raise body.findings.error("N0232", "a memory cannot start from itself", node.span, "the same memory")
    ours, theirs = info.structure, other.structure
    same = (ours.kind, ours.act, ours.residual, ours.gated, ours.bias) == (
        theirs.kind,
        theirs.act,
        theirs.residual,
        theirs.gated,
        theirs.bias,
    )
    pairs = zip((*ours.sizes, ours.heads or 0), (*theirs.sizes, theirs.heads or 0), strict=False)
    if not same or len(ours.sizes) != len(theirs.sizes) or any(equal(a, b) is False for a, b in pairs):
        raise body.findings.error(
            "N0232",
            f"`{info.path}` starts from `{other.path}`, which has another structure",
            node.span,
            f"`{other.node.structure.span.text}`",
            secondary=[
                Label(info.node.structure.span, "this structure"),
                Label(other.node.structure.span, "the other one"),
            ],
            help=f"declare it alike: `like({other.path})`",
        )
    return other.path


def _calls(body: Body, value: Expr) -> bool:
    """Whether a value is made with a call or a repeat, directly or through lets."""
    steps = [step for found in body.steps.values() for step in found]
    bindings = {step.name: step.value for step in steps if isinstance(step, Binding)}
    waiting, seen = [value], set[str]()
    while waiting:
        for part in walk(waiting.pop()):
            if isinstance(part, Output):
                return True
            if isinstance(part, Ref) and part.name in bindings and part.name not in seen:
                seen.add(part.name)
                waiting.append(bindings[part.name])
    return False


def _generated(body: Body, info: Info, node: syntax.Init, expression: syntax.Expression) -> Expr:
    value = InitialExpressions(body, info.position, info.evaluator, info).build(expression)
    if any(isinstance(part, Read) and part.memory == "self" for part in walk(value)):
        raise body.findings.error("N0232", "a memory cannot start from itself", node.span, "`self` in here")
    if value.type.per == "token":
        raise body.findings.error(
            "N0231",
            "an initial state sees only what is there before the first token",
            value.span,
            "this varies with the token",
            help="make it from memories and from inputs that are `per sequence`",
        )
    if _calls(body, value):
        raise body.findings.error(
            "N0231",
            "an initial state is made of memories and inputs, not of what a system or a repeat returns",
            value.span,
            "a system is called for this",
            help="write what the system does in this system, with `let`",
        )
    wanted, found = state_size(info.structure), product(value.type.shape)
    if value.type.vocab is not None or equal(wanted, found) is False:
        raise body.findings.error(
            "N0230",
            f"`{info.path}` has {counted(wanted, 'number')}, its generator writes {found}",
            value.span,
            f"this is {shape_text(value.type)}",
            secondary=[Label(info.node.structure.span, counted(wanted, "number"))],
            help="the generator writes every number of the state, row by row, layer by layer",
        )
    return value
