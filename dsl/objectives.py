"""Objectives: named ones become expressions in self, key and value; expressions of the user are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nsam.dsl import syntax
from nsam.dsl.checked import Apply, Constant, Context, Expr, Objective, Read, Ref, ValueType, walk
from nsam.dsl.constants import Evaluator, is_symbolic, show
from nsam.dsl.diagnostics import Label
from nsam.dsl.expressions import Expressions
from nsam.dsl.findings import Skip, did_you_mean
from nsam.dsl.functions import FUNCTIONS, names_in
from nsam.dsl.objective_names import NAMED, check_named, in_expression
from nsam.dsl.spans import Span
from nsam.dsl.structures import has_transpose, state_shape
from nsam.dsl.types import SCALAR, shape_text

if TYPE_CHECKING:
    from nsam.dsl.bodies import Body
    from nsam.dsl.memories import Info


class ObjectiveExpressions(Expressions):
    """Expressions of an objective: `self(…)`, `key`, `value` and parameters.

    `read` gives the type of `self(argument)`; `state` that of a bare `self`, for memories without a key.
    """

    place = "objective"

    def __init__(self, evaluator: Evaluator, key: ValueType | None, value: ValueType, info: Info | None) -> None:
        super().__init__(evaluator.findings, evaluator)
        self.key = key
        self.value = value
        self.info = info

    def callables(self) -> list[str]:
        """Return the names that may be called here."""
        return ["self", *names_in("objective")]

    def name(self, node: syntax.Name) -> Expr:
        """Return what a bare name means here."""
        if node.id == "value":
            return Ref(self.value, node.span, "value")
        if node.id == "key":
            if self.key is None:
                raise self.findings.error(
                    "N0228", "this memory learns without keys", node.span, "no key here", help="`learn key -> value`"
                )
            return Ref(self.key, node.span, "key")
        if node.id == "self" and self.key is None:
            return self.state(node.span)
        constant = self.constant(node)
        if constant is not None:
            return constant
        if node.id == "self":
            raise self.findings.error(
                "N0228",
                "the state has no name in this objective: a memory that learns keys is read, `self(key)`",
                node.span,
                "`self` without a key",
                help="write `self(key)`; a decay of the state belongs to the rule: `by gd(lr = 0.1, retain = 0.99)`",
            )
        hint = in_expression(node.id) or did_you_mean(node.id, ["key", "value", "self"])
        raise self._foreign(node.id, node.span, hint)

    def _foreign(self, name: str, span: Span, hint: str | None) -> Skip:
        return self.findings.error(
            "N0228",
            f"an objective knows `self`, `key`, `value` and parameters, not `{name}`",
            span,
            "not known here",
            help=hint or "put it into the context: `learn key -> value`",
        )

    def special(self, node: syntax.Call) -> Expr | None:
        """Return what a call means here, or None for a function."""
        if node.function == "self":
            return self._read(node)
        if node.function not in FUNCTIONS:
            hint = in_expression(node.function) or did_you_mean(node.function, self.callables())
            raise self._foreign(node.function, node.function_span, hint)
        return None

    def _read(self, node: syntax.Call) -> Expr:
        (value,) = self.arguments(node, ["x"], ["x"], "`self`")
        assert value is not None
        argument = self.build(value)
        if self.key is None and isinstance(argument, Constant):
            return self.state(node.span)
        return self.read(argument, node)

    def read(self, argument: Expr, node: syntax.Call) -> Expr:
        """Return `self(argument)`."""
        from nsam.dsl.reads import read_memory

        assert self.info is not None
        return read_memory(self, self.info, "self", argument, node, "token")

    def state(self, span: Span) -> Expr:
        """Return the state itself, for memories without keys."""
        assert self.info is not None
        shape = state_shape(self.info.structure)
        assert shape is not None
        return Read(ValueType(shape, "token"), span, "self", Constant(SCALAR, span, 1))


def build_objective(body: Body, info: Info, node: syntax.Minimize, context: Context | None) -> Objective:
    """Return the objective of a memory of a system."""
    objective = node.objective
    if isinstance(objective, syntax.Name) and objective.id == "task":
        return Objective("task", None, node.span)
    if context is None:
        raise Skip
    key = None if context.key is None else context.key.type
    builder = ObjectiveExpressions(info.evaluator, key, context.value.type, info)
    if "oja" in _name_of(objective) and (key is None or not has_transpose(info.structure)):
        raise body.findings.error(
            "N0222",
            "Oja's objective is for one matrix that learns keys and values",
            node.span,
            "needs `self.T`",
            secondary=[Label(info.node.structure.span, "this structure")],
        )
    return objective_of(builder, node)


def objective_of(builder: ObjectiveExpressions, node: syntax.Minimize) -> Objective:
    """Return the objective: a named one lowered to an expression, or the user's expression, checked."""
    objective = node.objective
    name = _name_of(objective)
    if name:
        return _named(builder, name, objective, node)
    if not isinstance(objective, syntax.Name) or builder.constant(objective) is None:
        check_named(builder.findings, objective)
    expression = builder.build(objective)
    _check_user_expression(builder, expression)
    return Objective("expression", expression, node.span)


def _name_of(objective: syntax.Expression) -> str:
    """Return the name of a named objective, or "" for an expression. `dot(a, b)` is the function."""
    if isinstance(objective, syntax.Name) and objective.id in NAMED:
        return objective.id
    if isinstance(objective, syntax.Call) and NAMED.get(objective.function):
        return objective.function
    return ""


def _check_user_expression(builder: ObjectiveExpressions, expression: Expr) -> None:
    if not any(isinstance(part, Read) and part.memory == "self" for part in walk(expression)):
        raise builder.findings.error(
            "N0227",
            "this objective does not depend on the memory",
            expression.span,
            "no `self` in it",
            help="an objective judges what the memory returns: `self(key)`",
        )
    if expression.type.shape != ():
        raise builder.findings.error(
            "N0229",
            "an objective is one number",
            expression.span,
            f"this is {shape_text(expression.type)}",
            help="add it up: `sum(…)`",
        )


def _named(builder: ObjectiveExpressions, name: str, objective: syntax.Expression, node: syntax.Minimize) -> Objective:
    names = NAMED[name]
    option: Any = None
    if isinstance(objective, syntax.Call):
        (value,) = builder.arguments(objective, names, names, f"`{name}`")
        assert value is not None
        option = _option(builder, name, value)
    elif names:
        raise builder.findings.error(
            "N0203", f"`{name}` takes 1 argument: `{names[0]}` is missing", objective.span, help=f"`{name}({names[0]})`"
        )
    if name == "pseudo_huber" and option == float("inf"):
        name, option = "l2", None
    return Objective(name, _lowered(builder, name, option, node.span), node.span)


def _option(builder: ObjectiveExpressions, name: str, node: syntax.Expression) -> Any:
    value = builder.evaluator.number(node)
    if is_symbolic(value):
        return value
    least_allowed = value >= 1 if name == "lp" else value > 0
    if not least_allowed or (name == "lp" and value == float("inf")):
        wanted = "at least 1 and finite" if name == "lp" else "above 0"
        raise builder.findings.error("N0211", f"`{name}` with {show(value)}", node.span, f"must be {wanted}")
    return value


def _lowered(builder: ObjectiveExpressions, name: str, option: Any, span: Span) -> Expr:
    """Return a named objective as an expression (math: dot −⟨ŷ, v⟩, l2 ½‖ŷ − v‖², …)."""
    value = Ref(builder.value, span, "value")
    call = syntax.Call(span, "self", span, ())
    if builder.key is None:
        read = builder.state(span)
    else:
        read = builder.read(Ref(builder.key, span, "key"), call)
    if name in ("dot", "oja"):
        matched = builder.apply("neg", [builder.apply("dot", [read, value], span)], span)
        if name == "dot":
            return matched
        back = builder.read(value, syntax.Call(span, "self", span, (), transposed=True))
        return builder.apply("add", [matched, _half_square(builder, back, span)], span)
    error = builder.apply("sub", [read, value], span)
    if name == "l2":
        return _half_square(builder, error, span)
    option_name = "p" if name == "lp" else "delta"
    return Apply(ValueType((), error.type.per), span, name, (error,), ((option_name, option),))


def _half_square(builder: ObjectiveExpressions, error: Expr, span: Span) -> Expr:
    two, half = Constant(SCALAR, span, 2), Constant(SCALAR, span, 0.5)
    square = builder.apply("pow", [error, two], span)
    return builder.apply("mul", [half, builder.apply("sum", [square], span)], span)
