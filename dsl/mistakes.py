"""What to say when the grammar stops: the common mistakes by name, everything else as what was expected and found.

`describe` tries the rules of `_RULES` in order; each looks at where the parser stopped (`Stop`) and either reports the
mistake that it knows and returns True, or leaves it to the next one. The last one always reports.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsam.dsl.diagnostics import Fix, Report
from nsam.dsl.spans import Source, Span
from nsam.dsl.words import (
    CLAUSES,
    DECLARATIONS,
    FIELDS,
    RESERVED,
    RULE_STATEMENTS,
    SETTINGS,
    SYSTEM_STATEMENTS,
    UNITS,
    alternatives,
    nearest,
)

if TYPE_CHECKING:
    from lark.exceptions import UnexpectedInput

_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|\w+|->|<-|:=|==|[-+*/]=|\*\*|\S')
_WORD = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)

_TERMINALS = {
    "ARROW": "`->`",
    "LEFT_ARROW": "`<-`",
    "EQUAL": "`=`",
    "COLON": "`:`",
    "COMMA": "`,`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "NAME": "a name",
    "WORD": "a word",
    "NUMBER": "a number",
    "STRING": "a string",
    "MODULE": "a module such as `std.rules`",
    "_NEWLINE": "a new line",
    "SEMICOLON": "a new line",
    "$END": "a new line",
}
_OPERATORS = {"PLUS", "MINUS", "STAR", "SLASH", "AT", "CARET", "TRANSPOSE"}
_EXPRESSION = {"NUMBER", "INF", "STRING", "TRUE", "FALSE", "NAME", "MINUS", "LPAR", "LSQB"}
_PLACES = {
    "file": ("the top of a file", DECLARATIONS),
    "item": ("the top of a file", DECLARATIONS),
    "statement": ("the body of a system or rule", (*SYSTEM_STATEMENTS, "state")),
    "clause": ("the clauses of a memory", CLAUSES),
    "field": ("a `train` declaration", FIELDS),
}
_HOMES = {
    **dict.fromkeys(SETTINGS, "a `train` declaration"),
    **dict.fromkeys(SYSTEM_STATEMENTS, "the body of a system"),
    **dict.fromkeys(RULE_STATEMENTS, "the body of a rule"),
    **dict.fromkeys(("memory", "let"), "the body of a system or rule"),
    **dict.fromkeys(CLAUSES, "the clauses of a memory"),
    **dict.fromkeys(DECLARATIONS, "the top of a file"),
}
_FOREIGN = {
    "def": "rule",
    "fn": "rule",
    "function": "rule",
    "optimizer": "rule",
    "class": "system",
    "module": "system",
    "model": "system",
    "network": "system",
    "import": "use",
    "from": "use",
    "include": "use",
    "for": "repeat",
    "while": "repeat",
    "loop": "repeat",
    "return": "output",
    "yield": "output",
    "var": "let",
    "const": "let",
    "val": "let",
    "param": "memory",
    "parameter": "memory",
    "layer": "memory",
    "maximize": "minimize",
    "loss": "minimize",
    "objective": "minimize",
    "rule": "by",
    "optimizer_": "by",
    "context": "learn",
    "initial": "init",
    "read": "reads",
}


@dataclass(frozen=True, slots=True)
class Stop:
    """Where the parser stopped. `found` is empty at the end of the piece, `expected` holds names of terminals."""

    source: Source
    place: str
    first: str
    second: str
    previous: str
    found: str
    after: str
    start: int
    previous_end: int
    expected: frozenset[str]
    report: Report

    @property
    def span(self) -> Span:
        """The text that the parser could not use; at the end of a piece, the place behind its last word."""
        if not self.found:
            return Span(self.source, self.previous_end, self.previous_end)
        return Span(self.source, self.start, self.start + len(self.found))

    @property
    def behind(self) -> Span:
        """The empty place behind the previous word."""
        return Span(self.source, self.previous_end, self.previous_end)

    @property
    def is_word(self) -> bool:
        """Whether the found text could be a name."""
        return bool(_WORD.match(self.found))

    @property
    def complete(self) -> bool:
        """Whether the text before would have been a whole statement."""
        return bool(self.expected & {"$END", "_NEWLINE", "SEMICOLON"})

    @property
    def wants_expression(self) -> bool:
        """Whether an expression must come here."""
        return self.expected >= _EXPRESSION

    def add(self, code: str, message: str, label: str = "", **more: object) -> bool:
        """Report at the found text; True."""
        self.report.add(code, message, self.span, label, **more)  # type: ignore[arg-type]
        return True


def describe(source: Source, text: str, place: str, offset: int, error: UnexpectedInput, report: Report) -> None:
    """Report the error of a piece: `text` at `offset`, read as a `place` (`item`, `statement`, `clause`, `field`)."""
    stop = _stop(source, text, place, offset, error, report)
    for rule in _RULES:
        if rule(stop):
            return


def _stop(source: Source, text: str, place: str, offset: int, error: UnexpectedInput, report: Report) -> Stop:
    position = error.pos_in_stream
    token = getattr(error, "token", None)
    if position is None or (token is not None and token.type == "$END"):
        position = len(text)
    while position < len(text) and text[position].isspace():
        position += 1
    before = list(_TOKEN.finditer(text, 0, position))
    here = _TOKEN.match(text, position)
    following = _TOKEN.search(text, here.end()) if here else None
    words = [match[0] for match in before] + ([here[0]] if here else [])
    previous_end = before[-1].end() if before else position
    return Stop(
        source,
        place,
        words[0] if words else "",
        words[1] if len(words) > 1 else "",
        before[-1][0] if before else "",
        here[0] if here else "",
        following[0] if following else "",
        position + offset,
        previous_end + offset,
        _expected(error),
        report,
    )


def _expected(error: UnexpectedInput) -> frozenset[str]:
    """Return the terminals that could have come."""
    parser = getattr(error, "interactive_parser", None)
    if parser is None:
        return frozenset()
    found = set(parser.accepts())
    choices = parser.choices()
    return frozenset(found | ({"$END"} & set(choices)))


# --- the rules, most telling first ---


def _walrus(stop: Stop) -> bool:
    if stop.found != ":=":
        return False
    right = "<-" if stop.place == "statement" and stop.previous == "self" else "="
    return stop.add("N0107", f"nsam writes `{right}`, not `:=`", f"expected `{right}`", fix=Fix(stop.span, right))


def _compound(stop: Stop) -> bool:
    if stop.found not in ("+=", "-=", "*=", "/=") or stop.place != "statement" or stop.second != stop.found:
        return False
    name, sign = stop.first, "<-" if "LEFT_ARROW" in stop.expected and stop.first == "self" else "="
    help_text = f"write `{name} {sign} {name} {stop.found[0]} …`"
    return stop.add("N0107", f"there is no `{stop.found}`", help=help_text)


def _assignment(stop: Stop) -> bool:
    if stop.found == "<-" and "EQUAL" in stop.expected:
        word = f"`{stop.first}` binds" if stop.first in ("let", "state") else "this is written"
        return stop.add("N0107", f"{word} with `=`, not `<-`", "expected `=`", fix=Fix(stop.span, "="))
    if (stop.found == "=" and "EQUAL" not in stop.expected) or stop.found == "==":
        help_text = "`=` stands behind a new name, a parameter or an argument's name"
        if stop.first in CLAUSES and stop.place in ("clause", "field") and stop.previous == stop.first:
            help_text = f"clauses have no `=`: write `{stop.first} …`"
        elif stop.place == "field" and stop.previous == stop.first:
            help_text = f"fields of `train` have no `=`: write `{stop.first} …`"
        elif stop.first in RESERVED and stop.previous == stop.first:
            return stop.add(
                "N0113", f"`{stop.first}` is a word of the language and cannot be assigned", "unexpected `=`"
            )
        return stop.add("N0107", f"`{stop.found}` cannot stand here", "nothing can be assigned here", help=help_text)
    return False


def _let_missing(stop: Stop) -> bool:
    if stop.first in ("let", "state") and stop.expected == {"EQUAL"}:
        fix = Fix(stop.behind, " =")
        return stop.add("N0101", f"`{stop.first} {stop.previous}` needs `=` and a value", "expected `=`", fix=fix)
    return False


def _unknown_statement(stop: Stop) -> bool:
    """A first word that starts nothing here: misspelt, from another language, or in the wrong block."""
    where, words = _PLACES[stop.place]
    word = stop.first
    starts_here = stop.second == stop.found and stop.previous == word
    if not (word == stop.found and not stop.previous) and not (starts_here and word not in words):
        return False
    if not _WORD.match(word):
        return False
    if stop.place == "statement" and stop.found in ("(", "=", "<-", "+=", ".") and starts_here:
        return False
    span = Span(stop.source, stop.previous_end - len(word), stop.previous_end)
    if word == stop.found:
        span = stop.span
    if word in _HOMES and word not in words:
        message = f"`{word}` does not belong into {where}"
        help_text = f"it belongs into {_HOMES[word]}; here stand {_listed(words)}"
        stop.report.add("N0112", message, span, help=help_text)
        return True
    guess = _FOREIGN.get(word) if _FOREIGN.get(word) in words else nearest(word, words)
    fix = None if guess is None else Fix(span, guess)
    help_text = f"did you mean `{guess}`?" if guess else f"here stand {_listed(words)}"
    if stop.place == "statement" and guess is None:
        help_text += "; a name is bound with `let name = …`"
    message = f"`{word}` starts nothing in {where}"
    stop.report.add("N0108", message, span, "unknown", help=help_text, fix=fix)
    return True


def _bare_expression(stop: Stop) -> bool:
    if (
        stop.place != "statement"
        or stop.first in RESERVED
        or stop.previous != stop.first
        or not _WORD.match(stop.first)
    ):
        return False
    help_text = f"bind its value with `let name = {stop.first}…`, or end the system with `output {stop.first}…`"
    return stop.add("N0108", "a value on its own does nothing", "expected `=` or `<-`", help=help_text)


def _listed(words: tuple[str, ...]) -> str:
    return alternatives(words).replace(" or ", " and ")


def _missing_colon(stop: Stop) -> bool:
    if "COLON" not in stop.expected or stop.wants_expression or not stop.found or stop.found in ("=", "->", "(", "."):
        return False
    if stop.first == "input" and (stop.found in "[" or stop.is_word):
        what = "an input"
    elif stop.first in ("memory", "transfer") and stop.is_word:
        what = f"a {stop.first}"
    elif stop.first in ("system", "rule") and stop.is_word:
        what = "a parameter"
    else:
        return False
    fix = Fix(stop.behind, ":" if what == "a parameter" or what == "an input" else " :")
    nouns = {"an input": "its shape", "a memory": "its structure", "a transfer": "its kind", "a parameter": "its type"}
    label = f"expected `:` before {nouns[what]}"
    stop.report.add("N0109", f"`:` is missing after the name of {what}", stop.behind, label, fix=fix)
    return True


def _misplaced_arrow(stop: Stop) -> bool:
    if stop.found != "->":
        return False
    help_text = "`->` joins sizes in a structure, key and value in `learn`, and memories in `transfer`"
    return stop.add("N0118", "`->` cannot stand here", "no operator", help=help_text)


def _missing_word(stop: Stop) -> bool:
    """A period without its unit, `reads` without its mode."""
    if "WORD" not in stop.expected or stop.is_word:
        return False
    if stop.first == "every" or stop.expected >= _OPERATORS:
        units = alternatives(unit + "s" for unit in UNITS)
        fix = Fix(stop.behind, " tokens")
        stop.report.add("N0111", "a period needs its unit", stop.behind, f"expected {units}", fix=fix)
        return True
    hints = {"reads": "`boundary` or `running`", "reset": "`every n tokens`, `per sequence` or `never`"}
    hints |= {"transfer": "`backprop`, `direct`, `init` or `generate`", "by": "`matrices` or `others`"}
    hints |= {"input": "`sequence`"}
    expected = hints.get(stop.first, "a word")
    stop.report.add("N0101", f"something is missing after `{stop.previous}`", stop.behind, f"expected {expected}")
    return True


def _two_statements(stop: Stop) -> bool:
    if not stop.complete or not stop.found:
        return False
    starters = {*SYSTEM_STATEMENTS, *RULE_STATEMENTS, *CLAUSES, *DECLARATIONS}
    if stop.found in starters or stop.previous == "}":
        fix = Fix(stop.behind, ";")
        message = f"`{stop.found}` starts a new statement on the same line"
        help_text = "end the statement before it with a new line or `;`"
        return stop.add("N0116", message, "expected a new line or `;` before this", help=help_text, fix=fix)
    if stop.is_word or stop.found[0] in '"0123456789([':
        message = f"the statement was complete before `{_short(stop.found)}`"
        help_text = "an operator or a `,` may be missing; a new line or `;` separates statements"
        return stop.add("N0116", message, "expected an operator or a new line", help=help_text)
    return False


def _number(stop: Stop) -> bool:
    if not re.match(r"\.?[0-9]", stop.found + (stop.after if stop.found == "." else "")):
        return False
    match = re.compile(r"[0-9.]+\w*(?:[+-][0-9]+)?").match(stop.source.text, stop.start)
    if not match or re.fullmatch(r"[0-9]+", match[0]) or "NUMBER" not in stop.expected:
        return False
    span = Span(stop.source, stop.start, match.end())
    message = f"`{_short(match[0])}` is no number"
    help_text = "numbers look like 4, 0.5 or 1e-3; a product is written with `*`, and a word stands behind a space"
    stop.report.add("N0115", message, span, help=help_text)
    return True


def _reserved_name(stop: Stop) -> bool:
    wants_name = bool(stop.expected & {"NAME", "WORD", "IDENTIFIER"}) and not stop.wants_expression
    if not wants_name or stop.found not in ("true", "false", "inf"):
        return False
    return stop.add("N0113", f"`{stop.found}` is a word of the language and cannot be a name", "choose another name")


def _power(stop: Stop) -> bool:
    """`a ** b`: the second star is where an expression must start."""
    if stop.found == "**" or (stop.found == "*" and stop.previous == "*"):
        length = 2 if stop.found == "**" else 1
        start = stop.start - (2 - length)
        span = Span(stop.source, start, start + 2)
        stop.report.add("N0106", "a power is written `^`", span, "expected `^`", fix=Fix(span, "^"))
        return True
    return False


def _character(stop: Stop) -> bool:
    """A character or sign that is no part of the language."""
    if not stop.found:
        return False
    sign = stop.found
    if re.match(r"[A-Za-z0-9_\"(){}\[\],:;=+\-*/@^.]", sign, re.ASCII) and sign not in ("==",):
        if sign.isascii() or not _WORD.match(sign):
            return False
        help_text = "names are made of a-z, A-Z, 0-9 and `_`"
        return stop.add("N0106", f"`{_short(sign)}` has letters that names cannot have", help=help_text)
    named = {
        "<": "there are no comparisons",
        ">": "there are no comparisons",
        "!": "there are no comparisons",
        "&": "there are no logical operators",
        "|": "there are no logical operators",
        "%": "there is no remainder",
        "'": 'strings stand between `"`',
        "`": 'strings stand between `"`',
        "~": "there is no such operator",
        "\\": "a line goes on inside ( ) or [ ], without a backslash",
    }
    help_text = named.get(sign[0], "names are made of a-z, A-Z, 0-9 and `_`; the operators are + - * / @ ^")
    point = f" (U+{ord(sign[0]):04X})" if not sign[0].isascii() else ""
    message = f"`{_short(sign)}`{point} is no part of the language"
    return stop.add("N0106", message, "unknown", help=help_text)


def _needs_expression(stop: Stop) -> bool:
    if not stop.wants_expression:
        return False
    after = f" after `{_short(stop.previous)}`" if stop.previous else ""
    label = "expected a name, a number or a call"
    if stop.found:
        return stop.add("N0101", f"an expression is missing{after}: found `{_short(stop.found)}`", label)
    help_text = None
    if stop.previous in "+-*/@^,=":
        help_text = "a new line ends a statement; to go on in the next line, put the expression into ( )"
    return stop.add("N0101", f"an expression is missing{after}", label, help=help_text)


def _parentheses(stop: Stop) -> bool:
    if stop.expected != {"LPAR"} or stop.place != "item":
        return False
    if stop.first == "use":
        help_text = f"name what to bring in: `use {stop.previous} (a, b)`"
        return stop.add("N0101", "`use` lists the names that it brings in", "expected `(`", help=help_text)
    fix = Fix(stop.behind, "()")
    message = f"the parameters of `{stop.previous}` are missing"
    help_text = "a system or rule without parameters has empty ones: `()`"
    return stop.add("N0101", message, "expected `(`", help=help_text, fix=fix)


def _brace_on_next_line(stop: Stop) -> bool:
    if stop.found or "LBRACE" not in stop.expected:
        return False
    if "COLON" in stop.expected or stop.complete:
        return False
    message = f"the `{stop.first}` has no body"
    help_text = "its `{` stands on the same line"
    return stop.add("N0101", message, "expected `{`", help=help_text)


def _orphan_block(stop: Stop) -> bool:
    """A `{` at the start of a statement: the line before ended too early."""
    if stop.found != "{" or stop.previous:
        return False
    help_text = "the `{` of a block stands on the line of its declaration"
    return stop.add("N0101", "this block belongs to nothing", "unexpected `{`", help=help_text)


def _anything(stop: Stop) -> bool:
    found = f"`{_short(stop.found)}`" if stop.found else "the end of the statement"
    wanted = _wanted(stop.expected)
    after = f" after `{_short(stop.previous)}`" if stop.previous else ""
    return stop.add("N0101", f"unexpected {found}{after}", f"expected {wanted}" if wanted else "")


def _wanted(expected: frozenset[str]) -> str:
    """Return the expected terminals in words, expressions and operators summed up."""
    rest = set(expected)
    words: list[str] = []
    if rest >= _EXPRESSION:
        words.append("an expression")
        rest -= _EXPRESSION
    if rest >= _OPERATORS - {"TRANSPOSE", "CARET"}:
        words.append("an operator")
        rest -= _OPERATORS
    words += sorted({_TERMINALS.get(name, f"`{name.lower()}`") for name in rest})
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" or {words[-1]}" if words else ""


def _short(text: str) -> str:
    return text if len(text) <= 30 else text[:29] + "…"


_RULES: tuple[Callable[[Stop], bool], ...] = (
    _walrus,
    _compound,
    _power,
    _orphan_block,
    _number,
    _character,
    _reserved_name,
    _unknown_statement,
    _assignment,
    _bare_expression,
    _let_missing,
    _missing_colon,
    _misplaced_arrow,
    _missing_word,
    _two_statements,
    _parentheses,
    _brace_on_next_line,
    _needs_expression,
    _anything,
)
