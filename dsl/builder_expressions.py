# ruff: noqa: D102  (methods are named after the grammar rules that they read)
"""Expressions: from the parser's raw tree to `syntax` nodes, bottom up and without recursion.

One method per grammar rule, called with the rule's children: tokens and what the methods of the rules below returned.
What the grammar leaves open on purpose (units, the order of arguments) is judged here.
"""

from __future__ import annotations

import math
import re
from typing import Any, TypeVar

from lark import Token
from lark.visitors import Transformer_NonRecursive

from nsam.dsl import syntax as s
from nsam.dsl.diagnostics import Fix, Label, Report
from nsam.dsl.limits import MAX_DEPTH, MAX_DIGITS
from nsam.dsl.records import dataclass
from nsam.dsl.spans import Source, Span
from nsam.dsl.words import UNITS, alternatives, nearest

Children = list[Any]
T = TypeVar("T")

_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


@dataclass(frozen=True, slots=True)
class Many(s.Node):
    """Several nodes between brackets."""

    items: tuple[Any, ...]


def nodes(children: Children, kind: type[T]) -> tuple[T, ...]:
    """Return the children that are nodes of a kind."""
    return tuple(child for child in children if isinstance(child, kind))


def tokens(children: Children, kind: str) -> list[Token]:
    """Return the children that are tokens of a terminal."""
    return [child for child in children if isinstance(child, Token) and child.type == kind]


def _short(number: str) -> str:
    return number if len(number) < 40 else number[:20] + "…"


def _has_place(child: object) -> bool:
    """Whether a child counts for the span of the whole: anything but the separators."""
    return type(child) is not Token or child.type not in ("_NEWLINE", "SEMICOLON")


class ExpressionBuilder(Transformer_NonRecursive[Token, Any]):
    """Builds the expressions of one piece of `source` that starts at character `offset`."""

    def __init__(self, source: Source, report: Report, offset: int = 0) -> None:
        super().__init__(visit_tokens=False)
        self.source = source
        self.report = report
        self.offset = offset
        self.depths: dict[int, int] = {}
        self.groups: dict[int, tuple[s.Expression, Span]] = {}  # what stands between ( ), with the span of both

    # --- spans, depth, words ---

    def at(self, token: Token) -> Span:
        """Return the span of a token."""
        start, end = token.start_pos, token.end_pos
        return Span(self.source, (start or 0) + self.offset, (end or 0) + self.offset)

    def over(self, children: Children) -> Span:
        """Return the span from the first child to the last, separators at the ends left out."""
        first = next(filter(_has_place, children), None)
        if first is None:
            return Span(self.source, self.offset, self.offset)
        return self._span(first).to(self._span(next(filter(_has_place, reversed(children)))))

    def _span(self, child: Token | s.Node) -> Span:
        if isinstance(child, Token):
            return self.at(child)
        return self.groups[id(child)][1] if id(child) in self.groups else child.span

    def deeper(self, node: T, below: tuple[s.Node, ...]) -> T | s.Name:
        """Note the depth of `node`; past the limit say so and cut the tree here."""
        depth = 1 + max((self.depths.get(id(child), 0) for child in below), default=0)
        if depth <= MAX_DEPTH:
            self.depths[id(node)] = depth
            return node
        span: Span = node.span  # type: ignore[attr-defined]
        message = f"this expression is more than {MAX_DEPTH} operations deep"
        start = Span(self.source, span.start, min(span.end, span.start + 40))
        help_text = "split it: name parts of it with `let`"
        if all(found.code != "N0004" for found in self.report.diagnostics):
            self.report.add("N0004", message, start, "starts here", help=help_text)
        return s.Name(span, "x")

    def word(self, token: Token, choices: tuple[str, ...], what: str) -> str:
        """Return the token's word if it is one of `choices`; otherwise report it and return the first choice."""
        if token in choices:
            return str(token)
        self.unknown_word(self.at(token), str(token), choices, what)
        return choices[0]

    def unknown_word(
        self, span: Span, word: str, choices: tuple[str, ...], what: str, foreign: str | None = None
    ) -> None:
        """Report a word that is none of `choices`; `foreign` is what it stands for in other languages."""
        guess = foreign if foreign in choices else nearest(word, choices)
        fix = None if guess is None else Fix(span, guess)
        message = f"`{word}` is no {what}"
        hint = None if guess is None else f"did you mean `{guess}`?"
        self.report.add("N0111", message, span, f"expected {alternatives(choices)}", help=hint, fix=fix)

    def unit(self, token: Token) -> str:
        """Return the singular unit of a period."""
        singular = str(token).removesuffix("s")
        if singular in UNITS:
            return singular
        self.unknown_word(self.at(token), str(token), tuple(unit + "s" for unit in UNITS), "unit of a period")
        return UNITS[0]

    # --- expressions ---

    def number(self, children: Children) -> s.Number:
        token = children[0]
        span = self.at(token)
        if token == "inf":
            return s.Number(span, math.inf, False)
        if re.fullmatch("[0-9]+", token):
            if len(token.lstrip("0")) > MAX_DIGITS:
                self.too_large(span)
                return s.Number(span, 0, True)
            return s.Number(span, int(token), True)
        value = float(token)
        if math.isinf(value):
            self.too_large(span)
        elif value == 0 and re.search("[1-9]", re.split("[eE]", token)[0]):
            message = f"the number {_short(span.text)} is too small"
            help_text = "the smallest numbers above 0 are about 4.9e-324"
            self.report.add("N0115", message, span, "would be 0", help=help_text)
        return s.Number(span, value, False)

    def too_large(self, span: Span) -> None:
        message = f"the number {_short(span.text)} is too large"
        help_text = f"whole numbers have at most {MAX_DIGITS} digits, others go up to 1.7e308; infinity is `inf`"
        self.report.add("N0115", message, span, "too large", help=help_text)

    def text(self, children: Children) -> s.Text:
        return s.Text(self.at(children[0]), self.unescaped(children[0]))

    def unescaped(self, token: Token) -> str:
        """Return the contents of a string literal."""

        def replace(match: re.Match[str]) -> str:
            if match[1] not in _ESCAPES:
                start = self.at(token).start + 1 + match.start()
                span = Span(self.source, start, start + 2)
                help_text = 'a string knows \\n, \\t, \\" and \\\\; write \\\\ for a backslash'
                self.report.add("N0117", f"unknown escape `{match[0]}` in a string", span, help=help_text)
            return _ESCAPES.get(match[1], match[1])

        return re.sub(r"\\(.)", replace, token[1:-1])

    def boolean(self, children: Children) -> s.Boolean:
        return s.Boolean(self.at(children[0]), children[0] == "true")

    def name(self, children: Children) -> s.Name:
        return s.Name(self.at(children[0]), str(children[0]))

    def list_of(self, children: Children) -> s.Expression:
        items = nodes(children, s.Node)
        return self.deeper(s.ListOf(self.over(children), items), items)  # type: ignore[arg-type]

    def group(self, children: Children) -> s.Expression:
        inner: s.Expression = children[1]
        self.groups[id(inner)] = (inner, self.over(children))
        return inner

    def negative(self, children: Children) -> s.Expression:
        return self.deeper(s.Unary(self.over(children), "-", children[1]), (children[1],))

    def binary(self, children: Children) -> s.Expression:
        left, operator, right = children
        return self.deeper(s.Binary(self.over(children), str(operator), left, right), (left, right))

    def call(self, children: Children) -> s.Expression:
        arguments = children[-1].items
        name = children[0]
        transposed = bool(tokens(children, "TRANSPOSE"))
        node = s.Call(self.over(children), str(name), self.at(name), arguments, transposed)
        return self.deeper(node, tuple(argument.value for argument in arguments))

    def arguments(self, children: Children) -> Many:
        found: list[s.Argument] = []
        for child in nodes(children, s.Node):
            argument = child if isinstance(child, s.Argument) else s.Argument(child.span, None, child)  # type: ignore[arg-type]
            if argument.name is None and found and found[-1].name is not None:
                message = "an argument without a name cannot follow one with a name"
                label = Label(found[-1].span, "this one has a name")
                help_text = "move it to the front, or give it its name"
                self.report.add("N0114", message, argument.span, secondary=[label], help=help_text)
            found.append(argument)
        return Many(self.over(children), tuple(found))

    def named(self, children: Children) -> s.Argument:
        return s.Argument(self.over(children), str(children[0]), children[2])
