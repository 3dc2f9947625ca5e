"""Expressions of systems: values, reads of memories, `chain`, `mix`, and systems used by systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nsam.dsl import syntax
from nsam.dsl.checked import Apply, Constant, Expr, Output, Read, Ref, State, ValueType, walk
from nsam.dsl.constants import Evaluator
from nsam.dsl.diagnostics import Label
from nsam.dsl.expressions import Expressions
from nsam.dsl.findings import Skip, attempt_all, did_you_mean
from nsam.dsl.functions import RULE_CONSTANTS, names_in
from nsam.dsl.memories import MOST_MEMBERS
from nsam.dsl.sizes import divides
from nsam.dsl.spans import Span
from nsam.dsl.structures import has_transpose, input_size, value_of
from nsam.dsl.types import SCALAR, join, same_shape, same_size, shape_text
from nsam.dsl.words import counted

if TYPE_CHECKING:
    from nsam.dsl.bodies import Body
    from nsam.dsl.memories import Info

_MIXED = ("weights", "memories", "x")


def read_memory(
    builder: Expressions, info: Info, name: str, argument: Expr, node: syntax.Call, per: Any = None
) -> Expr:
    """Return `m(x)` or `m.T(x)` with its type; `name` is "self" inside the memory's own clauses."""
    structure, findings = info.structure, builder.findings
    if node.transposed and not has_transpose(structure):
        raise findings.error(
            "N0234",
            f"`{structure.kind}` memory `{info.path}` has no transpose",
            node.function_span,
            "`.T` here",
            secondary=[Label(info.span, "declared here")],
            help="a transpose is for linear memories without bias and for tables",
        )
    if structure.kind == "vector":
        raise findings.error(
            "N0206",
            f"`{info.path}` is a vector and reads nothing",
            node.function_span,
            "called here",
            secondary=[Label(info.span, "declared here")],
            help=f"its value is written `{node.function}`, without parentheses",
        )
    if structure.kind == "attention":
        return _attend(builder, info, name, argument, node)
    _check_argument(builder, info, argument, node.transposed)
    if structure.kind == "conv" and argument.type.per != "token":
        raise findings.error(
            "N0245", "a convolution runs over tokens", argument.span, "this does not vary with the token"
        )
    type_ = value_of(structure, join((argument.type.per, per or info.per)), node.transposed)
    return Read(type_, node.span, name, argument, node.transposed)


def _check_argument(builder: Expressions, info: Info, argument: Expr, transposed: bool) -> None:
    structure, type_ = info.structure, argument.type
    declared = Label(info.span, f"`{info.path}` is declared here")
    if structure.kind == "table" and not transposed:
        if type_.vocab is None:
            raise builder.findings.error(
                "N0216",
                f"table `{info.path}` is read with a token, not with a vector",
                argument.span,
                f"this is {shape_text(type_)}",
                secondary=[declared],
            )
        if not same_size(type_.vocab, structure.sizes[0]):
            raise builder.findings.error(
                "N0214",
                f"table `{info.path}` has {counted(structure.sizes[0], 'row')}, the tokens are {type_.vocab}",
                argument.span,
                f"this is {shape_text(type_)}",
                secondary=[declared],
            )
        return
    if type_.vocab is not None:
        raise builder.findings.error(
            "N0216",
            "a token is a name, not a vector",
            argument.span,
            f"this is {shape_text(type_)}",
            secondary=[declared],
            help="read a table with it: `memory embed : table(vocab, dim)`, then `embed(tokens)`",
        )
    expected = input_size(structure, transposed)
    if not same_shape(type_.shape, (expected,)):
        raise builder.findings.error(
            "N0214",
            f"`{info.path}` reads [{expected}], this is {shape_text(type_)}",
            argument.span,
            f"this is {shape_text(type_)}",
            secondary=[Label(info.span, f"`{info.path}` reads [{expected}]: declared here")],
            help=number_as_vector(argument, f"[{expected}]") if builder.place == "system" else None,
        )


def number_as_vector(expr: Expr, expected: str) -> str | None:
    """Return how a number is written where a vector of one is wanted; None where something else does not fit."""
    if expected != "[1]" or expr.type.shape or expr.type.vocab is not None:
        return None
    return f"a number as a vector: `concat({expr.span.text})`"


def _attend(builder: Expressions, info: Info, name: str, argument: Expr, node: syntax.Call) -> Expr:
    """Check queries against keys: [heads * d] against [kv_heads * d]; the result is [heads * d_value]."""
    findings, structure = builder.findings, info.structure
    if info.kept is None:
        raise Skip
    key, value = info.kept
    heads: Any = structure.heads
    kv_heads: Any = structure.kv_heads or heads
    declared = [Label(info.span, f"`{info.path}` is declared here")]
    query = argument.type
    if query.vocab is not None or len(query.shape) != 1:
        raise findings.error(
            "N0214", "attention reads a vector", argument.span, f"this is {shape_text(query)}", secondary=declared
        )
    if divides(heads, query.shape[0]) is False:
        raise findings.error(
            "N0215",
            f"{heads} heads do not divide {query.shape[0]}",
            argument.span,
            f"this is {shape_text(query)}",
            secondary=declared,
        )
    if not same_size(query.shape[0] // heads, key.shape[0] // kv_heads):
        raise findings.error(
            "N0214",
            f"queries of {counted(query.shape[0] // heads, 'number')} a head meet keys of {key.shape[0] // kv_heads}",
            argument.span,
            f"this is {shape_text(query)}",
            secondary=declared,
        )
    size = value.shape[0] if structure.kv_heads is None else value.shape[0] // kv_heads * heads
    return Read(ValueType((size,), "token"), node.span, name, argument)


class SystemExpressions(Expressions):
    """Expressions at statement `position` of a system's body; `own` is the memory whose clauses these are."""

    def __init__(self, body: Body, position: int, evaluator: Evaluator, own: Info | None = None) -> None:
        super().__init__(body.findings, evaluator)
        self.body = body
        self.position = position
        self.own = own

    def callables(self) -> list[str]:
        """Return memories, systems and functions."""
        return [*self.body.memories, *self.body.module.systems, *names_in("system"), "chain", "mix"]

    def hint(self, name: str, known: Sequence[str]) -> str | None:
        """Return what to write instead of a name that means nothing here."""
        if name in ("zeros", "ones"):
            return f"write `{int(name == 'ones')}`: a number fits every shape"
        return super().hint(name, known)

    def name(self, node: syntax.Name) -> Expr:
        """Return a value, a parameter as a constant, or a vector's state."""
        value = self.body.value(node.id, self.position)
        if value is not None:
            return self._at(value, node.span)
        constant = self.constant(node)
        if constant is not None:
            return constant
        if node.id == "self" and self.own is not None:
            return self._state(self.own, "self", node)
        if node.id in self.body.memories:
            return self._state(self.body.single(node.id, node.span), node.id, node)
        raise self._unknown(node)

    def _at(self, value: Expr, span: Span) -> Expr:
        if isinstance(value, Ref):
            return Ref(value.type, span, value.name)
        if isinstance(value, Output):
            return Output(value.type, span, value.child, value.name)
        return value

    def _state(self, info: Info, name: str, node: syntax.Name) -> Expr:
        if info.structure.kind != "vector":
            raise self.findings.error(
                "N0206",
                f"`{node.id}` is a memory, not a value",
                node.span,
                "a bare name here",
                secondary=[Label(info.span, "declared here")],
                help=f"read it: `{node.id}(x)`",
            )
        type_ = ValueType(info.structure.sizes, info.per)
        if name == "self":
            return Read(type_, node.span, "self", Constant(SCALAR, node.span, 1))
        return State(type_, node.span, info.path)

    def _unknown(self, node: syntax.Name) -> Skip:
        body = self.body
        outside = body.outer_memory(node.id)
        if outside is not None:
            return body.refuse_outer(node.id, outside, node.span)
        if node.id in body.inner:
            return self.findings.error(
                "N0206",
                f"`{node.id}` lives inside the repeat",
                node.span,
                "not visible here",
                secondary=[Label(body.inner[node.id].span, "declared here, anew in each pass")],
                help="reassign a name declared before the repeat to carry a value out of it",
            )
        if node.id in body.module.refused:
            return Skip()
        kind = body.module.place_of(node.id)
        if kind is not None or node.id in names_in("system"):
            what = "function" if kind is None else kind[0]
            return self.findings.error("N0206", f"`{node.id}` is a {what}, not a value", node.span, "not a value")
        if node.id == "self":
            return self._no_self(node.span)
        known = [*body.visible_values(), *self.evaluator.names, *body.memories]
        if node.id in RULE_CONSTANTS:
            message, help_text = f"`{node.id}` is not for systems", self.hint(node.id, known)
            return self.findings.error("N0244", message, node.span, "allowed in rules only", help=help_text)
        return self.findings.error(
            "N0201",
            f"unknown name `{node.id}`",
            node.span,
            "nothing of this name here",
            help=self.hint(node.id, known),
        )

    def _no_self(self, span: Span) -> Skip:
        return self.findings.error(
            "N0206", "`self` is the memory whose clauses these are", span, "not in a clause", help="name the memory"
        )

    def special(self, node: syntax.Call) -> Expr | None:
        """Read a memory, chain or mix memories, or use a system."""
        name, body = node.function, self.body
        if name == "self" and self.own is not None:
            return self._read(self.own, "self", node)
        if name in body.memories:
            info = body.single(name, node.function_span)
            return self._read(info, info.path, node)
        outside = body.outer_memory(name)
        if outside is not None:
            raise body.refuse_outer(name, outside, node.function_span)
        if name in body.module.systems:
            return body.calls.call(node, self)
        if name == "chain":
            return self._chain(node)
        if name == "mix":
            return self._mix(node)
        if name == "self":
            raise self._no_self(node.function_span)
        if name in body.inner or body.value(name, self.position) is not None or name in body.module.rules:
            raise self._not_callable(node)
        return None

    def _not_callable(self, node: syntax.Call) -> Skip:
        what = "a rule" if node.function in self.body.module.rules else "a value"
        if node.function in self.body.inner:
            what = "declared inside the repeat"
        inner = self.body.inner.get(node.function)
        return self.findings.error(
            "N0206",
            f"`{node.function}` is {what} and cannot be called here",
            node.function_span,
            "called here",
            secondary=[] if inner is None else [Label(inner.span, "declared here, anew in each pass")],
        )

    def _read(self, info: Info, name: str, node: syntax.Call) -> Expr:
        (value,) = self.arguments(node, ["x"], ["x"], f"memory `{node.function}`")
        assert value is not None
        return read_memory(self, info, name, self.build(value), node)

    # --- chain and mix ---

    def _chain(self, node: syntax.Call) -> Expr:
        memories, value = self.arguments(node, ["memories", "x"], ["memories", "x"], "`chain`")
        assert memories is not None
        assert value is not None
        infos = self._list(memories)
        result = self.build(value)
        for info in infos:
            call = syntax.Call(node.span, info.path, memories.span, ())
            result = read_memory(self, info, info.path, result, call)
        return result

    def _mix(self, node: syntax.Call) -> Expr:
        weights, memories, value = self.arguments(node, _MIXED, _MIXED, "`mix`")
        assert weights is not None
        assert memories is not None
        assert value is not None
        infos = self._list(memories)
        weight, argument = attempt_all([lambda: self.build(weights), lambda: self.build(value)])
        count = self.body.list_length(memories, self.evaluator)
        if not same_shape(weight.type.shape, (count,)) or weight.type.vocab is not None:
            raise self.findings.error(
                "N0214",
                f"`mix` needs {counted(count, 'weight')}, one for each memory",
                weights.span,
                f"this is {shape_text(weight.type)}",
                secondary=[Label(memories.span, counted(count, "memory"))],
            )
        weight, argument = self._once(weight, "weights"), self._once(argument, "mixed")
        call = syntax.Call(node.span, "mix", memories.span, ())
        total: Expr | None = None
        for index, info in enumerate(infos):
            share_type = ValueType((), weight.type.per)
            share = Apply(share_type, weights.span, "index", (weight,), (("i", index),))
            part = self.apply("mul", [share, read_memory(self, info, info.path, argument, call)], node.span)
            total = part if total is None else self.apply("add", [total, part], node.span)
        assert total is not None
        return total

    def _once(self, expr: Expr, name: str) -> Expr:
        """Bind an expression that `mix` mentions several times, unless it is a name already."""
        if isinstance(expr, Ref | State | Output | Constant):
            return expr
        if any(isinstance(part, Read) and part.memory == "self" for part in walk(expr)):
            raise self.findings.error(
                "N0206", "`mix` cannot read the memory being declared", expr.span, "`self` in here"
            )
        return self.body.bind(name, expr)

    def _list(self, node: syntax.Expression) -> list[Info]:
        """Return the memories that `node` names: a memory list, or a list of memories."""
        items = node.items if isinstance(node, syntax.ListOf) else (node,)
        found: list[Info] = []
        for item in items:
            if not isinstance(item, syntax.Name) or item.id not in self.body.memories:
                outside = self.body.outer_memory(item.id) if isinstance(item, syntax.Name) else None
                if outside is not None and isinstance(item, syntax.Name):
                    raise self.body.refuse_outer(item.id, outside, item.span)
                known = list(self.body.memories)
                name = item.id if isinstance(item, syntax.Name) else ""
                raise self.findings.error(
                    "N0206",
                    "expected a memory, or a list of memories",
                    item.span,
                    "not a memory",
                    help=did_you_mean(name, known),
                )
            members = self.body.memories[item.id].members
            if not members:
                raise Skip
            found.extend(members)
        if not found:
            raise self.findings.error("N0211", "this list is empty", node.span, "no memory at all")
        if len(found) > MOST_MEMBERS:
            raise self.findings.error(
                "N0240", f"more than {MOST_MEMBERS} memories in a list", node.span, f"{len(found)} here"
            )
        return found
