"""`by rule(arguments)`: which rule, and what each of its parameters is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nsam.dsl import syntax
from nsam.dsl.checked import Apply, Constant, Expr, Ref, Rule, RuleMemory, RuleUse
from nsam.dsl.constants import Evaluator, Unknown, Value, apply_operator, is_symbolic, symbolic_operator
from nsam.dsl.expressions import Expressions, match_arguments
from nsam.dsl.findings import Findings, Skip, attempt_all, did_you_mean, suggest
from nsam.dsl.imports import load_standard, standard_modules
from nsam.dsl.names import Declared, Module
from nsam.dsl.sizes import Poly
from nsam.dsl.spans import Span
from nsam.dsl.types import SCALAR

if TYPE_CHECKING:
    from nsam.dsl.instantiate import Checker


class ConstantExpressions(Expressions):
    """Arguments that must be known numbers: rules around the model, requests from outside."""

    def build(self, node: syntax.Expression) -> Expr:
        """Return the number that `node` is."""
        return Constant(SCALAR, node.span, self.evaluator.number(node))


class _Defaults(Expressions):
    """Default values of parameters, which may mention parameters before them."""

    place = "rule"

    def __init__(self, findings: Findings, given: dict[str, Expr]) -> None:
        super().__init__(findings, Evaluator(findings, {}))
        self.given = given

    def name(self, node: syntax.Name) -> Expr:
        """Return what a bare name means here."""
        if node.id in self.given:
            return self.given[node.id]
        raise self.findings.error(
            "N0201",
            f"unknown name `{node.id}`",
            node.span,
            "no parameter before this one",
            help=did_you_mean(node.id, self.given),
        )

    def special(self, node: syntax.Call) -> Expr | None:
        """Return what a call means here, or None for a function."""
        return None


def use_rule(checker: Checker, module: Module, node: syntax.By, expressions: Expressions) -> RuleUse:
    """Return the rule used by `node`, with an expression for each of its parameters."""
    declared = find_rule(checker.findings, module, node)
    parameters = declared.node.parameters
    names = [parameter.name for parameter in parameters]
    required = [parameter.name for parameter in parameters if parameter.default is None]
    place = declared.node.name.span
    given = match_arguments(checker.findings, node, names, required, f"rule `{node.rule}`", place)
    built = attempt_all([lambda v=v: expressions.build(v) for v in given.values()])  # type: ignore[misc]
    found = dict(zip(given, built, strict=True))
    return bind_rule(checker, declared, found, expressions, node.span)


def bind_rule(
    checker: Checker,
    declared: Declared[syntax.RuleDeclaration],
    given: dict[str, Expr],
    expressions: Expressions,
    span: Span,
) -> RuleUse:
    """Return the use of a rule with these arguments; defaults fill the rest."""
    found: dict[str, Expr] = {}
    defaults = _Defaults(checker.findings, found)
    for parameter in declared.node.parameters:
        if parameter.name in given:
            found[parameter.name] = given[parameter.name]
        elif parameter.default is not None:
            found[parameter.name] = defaults.build(parameter.default)
    statics = {name: static_value(value, expressions) for name, value in found.items()}
    if span == declared.node.name.span:  # checked on its own, used nowhere
        return RuleUse(checker.rule(declared, statics), tuple(found.items()), span)
    with checker.findings.inside(span, f"rule `{declared.node.name.id}` as it is used"):
        rule = checker.rule(declared, statics)
    return RuleUse(rule, tuple(found.items()), span)


def find_rule(findings: Findings, module: Module, node: syntax.By) -> Declared[syntax.RuleDeclaration]:
    """Return the rule that `by` names; N0201 with a suggestion when there is none."""
    if node.rule in module.rules:
        return module.rules[node.rule]
    if node.rule in module.refused:
        raise Skip
    known = module.place_of(node.rule)
    if known is not None:
        raise findings.error("N0206", f"`{node.rule}` is a {known[0]}, not a rule", node.rule_span, "a rule is needed")
    help_text = did_you_mean(node.rule, module.rules)
    homes = {rule: home for home in standard_modules() for rule in _standard_rules(home)}
    near = node.rule if node.rule in homes else None if help_text else suggest(node.rule, homes)
    if near is not None:
        start = "" if near == node.rule else f"did you mean `{near}`? Then "
        help_text = f"{start}bring it in: `use {homes[near]} ({near})`"
    raise findings.error("N0201", f"unknown rule `{node.rule}`", node.rule_span, "no rule of this name", help=help_text)


def _standard_rules(module: str) -> list[str]:
    """Return the names of the rules that a module of the standard library declares."""
    tree = load_standard(module).root.tree
    return [node.name.id for node in tree.declarations if isinstance(node, syntax.RuleDeclaration)]


def static_value(expr: Expr, scope: Expressions) -> Value | None:
    """Return an expression's compile-time value, or None when it varies. `scope` knows the values of names."""
    match expr:
        case Constant():
            return expr.value
        case Ref():
            return scope.static_name(expr.name)
        case Apply() if expr.function in ("add", "sub", "mul", "div", "pow"):
            left, right = (static_value(argument, scope) for argument in expr.arguments)
            return None if left is None or right is None else _computed(expr.function, left, right)
        case Apply():
            values = [static_value(argument, scope) for argument in expr.arguments]
            return None if None in values or not values else Unknown("float")
    return None


def _computed(function: str, left: Value, right: Value) -> Value | None:
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        return Unknown("float")
    if isinstance(left, Poly) or isinstance(right, Poly):
        return symbolic_operator(function, left, right)
    try:
        return apply_operator(function, left, right)  # type: ignore[arg-type]
    except ArithmeticError:
        return Unknown("float")


def periods(rule: Rule) -> Iterator[tuple[int, Span]]:
    """Yield the periods of the memories in a rule, in updates of its host, those of rules within included."""
    waiting = [(rule, 1)]
    while waiting:
        current, factor = waiting.pop()
        for statement in current.statements:
            if isinstance(statement, RuleMemory) and not is_symbolic(statement.period):
                yield factor * statement.period, statement.span
                waiting.append((statement.rule.rule, factor * statement.period))
