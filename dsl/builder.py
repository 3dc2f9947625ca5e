# ruff: noqa: D102  (methods are named after the grammar rules that they read)
"""Statements, memories, declarations and files: from the parser's raw tree to `syntax` nodes.

One method per grammar rule, called with the rule's children: tokens and what the methods of the rules below returned.
What the grammar leaves open on purpose (words that mean something in one place only, the order of a structure's
arguments, which statement belongs where) is judged here.
"""

from __future__ import annotations

from typing import Any

from nsam.dsl import syntax as s
from nsam.dsl.builder_expressions import Children, ExpressionBuilder, Many, nodes, tokens
from nsam.dsl.diagnostics import Fix, Label
from nsam.dsl.records import dataclass
from nsam.dsl.spans import Span
from nsam.dsl.words import (
    EDITION,
    FIELDS,
    FOREIGN,
    MODES,
    RESERVED,
    SETTINGS,
    TARGETS,
    TRANSFERS,
    TYPES,
)


@dataclass(frozen=True, slots=True)
class _Chain(s.Node):
    """`a -> b -> c` among the arguments of a structure."""

    sizes: tuple[s.Expression, ...]


@dataclass(frozen=True, slots=True)
class _Index(s.Node):
    """`[p in list]`."""

    variable: s.Identifier
    values: s.Expression


@dataclass(frozen=True, slots=True)
class _Rules(s.Node):
    """`by a(…) for matrices, b(…) for others`."""

    uses: tuple[s.By, ...]


@dataclass(frozen=True, slots=True)
class _Docstring(s.Node):
    text: str


def _type_of(default: s.Expression | None) -> str:
    """The type that a parameter's default tells; `int` for what tells none."""
    if isinstance(default, s.Unary):
        return _type_of(default.operand)
    if isinstance(default, s.Number):
        return "int" if default.is_int else "float"
    if isinstance(default, s.ListOf):
        return f"list[{_type_of(default.items[0] if default.items else None)}]"
    return "str" if isinstance(default, s.Text) else "bool" if isinstance(default, s.Boolean) else "int"


class Builder(ExpressionBuilder):
    """Builds the tree of one piece of `source` that starts at character `offset`."""

    # --- parameters and types ---

    def identifier(self, children: Children) -> s.Identifier:
        token = children[0]
        if token in RESERVED:
            message = f"`{token}` is a word of the language and cannot be a name"
            self.report.add("N0113", message, self.at(token), "choose another name")
        return s.Identifier(self.at(token), str(token))

    def names(self, children: Children) -> Many:
        return Many(self.over(children), nodes(children, s.Identifier))

    def parameter(self, children: Children) -> s.Parameter:
        kinds = nodes(children, s.TypeName)
        default = children[-1] if tokens(children, "EQUAL") else None
        return s.Parameter(self.over(children), children[0].id, kinds[0] if kinds else None, default)

    def parameters(self, children: Children) -> Many:
        return Many(self.over(children), nodes(children, s.Parameter))

    def type_name(self, children: Children) -> s.TypeName:
        span = self.over(children)
        kind = self.word(children[0], TYPES, "type of a parameter")
        element = None
        if len(children) > 1:
            element = self.word(children[2], TYPES[:-1], "type of a list's elements")
            if kind != "list":
                help_text = f"write `list[{element}]` or `{kind}`"
                self.report.add("N0111", f"`{kind}` has no elements", span, "only lists have", help=help_text)
        elif kind == "list":
            message, help_text = "a list says what it holds", "write `list[int]`, for instance"
            self.report.add("N0111", message, span, "expected `list[…]`", help=help_text)
        return s.TypeName(span, kind, element)

    # --- memories ---

    def memory(self, children: Children) -> s.MemoryDeclaration:
        structure = nodes(children, s.Structure)[0]
        index = next(((found.variable, found.values) for found in nodes(children, _Index)), None)
        block = children[-1] if isinstance(children[-1], Many) else None
        clauses = () if block is None else block.items
        return s.MemoryDeclaration(
            self.over(children), children[1].items, structure, clauses, index, braced=block is not None
        )

    def index(self, children: Children) -> _Index:
        return _Index(self.over(children), children[1], children[3])

    def clauses(self, children: Children) -> Many:
        found: list[s.Node] = []
        for child in nodes(children, s.Node):
            found.append(self.single_rule(child) if isinstance(child, _Rules) else child)
        return Many(self.over(children), tuple(found))

    def single_rule(self, rules: _Rules) -> s.By:
        """Return the one rule of a memory; `for` and several rules belong to `train`."""
        by = rules.uses[0]
        if len(rules.uses) > 1 or by.targets is not None:
            message = "a memory has one rule, for all of its state"
            help_text = "`for matrices` and a second rule belong to the `by` of a `train` declaration"
            self.report.add("N0112", message, rules.span, "expected one rule", help=help_text)
        return by

    def structure(self, children: Children) -> s.Structure:
        name = children[0]
        sizes: list[s.Expression] = []
        named: list[s.Argument] = []
        flags: list[s.Name] = []
        arrows = False
        for child in nodes(children, s.Node):
            if isinstance(child, s.Argument):
                named.append(child)
            elif isinstance(child, _Chain) and not (sizes or named or flags):
                arrows = True
                sizes.extend(child.sizes)
            elif not (arrows or named or flags) and not isinstance(child, _Chain):
                sizes.append(child)  # type: ignore[arg-type]
            elif isinstance(child, s.Name):
                flags.append(child)
            else:
                self.misplaced_size(child)
        return s.Structure(
            self.over(children), str(name), self.at(name), tuple(sizes), arrows, tuple(named), tuple(flags)
        )

    def misplaced_size(self, node: s.Node) -> None:
        """Report a size that stands behind the place for sizes."""
        what = "this chain of sizes" if isinstance(node, _Chain) else "this size"
        message = f"{what} stands too late in the structure"
        help_text = "sizes come first, as `a -> b` or `n, dim`; then `name = value`; then flags such as `residual`"
        self.report.add("N0119", message, node.span, "expected `name = value` or a flag", help=help_text)

    def chain(self, children: Children) -> _Chain:
        sizes = nodes(children, s.Node)
        return _Chain(self.over(children), sizes)  # type: ignore[arg-type]

    # --- clauses ---

    def learn(self, children: Children) -> s.Learn:
        value = children[3] if tokens(children, "ARROW") else None
        if not tokens(children, "OVER"):
            return s.Learn(self.over(children), children[1], value)
        self.tokens_only(children[-1], "a window")
        return s.Learn(self.over(children), children[1], value, children[-2])

    def tokens_only(self, token: Any, what: str) -> None:
        """Check the unit of something that is counted in tokens."""
        if self.unit(token) != "token":
            message = f"{what} is counted in tokens"
            self.report.add("N0111", message, self.at(token), "expected `tokens`", fix=Fix(self.at(token), "tokens"))

    def minimize(self, children: Children) -> s.Minimize:
        return s.Minimize(self.over(children), children[1])

    def by(self, children: Children) -> _Rules:
        return _Rules(self.over(children), nodes(children, s.By))

    def rule_use(self, children: Children) -> s.By:
        name = children[0]
        arguments = next((child.items for child in nodes(children, Many)), ())
        targets = self.word(children[-1], TARGETS, "kind of parameter") if tokens(children, "FOR") else None
        return s.By(self.over(children), str(name), self.at(name), arguments, targets)

    def every(self, children: Children) -> s.Every:
        expressions = nodes(children, s.Node)
        words = tokens(children, "WORD")
        adaptive = bool(tokens(children, "WHEN"))
        if adaptive:
            self.word(words.pop(), ("surprise",), "measure to decide by")
        if len(words) > 1:
            self.word(words[1], ("summed",), "option of `every`")
        slowest = expressions[1] if tokens(children, "DOTS") else None
        threshold = expressions[-1] if adaptive else None
        span = self.over(children)
        if (slowest is None) is adaptive:
            self.half_adaptive(span, adaptive)
            slowest = threshold = None
        return s.Every(span, expressions[0], self.unit(words[0]), len(words) > 1, slowest, threshold)  # type: ignore[arg-type]

    def half_adaptive(self, span: Span, adaptive: bool) -> None:
        """Report a condition without a range of periods, or a range without a condition."""
        missing = "a range of periods" if adaptive else "a condition"
        help_text = "write `every 16..256 tokens when surprise > 0.5`"
        self.report.add("N0120", f"an adaptive period needs {missing}", span, f"{missing} is missing", help=help_text)

    def reads(self, children: Children) -> s.Reads:
        return s.Reads(self.over(children), self.word(children[1], MODES, "way to read a memory"))

    def reset_every(self, children: Children) -> s.Reset:
        self.tokens_only(children[3], "the distance of resets")
        return s.Reset(self.over(children), "every", children[2])

    def reset_per(self, children: Children) -> s.Reset:
        self.word(children[2], ("sequence",), "time to reset at")
        return s.Reset(self.over(children), "sequence")

    def reset_word(self, children: Children) -> s.Reset:
        self.word(children[1], ("never",), "time to reset at")
        return s.Reset(self.over(children), "never")

    def init_learned(self, children: Children) -> s.Init:
        deviation = None
        if len(children) > 2:
            self.word(children[2], ("normal",), "distribution of an initial state")
            deviation = children[4]
        return s.Init(self.over(children), "learned", deviation)

    def init_expression(self, children: Children) -> s.Init:
        span, value = self.over(children), children[1]
        if isinstance(value, s.Name) and value.id == "zeros":
            return s.Init(span, "zeros")
        return s.Init(span, "expression", expression=value)

    # --- statements ---

    def block(self, children: Children) -> Many:
        return Many(self.over(children), nodes(children, s.Node))

    def input(self, children: Children) -> s.InputDeclaration:
        per_sequence = bool(tokens(children, "PER"))
        if per_sequence:
            self.word(children[-1], ("sequence",), "extent of an input")
        return s.InputDeclaration(self.over(children), children[1], children[3], per_sequence)

    def shape(self, children: Children) -> s.ValueShape:
        return s.ValueShape(self.over(children), nodes(children, s.Node))  # type: ignore[arg-type]

    def token_shape(self, children: Children) -> s.ValueShape:
        self.word(children[0], ("token",), "type of an input")
        return s.ValueShape(self.over(children), (), children[2])

    def let(self, children: Children) -> s.Let:
        return s.Let(self.over(children), children[1], children[3])

    def assign(self, children: Children) -> s.Assign:
        return s.Assign(self.over(children), children[0], children[2])

    def update(self, children: Children) -> s.Update:
        return s.Update(self.over(children), children[0], children[2])

    def repeat(self, children: Children) -> s.Repeat:
        return s.Repeat(self.over(children), children[1], children[2].items)

    def transfer(self, children: Children) -> s.TransferDeclaration:
        kind = self.word(children[-1], TRANSFERS, "kind of transfer")
        return s.TransferDeclaration(
            self.over(children), children[1].items, children[3].items, kind, self.at(children[-1])
        )

    def output(self, children: Children) -> s.Output:
        return s.Output(self.over(children), children[1])

    def state(self, children: Children) -> s.StateDeclaration:
        return s.StateDeclaration(self.over(children), children[1], children[3])

    def setting(self, children: Children) -> s.Field:
        token = children[0]
        if token not in SETTINGS:
            self.unknown_word(self.at(token), str(token), FIELDS, "field of `train`", FOREIGN.get(token))
        return s.Field(self.over(children), str(token) if token in SETTINGS else SETTINGS[0], children[1])

    # --- declarations ---

    def rule(self, children: Children) -> s.RuleDeclaration:
        body = children[3].items
        self.check_body(body, in_rule=True)
        return s.RuleDeclaration(self.over(children), children[1], children[2].items, body)

    def system(self, children: Children) -> s.SystemDeclaration:
        parameters, body = children[2].items, children[3].items
        for parameter in parameters:
            if parameter.type is None:
                message = f"parameter `{parameter.name}` of a system needs a type"
                end = parameter.span.start + len(parameter.name)
                kind = _type_of(parameter.default)
                fix = Fix(Span(self.source, end, end), f": {kind}")
                span = Span(self.source, parameter.span.start, end)
                self.report.add("N0110", message, span, f"expected `: {kind}` or another type", fix=fix)
        self.check_body(body, in_rule=False)
        return s.SystemDeclaration(self.over(children), children[1], parameters, body)

    def check_body(self, body: tuple[s.Statement, ...], *, in_rule: bool) -> None:
        """Report statements that belong into the other kind of body."""
        for statement in body:
            if in_rule:
                self.check_in_rule(statement)
            elif isinstance(statement, s.Repeat):
                self.check_body(statement.body, in_rule=False)
            else:
                self.check_in_system(statement)

    def check_place(self, node: object, place: str) -> None:
        """Report a statement or clause that was read on its own and does not belong into its place."""
        if place in ("rule", "system"):
            self.check_body((node,), in_rule=place == "rule")  # type: ignore[arg-type]
        elif place == "clause" and isinstance(node, _Rules):
            self.single_rule(node)

    def check_in_rule(self, statement: s.Statement) -> None:
        if isinstance(statement, s.Assign):
            name = statement.name
            message = f"a rule updates `{name.id}` with `<-`, not `=`"
            help_text = f"write `{name.id} <- …`"
            if name.id != "self":
                help_text += f" for a state, `let {name.id} = …` for a new name"
            self.report.add("N0107", message, name.span, help=help_text)
        elif isinstance(statement, s.InputDeclaration | s.Output | s.Repeat | s.TransferDeclaration):
            self.misplaced(statement, "a rule", "a rule has `state`, `memory`, `let` and `<-` updates")

    def check_in_system(self, statement: s.Statement) -> None:
        if isinstance(statement, s.Update):
            name = statement.target
            message = f"a system assigns `{name.id}` with `=`; `<-` updates the state of a rule"
            self.report.add("N0107", message, name.span, help=f"write `{name.id} = …`, inside a `repeat`")
        elif isinstance(statement, s.StateDeclaration):
            help_text = "a memory is what has state in a system: `memory name : vector(n) { … }`"
            self.misplaced(statement, "a system", help_text)

    def misplaced(self, statement: s.Statement, where: str, help_text: str) -> None:
        """Report a statement in a body that cannot have it."""
        word = statement.span.text.split(None, 1)[0]
        span = Span(self.source, statement.span.start, statement.span.start + len(word))
        self.report.add("N0112", f"`{word}` does not belong in {where}", span, help=help_text)

    def train(self, children: Children) -> s.TrainDeclaration:
        fields: list[s.Node] = []
        for child in nodes(children[2:], s.Node):
            fields.extend(child.uses if isinstance(child, _Rules) else [child])
        return s.TrainDeclaration(self.over(children), children[1], tuple(fields))  # type: ignore[arg-type]

    # --- files ---

    def use(self, children: Children) -> s.Use:
        source = children[1]
        names = nodes(children, Many)[0].items
        if source.type == "STRING":
            return s.Use(self.over(children), None, self.unescaped(source), names)
        return s.Use(self.over(children), str(source), None, names)

    def docstring(self, children: Children) -> _Docstring:
        return _Docstring(self.at(children[0]), str(children[0])[3:-3].replace("\r\n", "\n"))

    def edition(self, children: Children) -> s.Node:
        return s.Node(self.over(children))

    def file(self, children: Children) -> s.File:
        uses = nodes(children, s.Use)
        declarations = nodes(children, s.RuleDeclaration | s.SystemDeclaration | s.TrainDeclaration)  # type: ignore[arg-type]
        for use in uses:
            if declarations and use.span.start > declarations[0].span.start:
                label = Label(declarations[0].name.span, "the first declaration")
                message = "`use` lines stand before the first declaration"
                self.report.add("N0112", message, use.span, "too late", secondary=[label], help="move it to the top")
        docstring = next((found.text for found in nodes(children, _Docstring)), None)
        return s.File(self.over(children), EDITION, docstring, uses, declarations)
