"""Expressions: from syntax to checked expressions, with their types. Names and calls are left to subclasses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nsam.dsl import syntax
from nsam.dsl.checked import Apply, Constant, Expr, ValueType
from nsam.dsl.constants import (
    OPERATORS,
    Evaluator,
    Unknown,
    Value,
    apply_operator,
    arity_text,
    is_number,
    kind_of,
    symbolic_operator,
)
from nsam.dsl.diagnostics import Label
from nsam.dsl.findings import Findings, attempt_all, did_you_mean
from nsam.dsl.functions import FUNCTIONS, TAKES_TOKENS, Function, Place, names_in
from nsam.dsl.sizes import Poly, at_least
from nsam.dsl.spans import Span
from nsam.dsl.types import SCALAR, ShapeProblem, join, shape_text

_FOLDED = frozenset({"add", "sub", "mul", "div", "pow"})


class Expressions:
    """Builds checked expressions for one place; `evaluator` knows the compile-time names."""

    place: Place = "system"

    def __init__(self, findings: Findings, evaluator: Evaluator) -> None:
        self.findings = findings
        self.evaluator = evaluator

    # --- what a place decides ---

    def name(self, node: syntax.Name) -> Expr:
        """Return what a bare name means here."""
        raise NotImplementedError

    def special(self, node: syntax.Call) -> Expr | None:
        """Return what a call means here when it is no function; None leaves it to the table of functions."""
        raise NotImplementedError

    def callables(self) -> list[str]:
        """Return the names that may be called here, for suggestions."""
        return names_in(self.place)

    def hint(self, name: str, known: Sequence[str]) -> str | None:
        """Return what to do about a name that means nothing here."""
        return did_you_mean(name, known)

    def static_name(self, name: str) -> Value | None:
        """Return the compile-time value of a bound name, or None when it varies."""
        return None

    # --- the walk ---

    def build(self, node: syntax.Expression) -> Expr:
        """Return the checked expression; findings are reported and `Skip` raised when it has no meaning."""
        match node:
            case syntax.Number():
                return Constant(SCALAR, node.span, node.value)
            case syntax.Name():
                return self.name(node)
            case syntax.Unary():
                return self._negate(node)
            case syntax.Binary():
                arguments = attempt_all([lambda: self.build(node.left), lambda: self.build(node.right)])
                return self.apply(OPERATORS[node.operator], arguments, node.span)
            case syntax.Call():
                special = self.special(node)
                return self._function(node) if special is None else special
            case syntax.Text() | syntax.Boolean() | syntax.ListOf():
                kind = {"Text": "a string", "Boolean": "true or false", "ListOf": "a list"}[type(node).__name__]
                raise self.findings.error("N0210", f"expected a value, found {kind}", node.span, "not a number")

    def constant(self, node: syntax.Name) -> Expr | None:
        """Return the parameter `node` as a constant, or None when it is no parameter."""
        if node.id not in self.evaluator.names:
            return None
        value = self.evaluator.names[node.id]
        if not is_number(value):
            raise self.findings.error(
                "N0210", f"`{node.id}` is not a number", node.span, f"this parameter is {kind_of(value)}"
            )
        return Constant(SCALAR, node.span, value)  # type: ignore[arg-type]

    def apply(
        self,
        function: str,
        arguments: Sequence[Expr],
        span: Span,
        options: tuple[tuple[str, Any], ...] = (),
    ) -> Expr:
        """Return the function applied, its shape checked (N0214 and others name the arguments at fault)."""
        entry = FUNCTIONS[function]
        if self.place not in entry.places:
            raise self._not_here(entry, span)
        if function not in TAKES_TOKENS:
            self._refuse_tokens(arguments)
        folded = self._fold(function, arguments, span)
        if folded is not None:
            return folded
        types = [argument.type for argument in arguments]
        try:
            shape = entry.shape(types, dict(options))
        except ShapeProblem as problem:
            raise self.shape_error(problem, arguments, span) from None
        vocab = types[0].vocab if function == "next" else dict(options)["n"] if function == "position" else None
        type_ = ValueType(shape, join(t.per for t in types), vocab)
        return Apply(type_, span, function, tuple(arguments), options)

    def shape_error(self, problem: ShapeProblem, arguments: Sequence[Expr], span: Span) -> Exception:
        """Report shapes that do not fit: the last argument at fault is the primary span, the others are shown."""
        places = [arguments[index] for index in problem.arguments] or list(arguments[-1:])
        primary = places[-1]
        secondary = [Label(place.span, f"this is {shape_text(place.type)}") for place in places[:-1]]
        return self.findings.error(
            problem.code,
            problem.message,
            primary.span,
            f"this is {shape_text(primary.type)}",
            secondary=secondary,
            help=problem.help,
        )

    def arguments(
        self, node: syntax.Call | syntax.By, names: Sequence[str], required: Sequence[str], what: str
    ) -> list[syntax.Expression | None]:
        """Match a call's arguments to `names`; see `match_arguments`."""
        found = match_arguments(self.findings, node, names, required, what)
        return [found.get(name) for name in names]

    # --- parts ---

    def _negate(self, node: syntax.Unary) -> Expr:
        operand = self.build(node.operand)
        if isinstance(operand, Constant):
            value: Any = operand.value
            negated: Any = value if isinstance(value, Unknown) else -value
            return Constant(SCALAR, node.span, negated)
        return self.apply("neg", [operand], node.span)

    def _fold(self, function: str, arguments: Sequence[Expr], span: Span) -> Expr | None:
        if function not in _FOLDED or not all(isinstance(argument, Constant) for argument in arguments):
            return None
        left, right = (argument.value for argument in arguments)  # type: ignore[attr-defined]
        if isinstance(left, Unknown) or isinstance(right, Unknown):
            return Constant(SCALAR, span, Unknown("float"))  # type: ignore[arg-type]
        if isinstance(left, Poly) or isinstance(right, Poly):
            return Constant(SCALAR, span, symbolic_operator(function, left, right))  # type: ignore[arg-type]
        try:
            return Constant(SCALAR, span, apply_operator(function, left, right))
        except ArithmeticError as error:
            raise self.findings.error("N0213", "this number cannot be computed", span, str(error)) from None

    def _function(self, node: syntax.Call) -> Expr:
        entry = FUNCTIONS.get(node.function)
        if entry is None:
            raise self._unknown_function(node)
        if self.place not in entry.places or (entry.operator is not None):
            raise self._not_here(entry, node.function_span)
        if node.transposed:
            raise self.findings.error(
                "N0234", f"`{node.function}` is a function: only memories have a transpose", node.span, "`.T` here"
            )
        return self._apply_call(node, entry)

    def _apply_call(self, node: syntax.Call, entry: Function) -> Expr:
        options = entry.options
        given = [argument for argument in node.arguments if argument.name is None]
        named = {argument.name: argument for argument in node.arguments if argument.name is not None}
        values = {option.name: argument for option, argument in zip(options, given[entry.most :], strict=False)}
        for name, argument in named.items():
            if name not in [option.name for option in options]:
                raise self.findings.error(
                    "N0204",
                    f"`{entry.name}` has no argument `{name}`",
                    argument.span,
                    "not an argument",
                    help=did_you_mean(name, [option.name for option in options]) or f"{entry.name}: {entry.meaning}",
                )
            if name in values:
                raise self.findings.twice(name, argument.span)
            values[name] = argument
        count, most = len(given), entry.most + len(options)
        missing = [option.name for option in options if option.required and option.name not in values]
        if not entry.least <= count <= most or missing:
            least = entry.least + sum(option.required for option in options)
            raise self.findings.error(
                "N0203",
                f"`{entry.name}` takes {arity_text(least, most)}",
                node.span,
                f"{len(node.arguments)} given" + (f", `{missing[0]}` is missing" if missing else ""),
                help=f"{entry.name}: {entry.meaning}",
            )
        arguments = attempt_all([lambda a=a: self.build(a.value) for a in given[: entry.most]])  # type: ignore[misc]
        return self.apply(entry.name, arguments, node.span, self._options(entry, values))

    def _options(self, entry: Function, values: dict[str, syntax.Argument]) -> tuple[tuple[str, Any], ...]:
        found: list[tuple[str, Any]] = []
        for option in entry.options:
            if option.name not in values:
                if option.default is not None:
                    found.append((option.name, option.default))
                continue
            node = values[option.name].value
            value = self.evaluator.integer(node, f"`{option.name}`")
            if at_least(value, 0 if option.name in ("i", "start") else 1) is False:
                raise self.findings.error("N0211", f"`{option.name}` is {value}", node.span, "too small")
            found.append((option.name, value))
        return tuple(found)

    def _refuse_tokens(self, arguments: Sequence[Expr]) -> None:
        for argument in arguments:
            if argument.type.vocab is not None:
                raise self.findings.error(
                    "N0216",
                    "a token is a name, not a number",
                    argument.span,
                    f"this is {shape_text(argument.type)}",
                    help="read a table with it: `memory embed : table(vocab, dim)`, then `embed(tokens)`",
                )

    def _unknown_function(self, node: syntax.Call) -> Exception:
        return self.findings.error(
            "N0201",
            f"unknown function or memory `{node.function}`",
            node.function_span,
            "nothing of this name can be called here",
            help=self.hint(node.function, self.callables()),
        )

    def _not_here(self, entry: Function, span: Span) -> Exception:
        places = {"system": "systems", "objective": "objectives", "rule": "rules", "train": "train declarations"}
        *some, last = (places[place] for place in ("system", "objective", "rule", "train") if place in entry.places)
        where = f"{', '.join(some)} and {last}" if some else last
        written = f"`{entry.operator}`" if entry.operator else f"`{entry.name}`"
        if entry.operator and self.place in entry.places:
            return self.findings.error("N0244", f"write {written} for `{entry.name}`", span, "an operator")
        return self.findings.error(
            "N0244", f"{written} is not for {places[self.place]}", span, f"allowed in {where} only"
        )


def match_arguments(
    findings: Findings,
    node: syntax.Call | syntax.By,
    names: Sequence[str],
    required: Sequence[str],
    what: str,
    declared: Span | None = None,
) -> dict[str, syntax.Expression]:
    """Match a call's arguments, by position or by name, to `names`; those in `required` must be there.

    Reports N0203 (too many, too few), N0204 (no such argument) and N0205 (given twice). `declared` is where `what` is
    declared, to be shown beside.
    """
    found: dict[str, syntax.Expression] = {}
    failed: Exception | None = None
    secondary = [] if declared is None else [Label(declared, "declared here")]
    count = arity_text(len(required), len(names))
    for position, argument in enumerate(node.arguments):
        if argument.name is None and position >= len(names):
            message = f"{what} takes {count}, {len(node.arguments)} are given"
            raise findings.error("N0203", message, argument.span, "one too many", secondary=secondary)
        name = names[position] if argument.name is None else argument.name
        if name not in names:
            failed = findings.error(
                "N0204",
                f"{what} has no argument `{name}`",
                argument.span,
                "not an argument",
                secondary=secondary,
                help=did_you_mean(name, names) or (f"its arguments are {', '.join(names)}" if names else None),
            )
        elif name in found:
            failed = findings.twice(name, argument.span)
        else:
            found[name] = argument.value
    missing = ", ".join(f"`{name}`" for name in required if name not in found)
    if missing and failed is None:
        message = f"{what} takes {count}: {missing} is missing"
        failed = findings.error("N0203", message, node.span, "too few arguments", secondary=secondary)
    if failed is not None:
        raise failed
    return found
