"""`Program`: a checked program, ready to be instantiated. What the rest of the package calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from nsam.dsl import syntax
from nsam.dsl.checked import Constant, RuleUse, Train, Unit
from nsam.dsl.collector import paused
from nsam.dsl.constants import Evaluator, Value, conforms, kind_of, show
from nsam.dsl.diagnostics import Diagnostic, ProgramError
from nsam.dsl.findings import Findings, Skip, TooMany, did_you_mean
from nsam.dsl.imports import LoadedProgram, load_file, load_standard, load_text
from nsam.dsl.instantiate import Checker, System, missing_parameters
from nsam.dsl.names import Declared, Module
from nsam.dsl.records import dataclass
from nsam.dsl.rule_uses import ConstantExpressions, bind_rule
from nsam.dsl.sizes import Poly
from nsam.dsl.spans import Source, Span
from nsam.dsl.training import DATA, Overrides, TrainMaker, settable
from nsam.dsl.types import SCALAR

T = TypeVar("T")


@dataclass(frozen=True)
class Program:
    """A program whose every declaration was checked.

    `systems`, `rules` and `trains` are the names that the main file declares, in order.
    """

    module: Module = field(repr=False)
    warnings: tuple[Diagnostic, ...] = ()

    @staticmethod
    @paused()
    def load(path: str | os.PathLike[str]) -> Program:
        """Read and check the program at `path`; raise `ProgramError` with everything found."""
        return _checked(load_file(Path(path)))

    @staticmethod
    @paused()
    def loads(text: str, name: str = "<text>") -> Program:
        """Check a program given as text; raise `ProgramError` with everything found."""
        return _checked(load_text(text, name))

    @property
    def docstring(self) -> str | None:
        """The main file's docstring."""
        return self.module.file.docstring

    @property
    def systems(self) -> tuple[str, ...]:
        """Names of the systems that the main file declares."""
        return self._declared(syntax.SystemDeclaration)

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the rules that the main file declares."""
        return self._declared(syntax.RuleDeclaration)

    @property
    def trains(self) -> tuple[str, ...]:
        """Names of the train declarations of the main file."""
        return self._declared(syntax.TrainDeclaration)

    def parameters(self, system: str) -> tuple[syntax.Parameter, ...]:
        """Return the parameters of a system, as declared."""
        findings = Findings()
        declared: System = _run(findings, lambda: _find(findings, self.module.systems, system, "system"))
        return declared.node.parameters

    def instantiate(self, system: str, parameters: Mapping[str, object] | None = None) -> Unit:
        """Return `system` with its parameters given; raise `ProgramError` when they do not fit."""
        findings = Findings()

        def build() -> Unit:
            declared = _find(findings, self.module.systems, system, "system")
            checker = Checker(findings)
            given = _given(findings, declared, parameters or {})
            missing = missing_parameters(declared, given)
            if missing:
                quoted = ", ".join(f"`{name}`" for name in missing)
                raise findings.error(
                    "N0250",
                    f"system `{system}` needs a value for {quoted}",
                    declared.node.name.span,
                    "declared here",
                    help=_example(declared, missing),
                )
            return checker.unit(declared, checker.with_defaults(declared, given))

        return _run(findings, build)

    def symbolic(self, system: str) -> Unit:
        """Return `system` with its defaults given and the other sizes open: for checks that hold whatever the size."""
        findings = Findings()

        def build() -> Unit:
            declared = _find(findings, self.module.systems, system, "system")
            checker = Checker(findings)
            return checker.unit(declared, checker.symbolic(declared, defaults=True))

        return _run(findings, build)

    def train(self, name: str | None = None, overrides: Mapping[str, object] | None = None) -> Train:
        """Return a train declaration (the only one, when `name` is None), with values replaced by `overrides`.

        Overrides are named `steps`, `every`, by an option of the data, a parameter of the model or of a rule; names
        that several have are written in full: `model.dim`, `data.batch`, `m3.lr`.
        """
        findings = Findings()

        def build() -> Train:
            chosen = self._only_train(findings) if name is None else name
            maker = TrainMaker(Checker(findings), _find(findings, self.module.trains, chosen, "train declaration"))
            return maker.train(_overrides(findings, maker, overrides or {}) if overrides else None)

        return _run(findings, build)

    def rule(self, name: str, arguments: Mapping[str, object] | None = None) -> RuleUse:
        """Return a rule of the main file (declared or used) with these arguments."""
        findings = Findings()
        return _run(findings, lambda: _use(findings, self.module, name, arguments or {}))

    def _only_train(self, findings: Findings) -> str:
        if len(self.trains) == 1:
            return self.trains[0]
        what = "no train declaration" if not self.trains else f"several: {', '.join(self.trains)}"
        raise findings.error(
            "N0251", f"this program has {what}", None, help="name one of them" if self.trains else None
        )

    def _declared(self, kind: type[Any]) -> tuple[str, ...]:
        return tuple(node.name.id for node in self.module.file.declarations if isinstance(node, kind))


def standard_rule(name: str, arguments: Mapping[str, object] | None = None, module: str = "std.rules") -> RuleUse:
    """Return a rule of the standard library with these arguments: `standard_rule("m3", {"lr": 0.004})`."""
    findings = Findings()
    return _run(findings, lambda: _use(findings, _standard(module), name, arguments or {}))


@cache
def _standard(module: str) -> Module:
    return _modules(load_standard(module), Findings())[module]


def _run(findings: Findings, build: Callable[[], T]) -> T:
    """Return what `build` returns; raise `ProgramError` when it reported errors."""
    try:
        result = build()
    except TooMany:
        raise ProgramError(findings.report.diagnostics) from None
    except Skip:
        if not findings.failed:
            raise RuntimeError("internal error: the checker gave up without saying why; please report this") from None
        raise ProgramError(findings.report.diagnostics) from None
    findings.report.raise_if_failed()
    return result


# --- checking ------------------------------------------------------------------------------------


def _checked(loaded: LoadedProgram) -> Program:
    findings = Findings()
    modules: dict[str, Module] = {}

    def check() -> None:
        modules.update(_modules(loaded, findings))
        own = [module for key, module in modules.items() if not key.startswith("std.") or key == loaded.root.key]
        checker = Checker(findings)
        for module in own:
            _check_declarations(checker, module, defaults=False)
        if not findings.failed:
            for module in own:
                _check_declarations(checker, module, defaults=True)

    _run(findings, check)
    return Program(modules[loaded.root.key], tuple(findings.report.diagnostics))


def _modules(loaded: LoadedProgram, findings: Findings) -> dict[str, Module]:
    """Return each file's names, those that it uses included."""
    modules: dict[str, Module] = {}
    for key, file in loaded.files.items():
        module = Module(file.tree)
        for resolved in file.uses:
            for name in resolved.use.names:
                _bring(module, modules[resolved.file], name, findings)
        for node in file.tree.declarations:
            module.declare(node, findings)
            _check_parameter_names(node, findings)
        modules[key] = module
    return modules


_RENAME = "give one of the two another name, or leave it out"


def _bring(module: Module, source: Module, name: syntax.Identifier, findings: Findings) -> None:
    found, earlier = source.place_of(name.id), module.place_of(name.id)
    if found is not None and found[0] == "train":
        findings.error("N0206", f"`{name.id}` is a train declaration", name.span, "only systems and rules are shared")
        module.refused.add(name.id)
    elif earlier is not None and found is not None and earlier[1] is not found[1]:
        findings.error("N0202", f"`{name.id}` is brought in twice", name.span, "from another file before", help=_RENAME)
    elif found is not None:
        module.bring(name.id, source)


def _check_parameter_names(node: syntax.Declaration, findings: Findings) -> None:
    if not isinstance(node, syntax.SystemDeclaration):
        return
    seen: set[str] = set()
    for parameter in node.parameters:
        if parameter.name in seen:
            findings.error(
                "N0202", f"parameter `{parameter.name}` is declared twice", parameter.span, "again here", help=_RENAME
            )
        seen.add(parameter.name)


def _check_declarations(checker: Checker, module: Module, defaults: bool) -> None:
    """Check what a file declares: with symbols for all parameters, or with symbols for those without a default."""
    for node in module.file.declarations:
        declared = module.systems.get(node.name.id) or module.rules.get(node.name.id) or module.trains.get(node.name.id)
        if declared is None or declared.node is not node:
            continue
        try:
            if isinstance(node, syntax.SystemDeclaration):
                checker.unit(module.systems[node.name.id], checker.symbolic(module.systems[node.name.id], defaults))
            elif isinstance(node, syntax.RuleDeclaration):
                _check_rule(checker, module.rules[node.name.id], defaults)
            elif defaults:
                TrainMaker(checker, module.trains[node.name.id]).train()
        except Skip:
            continue


def _check_rule(checker: Checker, declared: Declared[syntax.RuleDeclaration], defaults: bool) -> None:
    values: dict[str, Any] = {
        parameter.name: Constant(SCALAR, parameter.span, Poly.variable(parameter.name, None))  # type: ignore[arg-type]
        for parameter in declared.node.parameters
        if parameter.default is None or not defaults
    }
    scope = ConstantExpressions(checker.findings, Evaluator(checker.findings, {}))
    bind_rule(checker, declared, values, scope, declared.node.name.span)


# --- requests ------------------------------------------------------------------------------------


def _find(findings: Findings, table: Mapping[str, Declared[Any]], name: str, what: str) -> Declared[Any]:
    if isinstance(name, str) and name in table:
        return table[name]
    known = ", ".join(table) or "none"
    help_text = did_you_mean(str(name), table) or f"there is: {known}"
    raise findings.error("N0251", f"there is no {what} `{name}`", None, help=help_text)


def _example(declared: System, names: Sequence[str]) -> str:
    """Return how to give parameters, from Python and on the command line."""
    types = {parameter.name: parameter.type for parameter in declared.node.parameters}
    kinds = {name: "int" if (type_ := types[name]) is None else type_.id for name in names}
    given = [f"{name}={_sample(kind)}" for name, kind in kinds.items()]
    return f"give it: `{', '.join(given)}`, on the command line `{' '.join(f'-p {text}' for text in given)}`"


def _given(findings: Findings, declared: System, parameters: Mapping[str, object]) -> dict[str, Value]:
    """Check parameters given from outside: their names and their types."""
    known = {parameter.name: parameter for parameter in declared.node.parameters}
    found: dict[str, Value] = {}
    failed = None
    for name, raw in parameters.items():
        if name not in known:
            hint = did_you_mean(str(name), known) or f"its parameters are {', '.join(known)}"
            system = declared.node.name
            failed = findings.error("N0250", f"system `{system.id}` has no parameter `{name}`", None, help=hint)
            continue
        try:
            found[name] = _value(findings, known[name], raw)
        except Skip as skip:
            failed = skip
    if failed is not None:
        raise failed
    return found


def _value(findings: Findings, parameter: syntax.Parameter, raw: object) -> Value:
    type_ = parameter.type
    value = _plain(raw)
    kind, element = ("float", None) if type_ is None else (type_.id, type_.element)
    if value is None or not conforms(value, kind, element):
        wanted = f"list[{element}]" if element else kind
        found = type(raw).__name__ if value is None else kind_of(value)
        raise findings.error(
            "N0250",
            f"parameter `{parameter.name}` is {wanted}, not {found}",
            parameter.span,
            "declared here",
            help=f"for instance `{parameter.name}={_sample(kind, value)}`",
        )
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise findings.error("N0250", f"parameter `{parameter.name}` is too large", parameter.span, "declared here")
    if isinstance(value, float) and value != value:
        raise findings.error("N0250", f"parameter `{parameter.name}` is not a number", parameter.span, "declared here")
    return value


def _sample(kind: str, given: Value | None = None) -> str:
    """Return a value of a kind, near the one that was given."""
    if kind == "int" and isinstance(given, float) and 1 <= given < 1e9:
        return str(round(given))
    return {"int": "64", "float": "0.5", "bool": "true", "str": "text", "list": "[1,4,16]"}[kind]


def _plain(raw: object) -> Value | None:
    """Return a value given from Python as a value of the language, or None when it is none."""
    if isinstance(raw, bool | int | float | str):
        return raw
    if isinstance(raw, list | tuple):
        items = [_plain(item) for item in raw]
        return None if any(item is None or isinstance(item, tuple) for item in items) else tuple(items)
    number: Any = raw
    if getattr(raw, "shape", None) == () and hasattr(raw, "item"):  # a number of NumPy, a tensor without axes
        return _plain(number.item())
    return None


def _overrides(findings: Findings, maker: TrainMaker, given: Mapping[str, object]) -> Overrides:
    """Sort overrides by what they change; N0250 for names that nothing has, or that several have."""
    names = settable(maker)
    model: dict[str, Value] = {}
    data: dict[str, Value] = {}
    uses = maker.rule_uses()
    rules: list[dict[str, Value]] = [{} for _ in uses]
    clock: dict[str, Value] = {}
    declared, _ = maker.model_call()
    parameters = {parameter.name: parameter for parameter in declared.node.parameters}
    kind = maker.data_kind()
    for name, raw in given.items():
        full = _full_name(findings, names, name)
        scope, _, last = full.rpartition(".")
        if scope == "model":
            model[last] = _value(findings, parameters[last], raw)
        elif scope == "data":
            data[last] = _option(findings, full, DATA[kind][last][0], raw)
        elif scope == "":
            clock[last] = _option(findings, full, "int", raw)
        else:
            index = next(index for index, use in enumerate(uses) if use.rule == scope)
            rules[index][last] = _option(findings, full, "float", raw)
    return Overrides(model, data, tuple(rules), clock.get("steps"), clock.get("every"))  # type: ignore[arg-type]


def _full_name(findings: Findings, names: Mapping[str, list[str]], name: str) -> str:
    found = names.get(name, [])
    if len(found) == 1:
        return found[0]
    if not found:
        hint = did_you_mean(name, names)
        short = {name: full for name, full in names.items() if "." not in name}
        there = "there is: " + ", ".join(n for one, full in short.items() for n in ([one] if len(full) == 1 else full))
        message = f"nothing to set is called `{name}`"
        raise findings.error("N0250", message, None, notes=[there] if hint else (), help=hint or there)
    quoted = ", ".join(f"`{full}`" for full in dict.fromkeys(found))
    raise findings.error("N0250", f"`{name}` may mean several things", None, help=f"write one of {quoted}")


def _option(findings: Findings, name: str, kind: str, raw: object) -> Value:
    value = _plain(raw)
    if value is None or not conforms(value, kind):
        found = type(raw).__name__ if value is None else kind_of(value)
        raise findings.error(
            "N0250", f"`{name}` is {kind}, not {found}", None, help=f"for instance `{name}={_sample(kind, value)}`"
        )
    if isinstance(value, float) and value != value:
        raise findings.error("N0250", f"`{name}` is not a number", None)
    if kind == "int" and isinstance(value, int) and value < 1:
        raise findings.error("N0250", f"`{name}` is {show(value)}: at least 1 is needed", None)
    return value


def _use(findings: Findings, module: Module, name: str, arguments: Mapping[str, object]) -> RuleUse:
    """Return a rule with arguments given from outside."""
    declared = _find(findings, module.rules, name, "rule")
    place = Span(Source("<arguments>", ""), 0, 0)
    parameters = {parameter.name: parameter for parameter in declared.node.parameters}
    given: dict[str, Any] = {}
    for key, raw in arguments.items():
        if key not in parameters:
            hint = did_you_mean(str(key), parameters) or f"its parameters are {', '.join(parameters)}"
            raise findings.error("N0250", f"rule `{name}` has no parameter `{key}`", None, help=hint)
        value = _option(findings, key, "float", raw)
        given[key] = Constant(SCALAR, place, value)  # type: ignore[arg-type]
    missing = [p.name for p in declared.node.parameters if p.default is None and p.name not in given]
    if missing:
        quoted = ", ".join(f"`{item}`" for item in missing)
        span = declared.node.name.span
        raise findings.error("N0250", f"rule `{name}` needs a value for {quoted}", span, "declared here")
    scope = ConstantExpressions(findings, Evaluator(findings, {}))
    return bind_rule(Checker(findings), declared, given, scope, place)
