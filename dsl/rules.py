"""Rules: statements in order, with states and memories of their own, over one matrix `self`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nsam.dsl import syntax
from nsam.dsl.checked import (
    Apply,
    Expr,
    Read,
    Ref,
    Rule,
    RuleLet,
    RuleMemory,
    RuleState,
    RuleStatement,
    RuleUpdate,
    State,
    ValueType,
    walk,
)
from nsam.dsl.constants import Evaluator, Value
from nsam.dsl.diagnostics import Label
from nsam.dsl.expressions import Expressions
from nsam.dsl.fills import Places, is_open
from nsam.dsl.findings import Skip, did_you_mean
from nsam.dsl.functions import RULE_CONSTANTS, names_in
from nsam.dsl.names import Declared
from nsam.dsl.rule_memories import Shaped, build_rule_memory
from nsam.dsl.rule_uses import static_value
from nsam.dsl.sizes import Size
from nsam.dsl.spans import Span
from nsam.dsl.types import ANY, COLUMNS, ROWS, SCALAR, same_size, shape_text

if TYPE_CHECKING:
    from nsam.dsl.instantiate import Checker

MATRIX = ValueType((ROWS, COLUMNS), "token")
GIVEN: dict[str, ValueType] = {
    "self": MATRIX,
    "grad": MATRIX,
    "key": ValueType((COLUMNS,), "token"),
    "err": ValueType((ROWS,), "token"),
}
"""What every rule knows, with shapes: one weight matrix, its gradient, its input, the error of its output."""


class RuleEvaluator(Evaluator):
    """Compile-time values in a rule: parameters with known arguments, and the sizes of `self`."""

    def _call(self, node: syntax.Call) -> Value:
        if node.function in ("rows", "cols") and len(node.arguments) == 1:
            argument = node.arguments[0].value
            if isinstance(argument, syntax.Name) and argument.id == "self":
                return ROWS if node.function == "rows" else COLUMNS
        return super()._call(node)


class RuleExpressions(Expressions):
    """Expressions of a rule. `own` is the memory whose clauses are read; there, `self` is that memory."""

    place = "rule"

    def __init__(self, maker: RuleMaker, own: Shaped | None = None) -> None:
        super().__init__(maker.findings, maker.evaluator)
        self.maker = maker
        self.own = own

    def callables(self) -> list[str]:
        """Return the names that may be called here."""
        return [*self.maker.memories, *names_in("rule")]

    def static_name(self, name: str) -> Value | None:
        """Return the compile-time value of a parameter or let, or None."""
        return self.maker.statics.get(name)

    def name(self, node: syntax.Name) -> Expr:
        """Return what a bare name means here."""
        maker = self.maker
        if node.id in GIVEN:
            if node.id == "self" and self.own is not None:
                return self._state(self.own, node, "self")
            if node.id != "self":
                maker.needs.add(node.id)
            return Ref(GIVEN[node.id], node.span, node.id)
        if node.id in maker.open:
            return replace(maker.open[node.id], span=node.span)
        if node.id in maker.types:
            return Ref(maker.types[node.id], node.span, node.id)
        if node.id in maker.memories:
            return self._state(maker.memories[node.id], node, node.id)
        if node.id in RULE_CONSTANTS:
            return Apply(ValueType((ANY, ANY), "constant"), node.span, node.id, ())
        known = [*GIVEN, *maker.types, *maker.memories, *RULE_CONSTANTS]
        later = node.id in maker.later
        raise self.findings.error(
            "N0201",
            f"unknown name `{node.id}`",
            node.span,
            "declared below: statements of a rule run in order" if later else "nothing of this name in the rule",
            help=None if later else did_you_mean(node.id, known),
        )

    def _state(self, memory: Shaped, node: syntax.Name, name: str) -> Expr:
        if memory.state_shape() is None:
            raise self.findings.error(
                "N0206",
                f"`{name}` has several matrices, not one state",
                node.span,
                "a bare name here",
                secondary=[Label(memory.span, "declared here")],
                help=f"read it: `{name}(x)`",
            )
        return memory.state(node.span, name)

    def special(self, node: syntax.Call) -> Expr | None:
        """Return what a call means here, or None for a function."""
        memory = self.own if node.function == "self" else self.maker.memories.get(node.function)
        if memory is None:
            if node.function in self.maker.forgotten:
                raise Skip  # its declaration was reported
            if node.function == "self":
                raise self.findings.error(
                    "N0206", "`self` is one matrix here, not a memory", node.function_span, "called", help="`self @ x`"
                )
            return None
        (value,) = self.arguments(node, ["x"], ["x"], f"memory `{node.function}`")
        assert value is not None
        return memory.read(self, self.build(value), node, "self" if node.function == "self" else memory.name)

    def apply(self, function: str, arguments: Any, span: Span, options: tuple[tuple[str, Any], ...] = ()) -> Expr:
        """Return the function applied; see `Expressions.apply`."""
        if function == "unbias" and static_value(arguments[1], self) is None:
            raise self.findings.error(
                "N0212", "`unbias` needs a constant", arguments[1].span, "this varies from update to update"
            )
        return super().apply(function, arguments, span, options)


_RENAME = "give it another name"


class RuleMaker:
    """Builds one rule for one use: `statics` are the arguments' compile-time values, None for those that vary."""

    def __init__(
        self, checker: Checker, declared: Declared[syntax.RuleDeclaration], statics: Mapping[str, Value | None]
    ) -> None:
        self.checker = checker
        self.findings = checker.findings
        self.node = declared.node
        self.module = declared.module
        self.statics = statics
        known = {name: value for name, value in statics.items() if value is not None}
        self.evaluator = RuleEvaluator(self.findings, known, self._why_not_constant)
        self.types: dict[str, ValueType] = {parameter.name: SCALAR for parameter in self.node.parameters}
        self.memories: dict[str, Shaped] = {}
        self.open: dict[str, Expr] = {}
        """Lets whose shape depends on where they are used, as that of `identity` does: written out at each use."""
        self.places: dict[str, Span] = {}
        self.states: set[str] = set()
        self.needs: set[str] = set()
        self.later = {name.id for statement in self.node.body for name in _declares(statement)}
        self.forgotten: set[str] = set()
        self.failed = False

    def rule(self) -> Rule:
        """Return the rule; raise Skip when something in it was reported."""
        self._check_parameters()
        statements: list[RuleStatement] = []
        for statement in self.node.body:
            try:
                built = self._statement(statement)
                if built is not None:
                    statements.append(built)
            except Skip:
                self.failed = True
                self._forget(statement)
        if not any(isinstance(node, syntax.Update) and node.target.id == "self" for node in self.node.body):
            self.findings.error(
                "N0248",
                f"rule `{self.node.name.id}` never updates `self`",
                self.node.name.span,
                "the memory stays as it is",
                help="`self <- self - lr * grad`",
            )
            self.failed = True
        if self.failed:
            raise Skip
        names = tuple(parameter.name for parameter in self.node.parameters)
        return Rule(self.node.name.id, names, tuple(statements), frozenset(self.needs), self.node.span)

    def _check_parameters(self) -> None:
        seen: set[str] = set()
        for parameter in self.node.parameters:
            if parameter.name in seen or parameter.name in GIVEN:
                what = "is declared twice" if parameter.name in seen else "means something else in rules"
                self.findings.error(
                    "N0202", f"`{parameter.name}` {what}", parameter.span, "this parameter", help=_RENAME
                )
                self.failed = True
            seen.add(parameter.name)

    def _forget(self, statement: syntax.Statement) -> None:
        """Let what a wrong statement declares stand for anything, so that its uses are not reported too."""
        for name in _declares(statement):
            self.types.setdefault(name.id, ValueType((ANY, ANY), "token"))
            if isinstance(statement, syntax.StateDeclaration):
                self.states.add(name.id)
            elif isinstance(statement, syntax.MemoryDeclaration):
                self.forgotten.add(name.id)

    def settled(self, expr: Expr, wanted: tuple[Size, ...] = (), own: Shaped | None = None) -> Expr:
        """Return `expr` with the shapes that its place asks of its fills; `own` is the memory whose clause it is in."""

        def reads(read: Read) -> Size:
            memory = own if read.memory == "self" else self.memories[read.memory]
            assert memory is not None
            return memory.sizes(read.transposed)[0]

        return Places(self.findings, reads).settled(expr, wanted)

    def _statement(self, node: syntax.Statement) -> RuleStatement | None:
        for name in _declares(node):
            self._declare(name)
        match node:
            case syntax.StateDeclaration():
                value = RuleExpressions(self).build(node.initial)
                self._check_start(node, value)
                self._check_shape(node.name.id, value, scalar=True)
                self.types[node.name.id] = MATRIX
                self.states.add(node.name.id)
                return RuleState(node.name.id, self.settled(value, MATRIX.shape), node.span)
            case syntax.Let():
                value = RuleExpressions(self).build(node.value)
                self.types[node.name.id] = value.type
                self._remember(node.name.id, value)
                if is_open(value):
                    self.open[node.name.id] = value
                    return None
                return RuleLet(node.name.id, self.settled(value), node.span)
            case syntax.Update():
                return self._update(node)
            case syntax.MemoryDeclaration():
                return self._memory(node)
        raise RuntimeError(f"internal error: {type(node).__name__} in a rule; please report this")

    def _remember(self, name: str, value: Expr) -> None:
        self.statics = {**self.statics, name: static_value(value, RuleExpressions(self))}

    def _declare(self, name: syntax.Identifier) -> None:
        earlier = self.places.get(name.id)
        parameters = {parameter.name: parameter.span for parameter in self.node.parameters}
        earlier = earlier or parameters.get(name.id)
        if earlier is not None or name.id in GIVEN:
            label = [] if earlier is None else [Label(earlier, "declared first here")]
            what = "means something else in rules" if earlier is None else "is declared twice"
            raise self.findings.error(
                "N0202", f"`{name.id}` {what}", name.span, "declared here", secondary=label, help=_RENAME
            )
        self.places[name.id] = name.span

    def _update(self, node: syntax.Update) -> RuleUpdate:
        target = node.target
        if target.id != "self" and target.id not in self.states:
            known = target.id in self.types or target.id in self.memories or target.id in GIVEN
            raise self.findings.error(
                "N0206" if known else "N0201",
                f"`{target.id}` is not `self` or a state of this rule",
                target.span,
                "cannot be updated",
                help=f"declare it: `state {target.id} = zeros`" if not known else None,
            )
        value = RuleExpressions(self).build(node.value)
        self._check_shape(target.id, value)
        return RuleUpdate(target.id, self.settled(value, MATRIX.shape), node.span)

    def _check_start(self, node: syntax.StateDeclaration, value: Expr) -> None:
        """A state starts before there is a gradient."""
        known = {"self", *(parameter.name for parameter in self.node.parameters)}
        for part in walk(value):
            if isinstance(part, Read | State) or (isinstance(part, Ref) and part.name not in known):
                raise self.findings.error(
                    "N0231",
                    f"`{node.name.id}` starts before there is a gradient",
                    part.span,
                    "not known then",
                    help="a state starts from numbers, parameters, `zeros`, `ones` or `identity`",
                )

    def _check_shape(self, name: str, value: Expr, scalar: bool = False) -> None:
        shape = value.type.shape
        if scalar and shape == ():
            return
        fits = len(shape) == 2 and all(a == ANY or same_size(a, b) for a, b in zip(shape, (ROWS, COLUMNS), strict=True))
        if not fits:
            raise self.findings.error(
                "N0214",
                f"`{name}` is a matrix like `self`, this is {shape_text(value.type)}",
                value.span,
                f"this is {shape_text(value.type)}",
                secondary=[Label(self.places[name], "declared here")] if name in self.places else [],
            )

    def _memory(self, node: syntax.MemoryDeclaration) -> RuleMemory:
        if len(node.names) != 1 or node.index is not None:
            raise self.findings.error(
                "N0236", "a rule declares its memories one by one", node.span, "several memories here"
            )
        return build_rule_memory(self, node)

    def _why_not_constant(self, name: str) -> str | None:
        if name in self.statics:
            return "its argument varies with the token"
        return "not a constant" if name in (*GIVEN, *self.types, *self.memories) else None


def _declares(node: syntax.Statement) -> tuple[syntax.Identifier, ...]:
    match node:
        case syntax.StateDeclaration() | syntax.Let():
            return (node.name,)
        case syntax.MemoryDeclaration():
            return node.names
    return ()
