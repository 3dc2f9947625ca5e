"""Memories declared in a rule: their context is gradients, their clock the updates of the rule's host."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nsam.dsl import syntax
from nsam.dsl.checked import (
    Apply,
    Constant,
    Context,
    Expr,
    Objective,
    Read,
    Ref,
    RuleMemory,
    RuleUse,
    State,
    Structure,
    ValueType,
    walk,
)
from nsam.dsl.diagnostics import Label
from nsam.dsl.expressions import Expressions
from nsam.dsl.findings import Skip
from nsam.dsl.objectives import ObjectiveExpressions, objective_of
from nsam.dsl.periods import not_adaptive, period_of
from nsam.dsl.records import dataclass
from nsam.dsl.rule_uses import use_rule
from nsam.dsl.sizes import Poly, Size
from nsam.dsl.spans import Span
from nsam.dsl.structures import Structures, has_transpose, input_size, output_size, state_shape
from nsam.dsl.types import ANY, COLUMNS, ROWS, SCALAR, same_size, shape_text

if TYPE_CHECKING:
    from nsam.dsl.rules import RuleMaker

C = TypeVar("C", bound=syntax.Node)


@dataclass(frozen=True, slots=True)
class Shaped:
    """A rule's memory: what it reads and returns. A matrix argument is the batch of its rows."""

    name: str
    structure: Structure
    span: Span

    def sizes(self, transposed: bool) -> tuple[Size, Size]:
        """Return the sizes of an input and of an output vector."""
        if self.structure.kind == "like":
            return (ROWS, COLUMNS) if transposed else (COLUMNS, ROWS)
        return input_size(self.structure, transposed), output_size(self.structure, transposed)

    def state_shape(self) -> tuple[Size, ...] | None:
        """Return the shape of a state that is one tensor."""
        return (ROWS, COLUMNS) if self.structure.kind == "like" else state_shape(self.structure)

    def state(self, span: Span, name: str) -> Expr:
        """Return the bare memory: its state."""
        shape = self.state_shape()
        type_ = ValueType((ANY, ANY) if shape is None else shape, "token")
        if name == "self":
            return Read(type_, span, "self", Constant(SCALAR, span, 1))
        return State(type_, span, self.name)

    def read(self, scope: Expressions, argument: Expr, node: syntax.Call, name: str) -> Expr:
        """Return the memory read at `argument`, a vector or a matrix of rows."""
        if node.transposed and self.structure.kind != "like" and not has_transpose(self.structure):
            raise scope.findings.error("N0234", f"`{self.name}` has no transpose", node.function_span, "`.T` here")
        into, out = self.sizes(node.transposed)
        shape = argument.type.shape
        if not shape or not (shape[-1] == ANY or same_size(shape[-1], into)):
            raise scope.findings.error(
                "N0214",
                f"`{self.name}` reads [{into}], this is {shape_text(argument.type)}",
                argument.span,
                f"this is {shape_text(argument.type)}",
                secondary=[Label(self.span, "declared here")],
            )
        return Read(ValueType((*shape[:-1], out), "token"), node.span, name, argument, node.transposed)


class RuleObjective(ObjectiveExpressions):
    """The objective of a rule's memory; the rule's parameters stay names in it."""

    def __init__(self, maker: RuleMaker, memory: Shaped, key: ValueType | None, value: ValueType) -> None:
        super().__init__(maker.evaluator, key, value, None)
        self.maker = maker
        self.memory = memory

    def constant(self, node: syntax.Name) -> Expr | None:
        """Return a parameter of the rule, which stays a name."""
        known = any(parameter.name == node.id for parameter in self.maker.node.parameters)
        return Ref(SCALAR, node.span, node.id) if known else None

    def read(self, argument: Expr, node: syntax.Call) -> Expr:
        """Return `self(argument)`."""
        return self.memory.read(self, argument, node, "self")

    def state(self, span: Span) -> Expr:
        """Return the state itself."""
        return self.memory.state(span, "self")


def build_rule_memory(maker: RuleMaker, node: syntax.MemoryDeclaration) -> RuleMemory:
    """Return a rule's memory, checked."""
    return _RuleClauses(maker, node).memory()


class _RuleClauses:
    def __init__(self, maker: RuleMaker, node: syntax.MemoryDeclaration) -> None:
        self.maker = maker
        self.findings = maker.findings
        self.node = node
        self.name = node.names[0]

    def memory(self) -> RuleMemory:
        from nsam.dsl.rules import RuleExpressions

        memory = Shaped(self.name.id, self._structure(), self.name.span)
        scope = RuleExpressions(self.maker, memory)
        learn, minimize = self._needed(syntax.Learn), self._needed(syntax.Minimize)
        by, every = self._needed(syntax.By), self._needed(syntax.Every)
        reads = self._one(syntax.Reads)
        initial = self._initial(RuleExpressions(self.maker))
        context = self._context(scope, memory, learn)
        objective = self._objective(memory, minimize, context)
        period = self._period(every)
        rule = use_rule(self.maker.checker, self.maker.module, by, scope)
        self._check_rule(by, rule, context, every)
        arguments = tuple((name, self.maker.settled(value, (), memory)) for name, value in rule.arguments)
        rule = replace(rule, arguments=arguments)
        self.maker.memories[self.name.id] = memory
        mode: Any = "boundary" if reads is None else reads.mode
        return RuleMemory(
            memory.name,
            memory.structure,
            context,
            objective,
            rule,
            period,
            every.summed,
            mode,
            self.node.span,
            initial,
        )

    def _one(self, kind: type[C]) -> C | None:
        found = cast("list[C]", [clause for clause in self.node.clauses if isinstance(clause, kind)])
        if len(found) > 1:
            first = [Label(found[0].span, "the first one")]
            word = kind.__name__.lower()
            raise self.findings.error(
                "N0220", f"two `{word}` clauses", found[1].span, "the second one", secondary=first
            )
        return found[0] if found else None

    def _needed(self, kind: type[C]) -> C:
        found = self._one(kind)
        if found is None:
            word = kind.__name__.lower()
            raise self.findings.error(
                "N0221",
                f"memory `{self.name.id}` has no `{word}`",
                self.name.span,
                "a memory of a rule learns",
                help="`memory trace : like(self) { learn grad; minimize dot; by gd(lr = 1); every 1 update }`",
            )
        return found

    def _structure(self) -> Structure:
        node = self.node.structure
        if node.kind != "like":
            return self._own_structure(node)
        sizes = node.sizes
        if len(sizes) != 1 or node.named or node.flags or not isinstance(sizes[0], syntax.Name):
            raise self.findings.error("N0219", "`like` takes `self` or a memory", node.span, help="`like(self)`")
        if sizes[0].id == "self":
            return Structure("like", ())
        if sizes[0].id in self.maker.memories:
            return self.maker.memories[sizes[0].id].structure
        raise self.findings.error("N0201", f"unknown memory `{sizes[0].id}`", sizes[0].span, help="`like(self)`")

    def _own_structure(self, node: syntax.Structure) -> Structure:
        """Return the structure of a memory that is not shaped like the host."""
        structure = Structures(self.maker.evaluator).build(node)
        if structure.kind not in ("linear", "mlp") or structure.bias or structure.heads is not None:
            more = " with a bias" if structure.bias else " with heads" if structure.kind in ("linear", "mlp") else ""
            raise self.findings.error(
                "N0222",
                f"a rule cannot have a `{structure.kind}`{more}",
                node.span,
                "makes no sense here",
                help="a memory of gradients is `like(self)`, linear or mlp, without heads and biases",
            )
        for size, written in zip(structure.sizes, node.sizes, strict=False):
            names = size.names if isinstance(size, Poly) else ()
            if any("of self" in name and name not in (*ROWS.names, *COLUMNS.names) for name in names):
                raise self.findings.error(
                    "N0212",
                    "a size in a rule is made of numbers, `rows(self)` and `cols(self)` with + - *",
                    written.span,
                    "a quotient, or another function of the sizes of `self`",
                )
        return structure

    def _initial(self, scope: Any) -> Expr | None:
        """Return what the tensors start from; None is zeros."""
        for clause in self.node.clauses:
            if isinstance(clause, syntax.Reset):
                raise self.findings.error(
                    "N0222", "a memory of a rule is reset with the rule's host", clause.span, "makes no sense here"
                )
        node = self._one(syntax.Init)
        if node is None or node.kind == "zeros":
            return None
        if node.expression is None:
            raise self.findings.error(
                "N0222",
                "nothing learns what a rule's memory starts from",
                node.span,
                "makes no sense here",
                help="`init identity`, or leave it out: it starts at zero",
            )
        value: Expr = scope.build(node.expression)
        parameters = {parameter.name for parameter in self.maker.node.parameters}
        whole = [e for e in walk(value) if not isinstance(e, Constant | Apply)]
        if value.type.shape not in ((), (ANY, ANY)) or any(
            not isinstance(e, Ref) or e.name not in parameters for e in whole
        ):
            raise self.findings.error(
                "N0222",
                "a memory of a rule starts from a number or a multiple of the identity",
                node.span,
                "neither of the two",
                help="`init identity`, or leave it out: it starts at zero",
            )
        return self.maker.settled(value, (ROWS, COLUMNS))  # of each tensor by itself

    def _context(self, scope: Any, memory: Shaped, node: syntax.Learn) -> Context:
        if node.window is not None:
            raise self.findings.error("N0222", "a rule sees updates, not tokens", node.span, "no window here")
        first = scope.build(node.key)
        if node.value is None:
            shape = self._check_state(memory, first, node)
            return Context(None, self.maker.settled(first, shape, memory), None, node.span)
        second = scope.build(node.value)
        read = memory.read(scope, first, syntax.Call(node.span, memory.name, node.span, ()), "self")
        pairs = zip(second.type.shape, read.type.shape, strict=False)
        fits = len(second.type.shape) == len(read.type.shape) and all(a == ANY or same_size(a, b) for a, b in pairs)
        if not fits:
            raise self._mismatch(memory, second, shape_text(read.type))
        into, out = memory.sizes(False)
        first = self.maker.settled(first, (*second.type.shape[:-1], into), memory)
        second = self.maker.settled(second, (*first.type.shape[:-1], out), memory)
        return Context(first, second, None, node.span)

    def _check_state(self, memory: Shaped, value: Expr, node: syntax.Learn) -> tuple[Size, ...]:
        shape = memory.state_shape()
        if shape is None:
            kind = memory.structure.kind
            raise self.findings.error(
                "N0222", f"`{kind}` needs a key and a value", node.span, "no key here", help="`learn key -> value`"
            )
        found = value.type.shape
        fits = len(found) == len(shape) and all(a == ANY or same_size(a, b) for a, b in zip(found, shape, strict=True))
        if not fits:
            raise self._mismatch(memory, value, shape_text(ValueType(shape)))
        return shape

    def _mismatch(self, memory: Shaped, value: Expr, wanted: str) -> Skip:
        return self.findings.error(
            "N0214",
            f"the value that `{memory.name}` learns is {shape_text(value.type)}, not {wanted}",
            value.span,
            f"this is {shape_text(value.type)}",
            secondary=[Label(memory.span, "declared here")],
        )

    def _objective(self, memory: Shaped, node: syntax.Minimize, context: Context) -> Objective:
        if isinstance(node.objective, syntax.Name) and node.objective.id == "task":
            raise self.findings.error("N0222", "the memories of a rule have no task", node.span, "makes no sense here")
        key = None if context.key is None else context.key.type
        return objective_of(RuleObjective(self.maker, memory, key, context.value.type), node)

    def _period(self, node: syntax.Every) -> int:
        if node.unit != "update":
            raise self.findings.error(
                "N0222", "a rule counts updates of its host", node.span, "makes no sense here", help="write `updates`"
            )
        not_adaptive(self.findings, node)
        period = period_of(self.maker.evaluator, node.period)
        if period == float("inf"):
            raise self.findings.error("N0222", "this memory never moves", node.span, "makes no sense here")
        return period  # type: ignore[no-any-return]

    def _check_rule(self, node: syntax.By, use: RuleUse, context: Context, every: syntax.Every) -> None:
        needs = sorted(use.rule.needs & {"key", "err"})
        if needs and context.key is None:
            raise self.findings.error(
                "N0226",
                f"rule `{node.rule}` needs `{needs[0]}`, and this memory's context is gradients without keys",
                node.rule_span,
                "needs the input of a layer",
                secondary=[Label(context.span, "no key here")],
                help="learn `key -> value`, or choose a rule of the gradient alone, such as gd",
            )
        if needs and every.summed:
            raise self.findings.error(
                "N0225",
                f"rule `{node.rule}` needs `{needs[0]}`, and a summed update has only the sum of gradients",
                node.rule_span,
                "needs more than the gradient",
                secondary=[Label(every.span, "one update for the whole period")],
            )
