"""The body of a system or of a repeat: which name means what at which line, in which order things are computed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nsam.dsl import syntax
from nsam.dsl.calls import Calls
from nsam.dsl.checked import Binding, Child, Expr, Input, Memory, Ref, Unit, ValueType
from nsam.dsl.clauses import build_memory
from nsam.dsl.constants import Evaluator, Value
from nsam.dsl.dependencies import START, NodeId, needs, report_cycle
from nsam.dsl.diagnostics import Label
from nsam.dsl.findings import Findings, Skip
from nsam.dsl.memories import Info, Named, declare_memories
from nsam.dsl.names import (
    Module,
    UniqueNames,
    all_statements,
    assigned_names,
    declared_names,
)
from nsam.dsl.order import ordered
from nsam.dsl.reads import SystemExpressions
from nsam.dsl.repeats import build_repeat
from nsam.dsl.spans import Span
from nsam.dsl.transfers import build_transfers

if TYPE_CHECKING:
    from nsam.dsl.instantiate import Checker

_END = 1 << 60
_RENAME = "give one of the two another name"
_TWO = "a system returns one value: join several with `concat(a, b)`, or leave one out"


class Body:
    """Checks one body and builds its `Unit`.

    A name has versions: its declaration, then one for each statement that reassigns it. What a name means at a line
    is the last version above that line, or the first one where all are below (a `let` may be used before its line).
    """

    def __init__(
        self,
        checker: Checker,
        module: Module,
        name: str,
        statements: Sequence[syntax.Statement],
        parameters: dict[str, Value],
        span: Span,
        outer: Body | None = None,
    ) -> None:
        checker.spend(span)
        self.checker = checker
        self.findings: Findings = checker.findings
        self.module = module
        self.name = name
        self.statements = statements
        self.parameters = parameters
        self.span = span
        self.outer = outer
        self.failed = False
        self.declared = declared_names(statements)
        self.evaluator = Evaluator(self.findings, parameters, self._why_not_constant)
        self.inputs: list[Input] = []
        self.versions: dict[str, list[int]] = {}
        self.results: dict[tuple[str, int], Expr] = {}
        self.steps: dict[NodeId, list[Binding | Child]] = {}
        self.current: list[Binding | Child] = []
        self.binding_names = UniqueNames()
        self.calls = Calls(self)
        self.inner = {
            name: identifier
            for node in statements
            if isinstance(node, syntax.Repeat)
            for name, identifier in _declared_inside(node).items()
        }
        self.memories: dict[str, Named] = {}
        self.built: dict[str, Memory] = {}

    # --- building ---

    def unit(self, inputs: Sequence[Input] = (), outputs: Sequence[syntax.Identifier] | None = None) -> Unit:
        """Return the checked unit. `inputs` and `outputs` (names) are given for the body of a repeat only.

        Raises Skip when anything in it was reported as an error.
        """
        self._declare(inputs, repeated=outputs is not None)
        self.memories = declare_memories(self)
        infos = [info for named in self.memories.values() for info in named.members]
        self.calls.prepare(infos)
        by_path = {info.path: info for info in infos}
        nodes: list[NodeId] = [*range(len(self.statements)), *by_path]
        hard = {node: needs(self, node, by_path, soft=False) for node in nodes}
        order, cycles = ordered(nodes, lambda node: hard[node])
        for cycle in cycles:
            report_cycle(self, cycle)
        for node in order:
            self._evaluate(node, by_path)
        for info in infos:
            self._build_memory(info)
        results = self._outputs(outputs)
        transfers = build_transfers(self)
        if self.failed:
            raise Skip
        soft = {node: [*hard[node], *needs(self, node, by_path, soft=True)] for node in nodes}
        final, tangled = ordered(nodes, lambda node: soft[node])
        steps = [step for node in (order if tangled else final) for step in self.steps.get(node, ())]
        memories = tuple(self.built[info.path] for info in infos)
        parameters: Any = dict(self.parameters)
        taken = tuple(self.inputs)
        return Unit(self.name, parameters, taken, memories, tuple(steps), results, transfers, self.span)

    def _declare(self, inputs: Sequence[Input], repeated: bool) -> None:
        for given in inputs:
            self._add_input(given)
        self._declare_names(repeated)
        for position, node in enumerate(self.statements):
            if isinstance(node, syntax.Let):
                self.versions.setdefault(node.name.id, []).append(position)
            elif isinstance(node, syntax.Assign):
                self._declare_assign(node, position, repeated)
            elif isinstance(node, syntax.Repeat):
                for name in assigned_names(node.body):
                    if name in self.versions:
                        self.versions[name].append(position)

    def _declare_names(self, repeated: bool) -> None:
        """Take the body's inputs, and report names that are taken and statements that do not belong here."""
        first: dict[str, Span] = {}
        for node in self.statements:
            names = list(node.names) if isinstance(node, syntax.MemoryDeclaration) else []
            self._refuse_self(names)
            if isinstance(node, syntax.Let | syntax.InputDeclaration):
                names = [node.name]
            for name in names:
                self._declare_once(name, first)
            if repeated and isinstance(node, syntax.InputDeclaration | syntax.Output | syntax.TransferDeclaration):
                word = {"InputDeclaration": "input", "Output": "output"}.get(type(node).__name__, "transfer")
                if word != "transfer":
                    self.error(
                        "N0236", f"`{word}` belongs to the system, not into a repeat", node.span, "inside a repeat"
                    )
            elif isinstance(node, syntax.InputDeclaration):
                self._take_input(node)

    def _refuse_self(self, memories: Sequence[syntax.Identifier]) -> None:
        """No memory is called `self`: in the clauses of every memory this is the one being declared."""
        for name in memories:
            if name.id == "self":
                label = "means the memory whose clauses these are"
                self.error("N0202", "no memory can be called `self`", name.span, label, help_text="choose another name")

    def _declare_once(self, name: syntax.Identifier, first: dict[str, Span]) -> None:
        taken = first.get(name.id)
        what = "declared first here"
        outer = self.outer
        while taken is None and outer is not None:
            taken = outer.declaration(name.id)
            outer, what = outer.outer, "declared outside the repeat"
        if taken is not None:
            help_text = f"to change it, write `{name.id} = …` without `let`" if "outside" in what else _RENAME
            self.error(
                "N0202", f"`{name.id}` is declared twice", name.span, "again here", [Label(taken, what)], help_text
            )
        elif name.id in self.parameters:
            self.error(
                "N0202",
                f"`{name.id}` is a parameter of this system",
                name.span,
                "declared again here",
                help_text=_RENAME,
            )
        first.setdefault(name.id, name.span)

    def declaration(self, name: str) -> Span | None:
        """Return where this body declares `name`, or None."""
        found = self.declared.get(name)
        return None if found is None else found.span

    def _declare_assign(self, node: syntax.Assign, position: int, repeated: bool) -> None:
        name = node.name
        if not repeated:
            self.error(
                "N0207",
                f"`{name.id}` is reassigned outside a repeat",
                name.span,
                "assigned here",
                help_text=f"a new value needs a new name: `let {name.id}_2 = …`; only a `repeat` reassigns",
            )
        elif name.id in self.versions:
            self.versions[name.id].append(position)
        else:
            self.error(
                "N0201",
                f"`{name.id}` is reassigned, but there is no such value",
                name.span,
                "not declared before this line",
                help_text=f"declare it first, outside the repeat: `let {name.id} = …`",
            )

    def _take_input(self, node: syntax.InputDeclaration) -> None:
        from nsam.dsl.structures import Structures

        structures = Structures(self.evaluator)
        try:
            vocab = None if node.type.vocab is None else structures.size(node.type.vocab, "the number of tokens")
            shape = tuple(structures.size(size, f"a size of `{node.name.id}`") for size in node.type.sizes)
        except Skip:
            self.failed = True
            self.versions.setdefault(node.name.id, [START])
            return
        type_ = ValueType(shape, "sequence" if node.per_sequence else "token", vocab)
        self._add_input(Input(node.name.id, type_, node.span))

    def _add_input(self, given: Input) -> None:
        self.inputs.append(given)
        self.versions.setdefault(given.name, [START])
        self.binding_names.take(given.name)
        self.results[given.name, START] = Ref(given.type, given.span, given.name)

    # --- evaluation ---

    def _evaluate(self, node: NodeId, infos: dict[str, Info]) -> None:
        self.current = self.steps.setdefault(node, [])
        if isinstance(node, str):
            if infos[node].structure.kind == "attention":
                self._build_memory(infos[node])
            return
        statement = self.statements[node]
        try:
            if isinstance(statement, syntax.Let | syntax.Assign):
                builder = SystemExpressions(self, node, self.evaluator)
                self._bind_as(statement, node, builder.build(statement.value))
            elif isinstance(statement, syntax.Repeat):
                self.results.update(build_repeat(self, node, statement))
        except Skip:
            self.failed = True

    def _bind_as(self, statement: syntax.Let | syntax.Assign, position: int, value: Expr) -> None:
        source = statement.name.id
        name = self.binding_names.take(source)
        self.current.append(Binding(name, source, value, statement.span))
        self.results[source, position] = Ref(value.type, statement.span, name)

    def bind(self, name: str, value: Expr) -> Expr:
        """Give an intermediate value a name of its own, computed before the statement at hand."""
        own = self.binding_names.take(name, self.versions)
        self.current.append(Binding(own, name, value, value.span))
        return Ref(value.type, value.span, own)

    def _build_memory(self, info: Info) -> None:
        if info.path in self.built:
            return
        self.current = self.steps.setdefault(info.path, [])
        try:
            self.built[info.path] = build_memory(self, info)
        except Skip:
            self.failed = True

    def _outputs(self, names: Sequence[syntax.Identifier] | None) -> tuple[tuple[str, Expr], ...]:
        if names is not None:
            return tuple((name.id, value) for name in names if (value := self._final(name.id)) is not None)
        found = [(position, node) for position, node in enumerate(self.statements) if isinstance(node, syntax.Output)]
        if not found:
            self.error(
                "N0235",
                f"system `{self.name}` has no output",
                self.span,
                "nothing comes out",
                help_text="say what it returns, in the system itself: `output …`",
            )
            return ()
        for _, second in found[1:]:
            first = [Label(found[0][1].span, "the first one")]
            self.error("N0235", f"system `{self.name}` has two outputs", second.span, "a second output", first, _TWO)
        position, node = found[0]
        self.current = self.steps.setdefault(position, [])
        try:
            return (("output", SystemExpressions(self, position, self.evaluator).build(node.value)),)
        except Skip:
            self.failed = True
            return ()

    def _final(self, name: str) -> Expr | None:
        try:
            return self.value(name, _END)
        except Skip:
            self.failed = True
            return None

    def inside_repeat(self, node: syntax.Repeat, name: str) -> Body:
        """Return a new body for the statements of a repeat in this one."""
        return Body(self.checker, self.module, f"{self.name}.{name}", node.body, self.parameters, node.span, self)

    # --- what names mean ---

    def version(self, name: str, position: int) -> int | None:
        """Return the line whose value `name` has at `position` (-1 for inputs), or None when it is no value."""
        versions = self.versions.get(name)
        if not versions:
            return None
        above = bisect_left(versions, position)
        return versions[max(above - 1, 0)]

    def value(self, name: str, position: int) -> Expr | None:
        """Return the value that `name` has at `position`, or None when it is no value; Skip when it is a wrong one."""
        version = self.version(name, position)
        if version is None:
            return None
        if (name, version) not in self.results:
            raise Skip
        return self.results[name, version]

    def visible_values(self) -> list[str]:
        """Return the names of the values here."""
        return list(self.versions)

    def single(self, name: str, span: Span, help_text: str | None = None) -> Info:
        """Return the one memory called `name`; N0206 when it is a list."""
        named = self.memories[name]
        if named.listed:
            raise self.findings.error(
                "N0206",
                f"`{name}` is a list of memories",
                span,
                "used as one memory",
                secondary=[Label(named.name.span, "declared here")],
                help=help_text or f"read all of them: `chain({name}, x)` or `mix(weights, {name}, x)`",
            )
        if not named.members:
            raise Skip
        return named.members[0]

    def list_length(self, node: syntax.Expression, evaluator: Evaluator) -> Value:
        """Return how many memories `node` (a memory list, or a list of memories) stands for."""
        items = node.items if isinstance(node, syntax.ListOf) else (node,)
        total: Value = 0
        for item in items:
            if isinstance(item, syntax.Name):
                total = total + self.memories[item.id].length  # type: ignore[operator]
        return total

    def outer_memory(self, name: str) -> Span | None:
        """Return where a body around this one declares memory `name`, or None."""
        outer = self.outer
        while outer is not None:
            if name in outer.memories and name not in self.memories:
                return outer.memories[name].name.span
            outer = outer.outer
        return None

    def refuse_outer(self, name: str, declared: Span, span: Span) -> Skip:
        """Report a memory declared outside a repeat and used inside."""
        return self.findings.error(
            "N0237",
            f"memory `{name}` is declared outside the repeat",
            span,
            "used inside the repeat",
            secondary=[Label(declared, "declared here")],
            help="declare it inside the repeat (each pass then has its own), or read it before the repeat with `let`",
        )

    def _why_not_constant(self, name: str) -> str | None:
        if name in self.declared or name in self.versions:
            return "a value or memory of the system; only parameters are known then"
        return None

    def error(
        self,
        code: str,
        message: str,
        span: Span,
        label: str,
        secondary: Sequence[Label] = (),
        help_text: str | None = None,
    ) -> None:
        """Report an error of this body and go on."""
        self.failed = True
        self.findings.error(code, message, span, label, secondary=secondary, help=help_text)


def _declared_inside(node: syntax.Repeat) -> dict[str, syntax.Identifier]:
    names: dict[str, syntax.Identifier] = {}
    for statement in all_statements(node.body):
        names.update(declared_names([statement]))
    return names
