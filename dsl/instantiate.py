"""Systems and rules with their parameters given: each is built once for each set of values, and used where it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nsam.dsl import syntax
from nsam.dsl.bodies import Body
from nsam.dsl.checked import Call, Rule, Unit
from nsam.dsl.constants import Evaluator, Unknown, UnknownList, Value, conforms, kind_of, show
from nsam.dsl.diagnostics import Label
from nsam.dsl.expressions import match_arguments
from nsam.dsl.findings import Findings, Skip, TooMany, attempt_all
from nsam.dsl.memories import MOST_MEMORIES
from nsam.dsl.names import Declared
from nsam.dsl.rules import RuleMaker
from nsam.dsl.sizes import Poly
from nsam.dsl.spans import Span

MOST_DEPTH = 24
"""How deep systems may use systems."""

_WORK_OF_ONE = 400
MOST_WORK = 2_000_000
"""How many characters of program text are instantiated, each use with other parameters counted again."""

System = Declared[syntax.SystemDeclaration]


class Checker:
    """Builds units and rules; the same walk with symbolic sizes checks a program, with numbers instantiates it."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self._units: dict[Any, Unit | None] = {}
        self._rules: dict[Any, Rule | None] = {}
        self._active: list[tuple[object, str, Span]] = []
        self._counts: dict[int, int] = {}
        self._work = 0

    def spend(self, span: Span) -> None:
        """Bound the work: systems that use each other with ever new parameters would grow without end."""
        self._work += span.end - span.start + _WORK_OF_ONE
        if self._work > MOST_WORK:
            self.findings.error("N0240", "too many different uses of systems and rules", span, "used once too often")
            raise TooMany

    # --- systems ---

    def unit(self, declared: System, values: Mapping[str, Value]) -> Unit:
        """Return the unit of a system with these parameters; raise Skip when it has errors (reported)."""
        key = (id(declared.node), _key(values))
        if key not in self._units:
            self._units[key] = None
            self._enter(declared.node, declared.node.name)
            try:
                body = Body(
                    self, declared.module, declared.node.name.id, declared.node.body, dict(values), declared.node.span
                )
                unit = body.unit()
                self._count(declared.node, unit)
                self._units[key] = unit
            finally:
                self._active.pop()
        else:
            self._refuse_recursion(declared.node)
        found = self._units[key]
        if found is None:
            raise Skip
        return found

    def _refuse_recursion(self, node: syntax.SystemDeclaration | syntax.RuleDeclaration) -> None:
        names = [name for active, name, _ in self._active]
        for index, (active, _, span) in enumerate(self._active):
            if active is node:
                text = " -> ".join([*names[index:], node.name.id])
                raise self.findings.error(
                    "N0209",
                    f"`{node.name.id}` uses itself: {text}",
                    span,
                    "declared here",
                    help="nothing may be made of itself; use `repeat` for several passes",
                )

    def _enter(self, node: syntax.SystemDeclaration | syntax.RuleDeclaration, name: syntax.Identifier) -> None:
        self._refuse_recursion(node)
        if len(self._active) >= MOST_DEPTH:
            raise self.findings.error(
                "N0240", f"more than {MOST_DEPTH} systems or rules within each other", name.span, "too deep here"
            )
        self._active.append((node, name.id, name.span))

    def _count(self, node: syntax.SystemDeclaration, unit: Unit) -> None:
        """Bound how many memories and systems a system is made of, those inside others included."""
        total = self.count(unit)
        if total > MOST_MEMORIES:
            message = f"`{node.name.id}` has more than {MOST_MEMORIES} memories and systems in it"
            raise self.findings.error("N0240", message, node.name.span, f"{total} in all")

    def count(self, unit: Unit) -> int:
        """Return how many memories and systems a unit has, repeats counted with their passes."""
        if id(unit) not in self._counts:
            total = 1 + len(unit.memories)
            for child in unit.children:
                inner = self.count(child.unit if isinstance(child, Call) else child.body)
                passes = 1 if isinstance(child, Call) or not isinstance(child.count, int) else child.count
                total += inner * passes
            self._counts[id(unit)] = total
        return self._counts[id(unit)]

    def called(self, declared: System, node: syntax.Call, evaluator: Evaluator) -> Unit:
        """Return the unit that a call in a system means; its parameters are evaluated by `evaluator`."""
        given = self._match(declared, node)
        parameters = {parameter.name: parameter for parameter in declared.node.parameters}
        names = [name for name in given if name in parameters]
        found = attempt_all([lambda name=name: evaluator.value(given[name]) for name in names])  # type: ignore[misc]
        for name, value in zip(names, found, strict=True):
            self.check_value(parameters[name], value, given[name].span)
        values = self.with_defaults(declared, dict(zip(names, found, strict=True)))
        text = ", ".join(f"{name} = {show(value)}" for name, value in values.items())
        with self.findings.inside(node.span, f"`{declared.node.name.id}({text})`"):
            return self.unit(declared, values)

    def inputs_of(self, declared: System, node: syntax.Call) -> list[syntax.Expression]:
        """Return the expressions that a call gives for the system's inputs, in order."""
        given = self._match(declared, node)
        return [given[name] for name in _inputs(declared)]

    def _match(self, declared: System, node: syntax.Call) -> dict[str, syntax.Expression]:
        inputs = _inputs(declared)
        parameters = declared.node.parameters
        names = [*inputs, *(parameter.name for parameter in parameters)]
        required = [*inputs, *(parameter.name for parameter in parameters if parameter.default is None)]
        what = f"system `{declared.node.name.id}`"
        return match_arguments(self.findings, node, names, required, what, declared.node.name.span)

    # --- parameters ---

    def with_defaults(self, declared: System, given: Mapping[str, Value]) -> dict[str, Value]:
        """Return values for all parameters that have one: given, or default (which may use those before it)."""
        values: dict[str, Value] = {}
        for parameter in declared.node.parameters:
            if parameter.name in given:
                values[parameter.name] = _settled(parameter, given[parameter.name])
            elif parameter.default is not None:
                value = Evaluator(self.findings, values).value(parameter.default)
                self.check_value(parameter, value, parameter.default.span)
                values[parameter.name] = _settled(parameter, value)
        return values

    def symbolic(self, declared: System, defaults: bool) -> dict[str, Value]:
        """Return symbols for all parameters, or only for those without a default."""
        parameters = declared.node.parameters
        symbols = {p.name: _symbol(p) for p in parameters if p.default is None or not defaults}
        return self.with_defaults(declared, symbols)

    def check_value(self, parameter: syntax.Parameter, value: Value, span: Span | None) -> None:
        """Report N0210 when a parameter's value is not of its type."""
        type_ = parameter.type
        if type_ is None or conforms(value, type_.id, type_.element):
            return
        wanted = f"list[{type_.element}]" if type_.element else type_.id
        raise self.findings.error(
            "N0210",
            f"`{parameter.name}` is {wanted}, not {kind_of(value)}",
            span,
            f"this is {show(value)}",
            secondary=[Label(parameter.span, "declared here")],
        )

    # --- rules ---

    def rule(self, declared: Declared[syntax.RuleDeclaration], statics: Mapping[str, Value | None]) -> Rule:
        """Return a rule for arguments with these compile-time values (None: it varies)."""
        key = (id(declared.node), _key(statics))
        if key not in self._rules:
            self._rules[key] = None
            self.spend(declared.node.span)
            self._enter(declared.node, declared.node.name)
            try:
                self._rules[key] = RuleMaker(self, declared, statics).rule()
            finally:
                self._active.pop()
        else:
            self._refuse_recursion(declared.node)
        found = self._rules[key]
        if found is None:
            raise Skip
        return found


def missing_parameters(declared: System, given: Mapping[str, Value]) -> list[str]:
    """Return the parameters that have neither a value nor a default."""
    return [p.name for p in declared.node.parameters if p.name not in given and p.default is None]


def _inputs(declared: System) -> list[str]:
    return [node.name.id for node in declared.node.body if isinstance(node, syntax.InputDeclaration)]


def _key(values: Mapping[str, Value | None]) -> tuple[Any, ...]:
    """Return a key that tells 1 from 1.0 and from true."""
    return tuple((name, type(value).__name__, value) for name, value in values.items())


def _settled(parameter: syntax.Parameter, value: Value) -> Value:
    """Return the value as its declared type: whole numbers given for floats become floats."""
    type_ = parameter.type
    if type_ is not None and type_.id == "float" and isinstance(value, int):
        return float(value)
    if type_ is not None and type_.element == "float" and isinstance(value, tuple):
        return tuple(float(item) if isinstance(item, int) else item for item in value)
    return value


def _symbol(parameter: syntax.Parameter) -> Value:
    """Return a symbol for a parameter.

    Whole numbers count as at least 2, so that a program whose shapes fit only where `dim` is 1 is refused before
    anyone asks for `dim`; a default of 1 or below says that such values are meant.
    """
    type_ = parameter.type
    if type_ is None or type_.id == "int":
        default = parameter.default
        least: int | None = 2
        if default is not None:
            given = default.value if isinstance(default, syntax.Number) else 0
            least = 2 if given >= 2 else 1 if given == 1 else None
        return Poly.variable(parameter.name, least)
    if type_.id == "list":
        return UnknownList(parameter.name, type_.element or "int")
    return Unknown(type_.id)  # type: ignore[arg-type]
