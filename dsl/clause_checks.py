"""Checks of a memory's rule against its other clauses, and how the clauses of a memory report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsam.dsl import syntax
from nsam.dsl.checked import (
    Context,
    Expr,
    Frequency,
    Objective,
    Read,
    Ref,
    Reset,
    RuleMemory,
    RuleState,
    RuleUse,
    walk,
)
from nsam.dsl.diagnostics import Label
from nsam.dsl.findings import Findings, Skip
from nsam.dsl.memories import Info
from nsam.dsl.rule_uses import periods
from nsam.dsl.sizes import Size, divides
from nsam.dsl.spans import Span
from nsam.dsl.types import same_size, shape_text
from nsam.dsl.words import counted

if TYPE_CHECKING:
    from nsam.dsl.bodies import Body


class ClauseChecks:
    """What the clauses of one memory are checked for together; `minimize` is its objective clause, if it has one."""

    minimize: syntax.Minimize | None = None

    def __init__(self, body: Body, info: Info) -> None:
        self.body = body
        self.info = info
        self.findings: Findings = body.findings

    def error(
        self,
        code: str,
        message: str,
        span: Span,
        label: str = "",
        secondary: list[Label] | None = None,
        help: str | None = None,
    ) -> None:
        """Report a finding in a clause; the others are still checked."""
        self.body.failed = True
        self.findings.error(code, message, span, label, secondary=secondary or [], help=help)

    def _senseless(self, clause: syntax.Node, message: str, help: str | None = None) -> None:
        place = [Label(self.info.node.structure.kind_span, f"`{self.info.structure.kind}` here")]
        self.error("N0222", message, clause.span, "makes no sense here", place, help)

    def _is_task(self) -> bool:
        objective = None if self.minimize is None else self.minimize.objective
        return isinstance(objective, syntax.Name) and objective.id == "task"

    # --- the rule ---

    def _check_rule(
        self,
        node: syntax.By,
        rule: RuleUse,
        context: Context | None,
        frequency: Frequency | None,
        objective: Objective | None,
    ) -> None:
        heads = self.info.structure.heads
        needs = rule.rule.needs & {"key", "err"}
        if context is not None and context.key is None and needs:
            self.error(
                "N0226",
                f"rule `{node.rule}` needs `{sorted(needs)[0]}`, and this memory learns without keys",
                node.rule_span,
                "needs the input of the layer",
                [Label(context.span, "no key here")],
                "learn `key -> value`, or choose a rule of the gradient alone, such as gd",
            )
        if "key" in needs and objective is not None and context is not None and context.key is not None:
            self._check_key_read(node, objective)
        self._check_rule_starts(rule)
        if frequency is not None and frequency.unit != "step" and frequency.summed and needs:
            written = frequency.unit == "token" and not self._is_task()
            self.error(
                "N0225",
                f"rule `{node.rule}` needs `{sorted(needs)[-1]}`, and a summed update has only the sum of gradients",
                node.rule_span,
                "needs more than the gradient",
                [Label(frequency.span, "one update for the whole period")],
                "leave out `summed`, or choose a rule of the gradient alone, such as gd"
                if written
                else "choose a rule of the gradient alone, such as gd: with `minimize task` updates are always summed",
            )
        for name, value in rule.arguments:
            self._check_argument(name, value, heads, frequency)

    def _check_key_read(self, node: syntax.By, objective: Objective) -> None:
        """What `key` is in a rule: the input of a layer when the memory is read at the context's key."""
        reads = [e for e in walk(objective.expression) if isinstance(e, Read)] if objective.expression else []
        if not any(e.argument == Ref(e.argument.type, e.span, "key") and not e.transposed for e in reads):
            self.error(
                "N0226",
                f"rule `{node.rule}` needs `key`, and the objective does not read `self(key)`",
                node.rule_span,
                "needs the input of the layer",
                [Label(objective.span, "no `self(key)` here")],
                "read the memory at its key, or choose a rule of the gradient alone, such as gd",
            )

    def _check_rule_starts(self, use: RuleUse) -> None:
        """States of a rule start before there is a token: an argument that varies cannot be in them."""
        varying = {name for name, value in use.arguments if value.type.per != "constant"}
        for statement in use.rule.statements:
            start = statement.initial if isinstance(statement, RuleState | RuleMemory) else None
            for part in () if start is None else walk(start):
                if isinstance(part, Ref) and part.name in varying:
                    self.error(
                        "N0231",
                        f"a state of rule `{use.rule.name}` starts from `{part.name}`, which varies here",
                        dict(use.arguments)[part.name].span,
                        "not known before the first token",
                        [Label(part.span, f"`{part.name}` in the initial state")],
                        "give a number, or start the state from `zeros`",
                    )

    def _check_argument(self, name: str, value: Expr, heads: Size | None, frequency: Frequency | None) -> None:
        type_ = value.type
        shape = type_.shape
        per_head = len(shape) == 1 and (same_size(shape[0], 1) or (heads is not None and same_size(shape[0], heads)))
        if type_.vocab is not None or not (shape == () or per_head):
            wanted = "a number" if heads is None else f"a number, or [{heads}]"
            self.error(
                "N0241",
                f"argument `{name}` of a rule is {wanted}, this is {shape_text(type_)}",
                value.span,
                f"this is {shape_text(type_)}",
                [Label(self.info.span, f"`{self.info.path}` is declared here")],
                f"it holds for a whole matrix: take it from a memory such as `linear(… -> {heads or 1})`, or a `mean`",
            )
        if self._is_task() and frequency is not None and frequency.unit == "token" and type_.per == "sequence":
            self.error(
                "N0225",
                f"argument `{name}` takes more than parameters, and this memory moves by the loss of a whole chunk",
                value.span,
                "varies with the sequence",
                [Label(frequency.span, "one update for the whole period")],
                "make it of numbers and of memories without clauses",
            )
        if frequency is not None and frequency.summed and type_.per == "token":
            self.error(
                "N0225",
                f"argument `{name}` varies with the token, and a summed update happens once",
                value.span,
                "varies with the token",
                [Label(frequency.span, "one update for the whole period")],
                "leave out `summed`, or give a constant",
            )

    # --- resets ---

    def _not_multiple(self, node: syntax.Reset, distance: object, period: object, span: Span) -> Skip:
        return self.findings.error(
            "N0224",
            f"a reset every {counted(distance, 'token')} cuts a period of {counted(period, 'token')}",
            node.span,
            f"{distance} is no multiple of {period}",
            secondary=[Label(span, counted(period, "token"))],
            help="reset at a multiple of the period, or what was gathered since the last boundary is lost",
        )

    def _check_rule_periods(self, node: syntax.Reset, reset: Reset, frequency: Frequency, rule: RuleUse) -> None:
        """The memories inside a rule count updates of a summed host: their periods, in tokens, are cut too."""
        if reset.kind != "every" or not frequency.summed or frequency.unit != "token":
            return
        if frequency.period == float("inf"):  # what never moves has no period to cut
            return
        for count, span in periods(rule.rule):
            whole = frequency.period * count
            if divides(whole, reset.period) is False:
                self.body.failed = True
                self._not_multiple(node, reset.period, whole, span)
