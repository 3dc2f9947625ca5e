"""`train NAME { … }`: the model with its parameters, the data, the objective, the rules, the clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

from nsam.dsl import syntax
from nsam.dsl.checked import Constant, Expr, Output, Ref, RuleUse, Train, Unit
from nsam.dsl.constants import Evaluator, Value, conforms, kind_of, show
from nsam.dsl.diagnostics import Label
from nsam.dsl.expressions import Expressions, match_arguments
from nsam.dsl.findings import attempt_all, did_you_mean
from nsam.dsl.functions import names_in
from nsam.dsl.instantiate import Checker, System, missing_parameters
from nsam.dsl.names import Declared
from nsam.dsl.periods import not_adaptive, period_of
from nsam.dsl.records import dataclass
from nsam.dsl.rule_hosts import require_fit, trained_hosts
from nsam.dsl.rule_keys import needs_keys, wanted
from nsam.dsl.rule_uses import ConstantExpressions, bind_rule, find_rule
from nsam.dsl.sizes import at_least
from nsam.dsl.types import SCALAR, shape_text

N = TypeVar("N", bound=syntax.Node)

DATA: dict[str, dict[str, tuple[str, bool]]] = {
    "text": {"context": ("int", True), "batch": ("int", True)},
}
"""Kinds of data, with their options: type, and whether it must be given."""


@dataclass(frozen=True)
class Overrides:
    """Values that replace those of the program: of the model, the data, each `by` in order, and the steps."""

    model: Mapping[str, Value]
    data: Mapping[str, Value]
    rules: tuple[Mapping[str, Value], ...]
    steps: int | None = None
    every: int | None = None


class _Objective(Expressions):
    """The objective of a training level: the model's output and its inputs."""

    place = "train"

    def __init__(self, checker: Checker, model: Unit, name: str) -> None:
        super().__init__(checker.findings, Evaluator(checker.findings, {}))
        self.model = model
        self.model_name = name
        self.types = {given.name: given.type for given in model.inputs}
        self.used = False

    def callables(self) -> list[str]:
        """Return the names that may be called here."""
        return ["model", *names_in("train")]

    def name(self, node: syntax.Name) -> Expr:
        """Return what a bare name means here."""
        if node.id in self.types:
            return Ref(self.types[node.id], node.span, node.id)
        raise self.findings.error(
            "N0201",
            f"unknown name `{node.id}`",
            node.span,
            f"not an input of `{self.model_name}`",
            help=did_you_mean(node.id, self.types) or f"its inputs are {', '.join(self.types)}",
        )

    def special(self, node: syntax.Call) -> Expr | None:
        """Return what a call means here, or None for a function."""
        if node.function != "model":
            return None
        names = list(self.types)
        values = self.arguments(node, names, names, "`model`")
        for name, value in zip(names, values, strict=True):
            if not isinstance(value, syntax.Name) or value.id != name:
                assert value is not None
                raise self.findings.error(
                    "N0238", f"the model is fed with its input `{name}`", value.span, f"write `{name}` here"
                )
        self.used = True
        return Output(self.model.outputs[0][1].type, node.span, "model")


class TrainMaker:
    """Builds one `train` declaration."""

    def __init__(self, checker: Checker, declared: Declared[syntax.TrainDeclaration]) -> None:
        self.checker = checker
        self.findings = checker.findings
        self.node = declared.node
        self.module = declared.module
        self.evaluator = Evaluator(self.findings, {})

    def train(self, overrides: Overrides | None = None) -> Train:
        """Return the training level; raise Skip when something in it was reported."""
        given = overrides or Overrides({}, {}, ())
        parts: list[Any] = attempt_all(
            [
                lambda: self._model(given.model),
                lambda: self._data(given.data),
                lambda: self._rules(given.rules),
                lambda: given.every or self._every(),
                lambda: given.steps or self._steps(),
                lambda: self._one(syntax.Minimize, "minimize"),
            ]
        )
        model, data, rules, every, steps, minimize = parts
        for use, targets in rules:
            matrices = {"matrices": True, "others": False}.get(targets)
            require_fit(self.findings, use, trained_hosts(model, matrices), use.span)
        objective = self._objective(model, minimize)
        return Train(self.node.name.id, model, data, objective, rules, every, steps, self.node.span)

    # --- what is in it ---

    def model_call(self) -> tuple[System, syntax.Call]:
        """Return the system that `model` names, and the call."""
        node = self._field("model").value
        call = syntax.Call(node.span, node.id, node.span) if isinstance(node, syntax.Name) else node
        if not isinstance(call, syntax.Call) or call.transposed:
            raise self.findings.error("N0238", "`model` names a system", node.span, help="`model hope(dim = 128)`")
        if call.function not in self.module.systems:
            known = self.module.place_of(call.function)
            raise self.findings.error(
                "N0201" if known is None else "N0206",
                f"`{call.function}` is {'unknown' if known is None else 'a ' + known[0]}: `model` names a system",
                call.function_span,
                "not a system",
                help=did_you_mean(call.function, self.module.systems),
            )
        return self.module.systems[call.function], call

    def model_values(self) -> dict[str, Value]:
        """Return the parameters that the program gives to the model."""
        declared, call = self.model_call()
        parameters = {parameter.name: parameter for parameter in declared.node.parameters}
        names = list(parameters)
        what = f"system `{call.function}`"
        given = match_arguments(self.findings, call, names, [], what, declared.node.name.span)
        values = attempt_all([lambda v=v: self.evaluator.value(v) for v in given.values()])  # type: ignore[misc]
        for (name, node), value in zip(given.items(), values, strict=True):
            self.checker.check_value(parameters[name], value, node.span)
        return dict(zip(given, values, strict=True))

    def data_kind(self) -> str:
        """Return the kind of data that the program names."""
        return self._data({})[0]

    def rule_uses(self) -> list[syntax.By]:
        """Return the `by` clauses in order."""
        return [field for field in self.node.fields if isinstance(field, syntax.By)]

    # --- parts ---

    def _one(self, kind: type[N], word: str, needed: bool = True) -> N:
        found = [field for field in self.node.fields if isinstance(field, kind)]
        return cast("N", self._single(found, word, needed))

    def _field(self, name: str) -> syntax.Field:
        found = [field for field in self.node.fields if isinstance(field, syntax.Field) and field.name == name]
        return cast("syntax.Field", self._single(found, name, True))

    def _single(self, found: list[Any], word: str, needed: bool) -> Any:
        if len(found) > 1:
            first = [Label(found[0].span, "the first one")]
            raise self.findings.error(
                "N0220", f"two `{word}` in this train declaration", found[1].span, "the second one", secondary=first
            )
        if not found and needed:
            raise self.findings.error(
                "N0221",
                f"train declaration `{self.node.name.id}` has no `{word}`",
                self.node.name.span,
                "incomplete",
                detail=word,
            )
        return found[0] if found else None

    def _model(self, overrides: Mapping[str, Value]) -> Unit:
        declared, call = self.model_call()
        given = {**self.model_values(), **overrides}
        missing = missing_parameters(declared, given)
        if missing:
            quoted = ", ".join(f"`{name}`" for name in missing)
            raise self.findings.error(
                "N0203",
                f"`{call.function}` needs a value for {quoted}",
                call.span,
                "too few arguments",
                secondary=[Label(declared.node.name.span, "declared here")],
            )
        values = self.checker.with_defaults(declared, given)
        text = ", ".join(f"{name} = {show(value)}" for name, value in values.items())
        with self.findings.inside(call.span, f"`{call.function}({text})`"):
            return self.checker.unit(declared, values)

    def _data(self, overrides: Mapping[str, Value]) -> tuple[str, dict[str, Value]]:
        node = self._field("data").value
        if isinstance(node, syntax.Name) and node.id in DATA:
            node = syntax.Call(node.span, node.id, node.span)
        if not isinstance(node, syntax.Call) or node.function not in DATA:
            name = node.function if isinstance(node, syntax.Call) else node.id if isinstance(node, syntax.Name) else ""
            raise self.findings.error(
                "N0238",
                "`data` names a kind of data",
                node.span,
                "not known",
                help=did_you_mean(name, DATA) or "`data text(context = 512, batch = 8)`",
            )
        options = DATA[node.function]
        required = [name for name, (_, needed) in options.items() if needed]
        given = match_arguments(self.findings, node, list(options), required, f"data `{node.function}`")
        values = attempt_all(
            [lambda n=n, v=v: self._option(n, v, options[n][0]) for n, v in given.items()]  # type: ignore[misc]
        )
        return node.function, {**dict(zip(given, values, strict=True)), **overrides}

    def _option(self, name: str, node: syntax.Expression, kind: str) -> Value:
        value = self.evaluator.value(node)
        if not conforms(value, kind):
            raise self.findings.error("N0210", f"`{name}` is {kind}, not {kind_of(value)}", node.span, show(value))
        if kind == "int" and at_least(value, 1) is False:
            raise self.findings.error("N0211", f"`{name}` is {show(value)}", node.span, "at least 1 is needed")
        return value

    def _rules(
        self, overrides: tuple[Mapping[str, Value], ...]
    ) -> tuple[tuple[RuleUse, Literal["matrices", "others", "all"]], ...]:
        uses = self.rule_uses()
        if not uses:
            self._single([], "by", True)
        changes = overrides or tuple({} for _ in uses)
        self._check_targets(uses)
        built = attempt_all([lambda u=u, c=c: self._rule(u, c) for u, c in zip(uses, changes, strict=True)])  # type: ignore[misc]
        return tuple((use, node.targets or "all") for use, node in zip(built, uses, strict=True))  # type: ignore[misc]

    def _rule(self, node: syntax.By, overrides: Mapping[str, Value]) -> RuleUse:
        declared = find_rule(self.findings, self.module, node)
        parameters = declared.node.parameters
        names = [parameter.name for parameter in parameters]
        required = [p.name for p in parameters if p.default is None]
        what = f"rule `{node.rule}`"
        given = match_arguments(self.findings, node, names, required, what, declared.node.name.span)
        scope = ConstantExpressions(self.findings, self.evaluator)
        built = attempt_all([lambda v=v: scope.build(v) for v in given.values()])  # type: ignore[misc]
        values: dict[str, Expr] = dict(zip(given, built, strict=True))
        values |= {name: Constant(SCALAR, node.span, cast("float", value)) for name, value in overrides.items()}
        use = bind_rule(self.checker, declared, values, scope, node.span)
        self._check_keys(node, use)
        return use

    def _check_keys(self, node: syntax.By, use: RuleUse) -> None:
        """A rule may know a layer's inputs and errors; others are no layers."""
        if needs_keys(use.rule) and node.targets == "others":
            raise self.findings.error(
                "N0226",
                f"rule `{node.rule}` needs {wanted(use.rule)}, and others have none",
                node.rule_span,
                "tables, taps, gains, vectors and biases",
                help="give them a rule of the gradient alone, such as adamw",
            )

    def _check_targets(self, uses: list[syntax.By]) -> None:
        targets = [use.targets for use in uses]
        if targets not in ([None], ["matrices", "others"], ["others", "matrices"]):
            raise self.findings.error(
                "N0239",
                "each parameter follows one rule",
                uses[-1].span,
                "with these rules some follow none, or several",
                secondary=[Label(use.span, "and this one") for use in uses[:-1]],
                help="one rule for all, or one `for matrices` and one `for others`",
            )

    def _every(self) -> int:
        node: syntax.Every | None = self._one(syntax.Every, "every", needed=False)
        if node is None:
            return 1
        if node.unit != "step":
            raise self.findings.error(
                "N0222", "a training level moves by steps", node.span, "makes no sense here", help="`every 1 step`"
            )
        not_adaptive(self.findings, node)
        period = period_of(self.evaluator, node.period)
        if period == float("inf"):
            raise self.findings.error("N0222", "this level never moves", node.span, "makes no sense here")
        return int(period)

    def _steps(self) -> int:
        node = self._field("steps").value
        value = self.evaluator.integer(node, "the number of steps")
        if at_least(value, 1) is False:
            raise self.findings.error("N0211", f"{value} steps", node.span, "at least 1 is needed")
        return int(value)

    def _objective(self, model: Unit, node: syntax.Minimize) -> Expr:
        scope = _Objective(self.checker, model, model.name)
        objective = scope.build(node.objective)
        if not scope.used:
            raise self.findings.error(
                "N0227", "this objective does not depend on the model", node.span, "no `model(…)` in it"
            )
        if objective.type.shape != () or objective.type.vocab is not None:
            raise self.findings.error(
                "N0229", "an objective is one number", objective.span, f"this is {shape_text(objective.type)}"
            )
        return objective


def settable(maker: TrainMaker) -> dict[str, list[str]]:
    """Return what `overrides` may name: each short name, with the full names that it may stand for."""
    declared, _ = maker.model_call()
    full = [f"model.{parameter.name}" for parameter in declared.node.parameters]
    kind = maker.data_kind()
    full += [f"data.{name}" for name in DATA[kind]]
    for use in maker.rule_uses():
        rule = find_rule(maker.findings, maker.module, use)
        full += [f"{use.rule}.{parameter.name}" for parameter in rule.node.parameters]
    found: dict[str, list[str]] = {"steps": ["steps"], "every": ["every"]}
    for name in full:
        found.setdefault(name.split(".", 1)[1], []).append(name)
        found.setdefault(name, []).append(name)
    return found
