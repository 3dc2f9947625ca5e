"""Clauses of a memory in a system: each one's meaning, and which ones make sense together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from nsam.dsl import syntax
from nsam.dsl.checked import (
    Context,
    Expr,
    Frequency,
    Initial,
    Memory,
    Objective,
    Reset,
    RuleUse,
    Structure,
)
from nsam.dsl.clause_checks import ClauseChecks
from nsam.dsl.diagnostics import Label
from nsam.dsl.findings import Skip
from nsam.dsl.initials import build_initial
from nsam.dsl.memories import Info
from nsam.dsl.objectives import build_objective
from nsam.dsl.periods import adaptive, period_of
from nsam.dsl.reads import SystemExpressions, number_as_vector
from nsam.dsl.rule_hosts import hosts_of, require_fit
from nsam.dsl.rule_uses import use_rule
from nsam.dsl.sizes import Size, at_least, divides
from nsam.dsl.structures import input_size, output_size, state_shape
from nsam.dsl.types import same_shape, shape_text

if TYPE_CHECKING:
    from nsam.dsl.bodies import Body

C = TypeVar("C", bound=syntax.Node)

LEARNERS = frozenset({"linear", "mlp", "vector"})
"""Structures that can learn inside the sequence; the others move on the step clock only."""


def _described(structure: Structure) -> str:
    """Return what a structure without a state of one tensor is called in messages."""
    more = " with a bias" if structure.bias else " with heads" if structure.heads is not None else ""
    return f"`{structure.kind}`" + (more if structure.kind == "linear" else "")


def build_memory(body: Body, info: Info) -> Memory:
    """Return the memory with its clauses checked; raise Skip after reporting what is wrong."""
    return _Clauses(body, info).memory()


class _Clauses(ClauseChecks):
    def __init__(self, body: Body, info: Info) -> None:
        super().__init__(body, info)
        self.expressions = SystemExpressions(body, info.position, info.evaluator, info)
        self.learn = self._one(syntax.Learn)
        self.minimize = self._one(syntax.Minimize)
        self.by = self._one(syntax.By)
        self.every = self._one(syntax.Every)
        self.reads = self._one(syntax.Reads)
        self.reset = self._one(syntax.Reset)
        self.init = self._one(syntax.Init)

    def _one(self, kind: type[C]) -> C | None:
        found = cast("list[C]", self.info.clauses(kind))
        for second in found[1:]:
            word = kind.__name__.lower()
            self.error(
                "N0220", f"two `{word}` clauses", second.span, "the second one", [Label(found[0].span, "the first one")]
            )
        return found[0] if found else None

    def memory(self) -> Memory:
        info = self.info
        if info.structure.kind == "attention":
            return self._attention()
        self._check_combination()
        context = None if self.learn is None else self._attempt(self._context, self.learn)
        failed = self.learn is not None and (context is None or info.structure.kind not in LEARNERS)
        frequency = None if self.every is None else self._attempt(self._frequency, self.every)
        failed |= self.every is not None and frequency is None
        objective = None if self.minimize is None or failed else self._attempt(self._objective, self.minimize, context)
        rule = None if self.by is None else self._attempt(self._rule, self.by)
        reset = Reset("sequence") if self.reset is None else self._attempt(self._reset, self.reset, frequency)
        initial = Initial("learned") if self.init is None else self._attempt(build_initial, self.body, info, self.init)
        if self.by is not None and rule is not None and not failed:
            self._check_rule(self.by, rule, context, frequency, objective)
        if rule is not None and frequency is not None and reset is not None and self.reset is not None:
            self._check_rule_periods(self.reset, reset, frequency, rule)
        if self.body.failed or reset is None or initial is None:
            raise Skip
        reads: Any = "boundary" if self.reads is None else self.reads.mode
        return Memory(
            info.path,
            info.structure,
            info.span,
            context,
            objective,
            rule,
            frequency,
            reads,
            reset,
            initial,
        )

    def _attempt(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Skip:
            self.body.failed = True
            return None

    # --- which clauses go together ---

    def _check_combination(self) -> None:
        if self.minimize is None and self.learn is None and self.by is None and self.every is None:
            self._check_still()
            return
        learning: tuple[tuple[str, syntax.Node | None], ...] = (("minimize", self.minimize), ("every", self.every))
        for word, clause in learning:
            if clause is None:
                self._missing(word)
        task = self._is_task()
        if not task and self.learn is None and self.minimize is not None:
            self._missing("learn")
        if task and self.learn is not None:
            self.error(
                "N0222",
                "`minimize task` has no context of its own",
                self.learn.span,
                "not used",
                [Label(self.minimize.span, "its error is what backpropagation brings")] if self.minimize else None,
                "leave out `learn`, or minimize an objective of the key and value",
            )
        on_steps = self.every is not None and self.every.unit == "step"
        if on_steps and self.learn is not None and not task:
            message = "a memory that moves between steps learns from the loss of the level that trains it"
            self._senseless(self.learn, message, "write `minimize task`, or let it move by tokens")
        if self.by is None and not (task and on_steps):
            self._missing("by")
        kind = self.info.structure.kind
        if kind not in LEARNERS and not on_steps and self.every is not None:
            self._senseless(self.every, f"`{kind}` cannot learn inside the sequence", "linear, mlp and vector can")
        elif kind not in LEARNERS and self.learn is not None:
            self._senseless(self.learn, f"`{kind}` has no context of keys and values", "linear, mlp and vector have")
        if on_steps and self.reads is not None and self.reads.mode == "running":
            self._senseless(self.reads, "a memory that moves between steps has no running state in a sequence")
        if task and not on_steps and self.every is not None:
            self._check_end_to_end()
        if on_steps and self.reset is not None and self.reset.kind == "every":
            self._senseless(self.reset, "a memory that moves between steps is not reset by tokens")

    def _check_end_to_end(self) -> None:
        """The model's own loss is known when the chunk is done, and a chunk belongs to one sequence."""
        if self.reads is not None and self.reads.mode == "running":
            message = "what moves by the model's own loss has no state after the current token: the loss comes later"
            self._senseless(self.reads, message, "leave it out: reads show the last boundary")
        if self.reset is not None and self.reset.kind == "never":
            message = "what moves by the model's own loss cannot go on into another sequence"
            self._senseless(self.reset, message, "write `reset per sequence` or `reset every n tokens`")

    def _check_still(self) -> None:
        """Without learning, only an initial state makes sense, and resets where that is made anew."""
        made = self.init is not None and self.init.kind == "expression"
        if self.reads is not None:
            self._senseless(self.reads, "a memory that does not learn has one state")
        if self.reset is not None and not made:
            self._senseless(self.reset, "a memory that does not learn is never reset")

    def _missing(self, word: str) -> None:
        helps = {
            "minimize": "say what it minimizes: `minimize l2`",
            "every": "say how often it moves: `every 16 tokens`",
            "learn": "say what it learns: `learn key -> value`, or `minimize task` for what backpropagation brings",
            "by": "say by which rule: `by gd(lr = 0.1)`",
        }
        self.body.failed = True
        name = self.info.node.names[0]
        self.findings.error(
            "N0221",
            f"memory `{name.id}` has no `{word}`",
            name.span,
            "this memory learns",
            help=helps[word],
            detail=word,
        )

    # --- attention ---

    def _attention(self) -> Memory:
        info = self.info
        for clause in (self.minimize, self.by, self.every, self.init):
            if clause is not None:
                self._senseless(clause, "attention keeps its keys and values and learns nothing else")
        if self.reads is not None and self.reads.mode != "running":
            self._senseless(self.reads, "attention sees the current token")
        if self.learn is None:
            self.error("N0221", f"attention `{info.path}` has no `learn`", info.span, help="`learn k(x) -> v(x)`")
            raise Skip
        if self.learn.value is None:
            self._senseless(self.learn, "attention keeps a key and a value for each token", "`learn k(x) -> v(x)`")
            raise Skip
        if self.learn.window is not None:
            self._senseless(
                self.learn, "the window of attention belongs to its structure", "`attention(heads, window = n)`"
            )
        context = self._context(self.learn)
        if self.reset is not None and self.reset.kind != "sequence":
            message = "attention keeps the tokens of one sequence; within it, it forgets by its window"
            self._senseless(self.reset, message, "`attention(heads, window = n)`")
        assert context.key is not None
        info.kept = (context.key.type, context.value.type)
        if self.body.failed:
            raise Skip
        return Memory(info.path, info.structure, info.span, context, reads="running")

    def _check_kept(self, expr: Expr, what: str) -> None:
        heads = self.info.structure.kv_heads or self.info.structure.heads
        shape = expr.type.shape
        if len(shape) != 1:
            raise self.findings.error(
                "N0214", f"the {what} of attention is a vector", expr.span, f"this is {shape_text(expr.type)}"
            )
        if divides(heads, shape[0]) is False:
            raise self.findings.error(
                "N0215",
                f"{heads} heads do not divide {shape[0]}",
                expr.span,
                f"this is {shape_text(expr.type)}",
                secondary=[Label(self.info.span, f"`{self.info.path}` is declared here")],
            )

    # --- learn ---

    def _context(self, node: syntax.Learn) -> Context:
        window = None if node.window is None else self._positive(node.window, "the window")
        first = self._attempt(self.expressions.build, node.key)
        second = None if node.value is None else self._attempt(self.expressions.build, node.value)
        if first is None or (node.value is not None and second is None):
            raise Skip
        key, value = (None, first) if second is None else (first, second)
        if self.info.structure.kind == "attention":
            self._check_kept(value, "value")
            if key is not None:
                self._check_kept(key, "key")
            return Context(key, value, window, node.span)
        if self.info.structure.kind in LEARNERS:
            self._check_key(node, key)
            self._check_value(node, key, value)
        return Context(key, value, window, node.span)

    def _check_key(self, node: syntax.Learn, key: Expr | None) -> None:
        structure = self.info.structure
        if structure.kind == "vector" and key is not None:
            self._senseless(node, "a vector has no key", "`learn value`")
            raise Skip
        if key is None:
            if structure.kind != "vector":
                self._senseless(node, f"{_described(structure)} needs a key and a value", "`learn key -> value`")
                raise Skip
            return
        expected = input_size(structure)
        if key.type.vocab is not None or not same_shape(key.type.shape, (expected,)):
            raise self._mismatch("key", key, f"[{expected}]", "reads")

    def _check_value(self, node: syntax.Learn, key: Expr | None, value: Expr) -> None:
        structure = self.info.structure
        expected = state_shape(structure) if key is None else (output_size(structure),)
        assert expected is not None
        if value.type.vocab is not None or not same_shape(value.type.shape, expected):
            verb = "is" if key is None else "returns"
            raise self._mismatch("value", value, f"[{', '.join(map(str, expected))}]", verb)

    def _mismatch(self, what: str, expr: Expr, expected: str, verb: str) -> Skip:
        info = self.info
        return self.findings.error(
            "N0214",
            f"the {what} that `{info.path}` learns is {shape_text(expr.type)}, not {expected}",
            expr.span,
            f"this is {shape_text(expr.type)}",
            secondary=[Label(info.span, f"`{info.path}` {verb} {expected}: declared here")],
            help=number_as_vector(expr, expected),
        )

    # --- minimize, by ---

    def _objective(self, node: syntax.Minimize, context: Context | None) -> Objective:
        return build_objective(self.body, self.info, node, context)

    def _rule(self, node: syntax.By) -> RuleUse:
        module = self.body.module
        use = use_rule(self.body.checker, module, node, self.expressions)
        require_fit(self.findings, use, hosts_of(self.info.structure), node.span)
        return use

    # --- every, reset ---

    def _positive(self, node: syntax.Expression, what: str) -> Size:
        value = self.info.evaluator.integer(node, what)
        if at_least(value, 1) is False:
            raise self.findings.error("N0211", f"{what} is {value}", node.span, "at least 1 is needed")
        return value

    def _frequency(self, node: syntax.Every) -> Frequency:
        if node.unit == "update":
            raise self.findings.error(
                "N0222",
                "updates are counted in rules",
                node.span,
                "a memory of a system",
                help="write `tokens` or `steps`",
            )
        period = period_of(self.info.evaluator, node.period)
        if node.slowest is not None:
            return adaptive(self.info.evaluator, node, period, task=self._is_task())
        summed = node.summed or node.unit == "step" or self._is_task()
        return Frequency(period, node.unit, summed, node.span)  # type: ignore[arg-type]

    def _reset(self, node: syntax.Reset, frequency: Frequency | None) -> Reset:
        if node.kind != "every" or node.period is None:
            return Reset(node.kind)  # type: ignore[arg-type]
        distance = period_of(self.info.evaluator, node.period)
        if distance == float("inf"):
            return Reset("never")
        if frequency is not None and frequency.unit == "token" and frequency.period != float("inf"):
            whole = divides(frequency.period, distance)
            if whole is False:
                raise self._not_multiple(node, distance, frequency.period, frequency.span)
            if frequency.slowest is not None and divides(frequency.slowest, distance) is False:
                raise self._not_multiple(node, distance, frequency.slowest, frequency.span)
        return Reset("every", distance)
