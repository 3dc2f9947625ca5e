"""Systems used in a body: their names in it, their units, and whether their inputs fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nsam.dsl import syntax
from nsam.dsl.checked import Call, Expr, Input, Output, Read, Unit, walk
from nsam.dsl.constants import Evaluator
from nsam.dsl.diagnostics import Label
from nsam.dsl.findings import Skip, attempt_all
from nsam.dsl.memories import Info
from nsam.dsl.names import UniqueNames, inside, memory_values, statement_values
from nsam.dsl.types import same_size, shape_text

if TYPE_CHECKING:
    from nsam.dsl.bodies import Body
    from nsam.dsl.reads import SystemExpressions


class Calls:
    """The calls and repeats of one body.

    `names` and `units` are by the call's node and the path of the memory in whose clauses it stands ("" elsewhere):
    the clauses of `memory a, b` hold for each, so that a system called there is two systems.
    """

    def __init__(self, body: Body) -> None:
        self.body = body
        self.names: dict[tuple[int, str], str] = {}
        self.units: dict[tuple[int, str], Unit] = {}

    def prepare(self, infos: Iterable[Info]) -> None:
        """Name every call and repeat in the order of the text, and instantiate the systems that are called."""
        taken = UniqueNames(self.body.memories)
        by_position: dict[int, list[Info]] = {}
        for info in infos:
            by_position.setdefault(info.position, []).append(info)
        for position, node in enumerate(self.body.statements):
            if isinstance(node, syntax.Repeat):
                self.names[id(node), ""] = taken.take("repeat")
            elif isinstance(node, syntax.MemoryDeclaration):
                for info in by_position.get(position, ()):
                    self._prepare_calls(memory_values(node), info.evaluator, info.path, taken)
            else:
                self._prepare_calls(statement_values(node), self.body.evaluator, "", taken)

    def _prepare_calls(
        self, expressions: Iterable[syntax.Expression], evaluator: Evaluator, owner: str, taken: UniqueNames
    ) -> None:
        for node in inside(expressions):
            if not isinstance(node, syntax.Call) or node.function not in self.body.module.systems:
                continue
            if node.function in self.body.memories or self.body.outer_memory(node.function) is not None:
                continue
            self.names[id(node), owner] = taken.take(node.function)
            try:
                unit = self.body.checker.called(self.body.module.systems[node.function], node, evaluator)
                self.units[id(node), owner] = unit
            except Skip:
                self.body.failed = True

    def call(self, node: syntax.Call, builder: SystemExpressions) -> Expr:
        """Return what the system called by `node` returns; its arguments are checked against its inputs."""
        key = (id(node), "" if builder.own is None else builder.own.path)
        unit = self.units.get(key)
        if node.transposed:
            raise self.body.findings.error("N0234", "a system has no transpose", node.function_span, "`.T` here")
        if unit is None:
            raise Skip
        given = self.body.checker.inputs_of(self.body.module.systems[node.function], node)
        values = attempt_all([lambda value=value: builder.build(value) for value in given])  # type: ignore[misc]
        attempt_all([lambda value=value: self._refuse_own(value) for value in values])  # type: ignore[misc]
        attempt_all(
            [lambda a=a, i=i: self._check_input(a, i) for a, i in zip(values, unit.inputs, strict=True)]  # type: ignore[misc]
        )
        name = self.names[key]
        self.body.current.append(Call(name, unit, tuple(values), node.span))
        return Output(unit.outputs[0][1].type, node.span, name)

    def _refuse_own(self, argument: Expr) -> None:
        if any(isinstance(part, Read) and part.memory == "self" for part in walk(argument)):
            raise self.body.findings.error(
                "N0206",
                "a system cannot be given the memory being declared",
                argument.span,
                "`self` in here",
                help="write what the system does in this system, with `let`",
            )

    def _check_input(self, argument: Expr, expected: Input) -> None:
        found, wanted = argument.type, expected.type
        declared = [Label(expected.span, f"`{expected.name}` is {shape_text(wanted)}: declared here")]
        fits = len(found.shape) == len(wanted.shape) and (found.vocab is None) == (wanted.vocab is None)
        sizes = zip((*found.shape, found.vocab or 1), (*wanted.shape, wanted.vocab or 1), strict=False)
        if not fits or not all(same_size(a, b) for a, b in sizes):
            message = f"input `{expected.name}` is {shape_text(wanted)}, this is {shape_text(found)}"
            raise self.body.findings.error(
                "N0214", message, argument.span, f"this is {shape_text(found)}", secondary=declared
            )
        if wanted.per == "sequence" and found.per == "token":
            raise self.body.findings.error(
                "N0246",
                f"input `{expected.name}` has one value a sequence",
                argument.span,
                "this varies with the token",
                secondary=declared,
            )
