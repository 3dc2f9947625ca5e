"""What to say when the grammar stops: the common mistakes by name, everything else as what was expected and found.

`describe` tries the rules of `_RULES` in order; each looks at where the parser stopped (`Stop`) and either reports the
mistake that it knows and returns True, or leaves it to the next one. The last one always reports.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from nsam.dsl.diagnostics import Fix, Report
from nsam.dsl.foreign_forms import bare_transpose, input_shape, several_outputs, subscript
from nsam.dsl.foreign_signs import character, foreign_comment, late_docstring, power
from nsam.dsl.spans import Source, Span
from nsam.dsl.stop import EXPRESSION, OPERATORS, WORD, Stop, find_stop, short
from nsam.dsl.words import (
    CLAUSES,
    DECLARATIONS,
    FOREIGN,
    HOMES,
    PLACES,
    RESERVED,
    RULE_STATEMENTS,
    SYSTEM_STATEMENTS,
    UNITS,
    alternatives,
    nearest,
)

if TYPE_CHECKING:
    from lark.exceptions import UnexpectedInput

_TERMINALS = {
    "ARROW": "`->`",
    "LEFT_ARROW": "`<-`",
    "GREATER": "`>`",
    "DOTS": "`..`",
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


def describe(source: Source, text: str, place: str, offset: int, error: UnexpectedInput, report: Report) -> bool:
    """Report the error of a piece: `text` at `offset`, read as a `place` (a key of `PLACES`).

    Returns whether the piece breaks off behind a sign that joins, so that the next line was meant to belong to it.
    """
    stop = find_stop(source, text, place, offset, error, report)
    next(rule for rule in _RULES if rule(stop))
    return not stop.found and joins(stop.previous)


def joins(sign: str) -> bool:
    """Whether something has to follow a sign."""
    return sign in JOINING


JOINING = frozenset((*"+-*/@^,=", "->", "<-"))
"""Signs behind which something follows."""


# --- the rules, most telling first ---


def _walrus(stop: Stop) -> bool:
    if stop.found != ":=":
        return False
    right = "<-" if stop.place == "rule" and stop.first == stop.previous else "="
    return stop.add("N0107", f"nsam writes `{right}`, not `:=`", f"expected `{right}`", fix=Fix(stop.span, right))


def _compound(stop: Stop) -> bool:
    if stop.found not in ("+=", "-=", "*=", "/=") or stop.second != stop.found:
        return False
    name, sign = stop.first, "<-" if stop.place == "rule" else "="
    help_text = f"write `{name} {sign} {name} {stop.found[0]} …`"
    return stop.add("N0107", f"there is no `{stop.found}`", help=help_text)


def _assignment(stop: Stop) -> bool:
    if stop.found == "<-" and "EQUAL" in stop.expected:
        word = f"`{stop.first}` binds" if stop.first in ("let", "state") else "this is written"
        return stop.add("N0107", f"{word} with `=`, not `<-`", "expected `=`", fix=Fix(stop.span, "="))
    if stop.found == ":" and "EQUAL" in stop.expected and "COMMA" in stop.expected:
        fix = Fix(stop.span, " =")
        return stop.add("N0107", f"the argument `{stop.previous}` is given with `=`", "expected `=`", fix=fix)
    if stop.found == "=" and "COLON" in stop.expected and stop.first == "memory":
        message = "`:` stands between the name of a memory and its structure"
        return stop.add("N0109", message, "expected `:`", fix=Fix(stop.span, ":"))
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
        removal = Fix(stop.span, "") if stop.found == "=" and help_text.startswith(("clauses", "fields")) else None
        label = "nothing can be assigned here"
        return stop.add("N0107", f"`{stop.found}` cannot stand here", label, help=help_text, fix=removal)
    return False


def _let_missing(stop: Stop) -> bool:
    if stop.first in ("let", "state") and stop.expected == {"EQUAL"}:
        fix = Fix(stop.behind, " =")
        return stop.add("N0101", f"`{stop.first} {stop.previous}` needs `=` and a value", "expected `=`", fix=fix)
    return False


def _unknown_statement(stop: Stop) -> bool:
    """A first word that starts nothing here: misspelt, from another language, or in the wrong block."""
    where, words = PLACES[stop.place]
    word = stop.first
    at_first, at_second = not stop.previous, stop.second == stop.found and stop.previous == word
    if stop.place == "field":  # any word may start a field as far as the grammar knows
        at_second = word in HOMES
    if not (at_first or at_second) or word in words or not WORD.match(word):
        return False
    span = stop.span if at_first else Span(stop.source, stop.piece_start, stop.piece_start + len(word))
    if word in HOMES:
        message = f"`{word}` does not belong {where}"
        help_text = f"it belongs {HOMES[word]}; what can stand here: {_listed(words)}"
        stop.report.add("N0112", message, span, help=help_text)
        return True
    foreign = FOREIGN.get(word)
    guess = foreign if foreign in words else nearest(word, words)
    if stop.found in ("=", "<-", "+=", "-=", "*=", "/=", ":=") or (guess is None and not stop.is_word):
        return False
    fix = None if guess is None else Fix(span, guess)
    help_text = f"did you mean `{guess}`?" if guess else f"what can stand here: {_listed(words)}"
    if stop.place in ("system", "rule") and guess is None:
        help_text += "; a name is bound with `let name = …`"
    stop.report.add("N0108", f"`{word}` starts nothing {where}", span, "unknown", help=help_text, fix=fix)
    return True


def _bare_expression(stop: Stop) -> bool:
    """`f(x)` or `x + 1` as a statement."""
    if stop.place not in ("system", "rule") or stop.previous != stop.first or not WORD.match(stop.first):
        return False
    if stop.first in RESERVED or stop.found in ("=", "<-"):
        return False
    span = Span(stop.source, stop.piece_start, stop.piece_start + len(stop.first))
    ending = "update a state with `self <- …`" if stop.place == "rule" else "end the system with `output …`"
    help_text = f"bind it with `let name = …`, or {ending}"
    stop.report.add("N0108", "a value on its own does nothing", span, "not assigned", help=help_text)
    return True


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
    if stop.found != "->" or stop.wants_expression:
        return False
    help_text = "`->` joins sizes in a structure, key and value in `learn`, and memories in `transfer`"
    return stop.add("N0118", "`->` cannot stand here", "no operator", help=help_text)


def _missing_word(stop: Stop) -> bool:
    """A period without its unit, `reads` without its mode."""
    if "WORD" not in stop.expected or stop.is_word:
        return False
    if stop.first == "every" or stop.expected & OPERATORS:
        if stop.previous.removesuffix("s") in UNITS:
            unit = stop.previous.removesuffix("s")
            message = f"how many {unit}s? The number is missing"
            word = re.findall(r"\w+", stop.before)[-2:][0]  # `every`, or `last`
            return stop.add("N0101", message, f"expected `{word} 1 {unit}` or `{word} n {unit}s`")
        units = alternatives(unit + "s" for unit in (UNITS if stop.first == "every" else UNITS[:1]))
        unit = "steps" if stop.place == "field" else "updates" if stop.declaration == "rule" else "tokens"
        fix = Fix(stop.behind, f" {unit}")
        what = "a window" if stop.first == "learn" else "a period"
        stop.report.add("N0111", f"{what} needs its unit", stop.behind, f"expected {units}", fix=fix)
        return True
    hints = {"reads": "`boundary` or `running`", "reset": "`every n tokens`, `per sequence` or `never`"}
    hints |= {"transfer": "`backprop`, `direct`, `init` or `generate`", "by": "`matrices` or `others`"}
    hints |= {"input": "`sequence`"}
    expected = hints.get(stop.first, "a word")
    stop.report.add("N0101", f"something is missing after `{stop.previous}`", stop.behind, f"expected {expected}")
    return True


def _reset_word(stop: Stop) -> bool:
    if stop.before.split() != ["reset", stop.previous] or not stop.complete or not WORD.match(stop.previous):
        return False
    span = Span(stop.source, stop.previous_end - len(stop.previous), stop.previous_end)
    choices = ("every", "per", "never")
    guess = nearest(stop.previous, choices)
    hint = None if guess is None else f"did you mean `{guess}`?"
    expected = "expected `every n tokens`, `per sequence` or `never`"
    stop.report.add("N0111", f"`{stop.previous}` is no time to reset at", span, expected, help=hint)
    return True


def _plain_docstring(stop: Stop) -> bool:
    if stop.place != "item" or not re.fullmatch(r'"[^"].*"', stop.found):
        return False
    fix = Fix(stop.span, f'""{stop.found}""')
    return stop.add("N0101", "the text about a program stands between three quotes", "one quote each here", fix=fix)


def _two_statements(stop: Stop) -> bool:
    if not stop.complete or not stop.found:
        return False
    starters = {*SYSTEM_STATEMENTS, *RULE_STATEMENTS, *CLAUSES, *DECLARATIONS}
    if stop.found in starters or stop.previous == "}":
        fix = Fix(stop.behind, ";")
        message = f"`{stop.found}` starts a new statement on the same line"
        help_text = "end the statement before it with a new line or `;`"
        return stop.add("N0116", message, "expected a new line or `;` before this", help=help_text, fix=fix)
    if stop.found.startswith('"') and stop.place == "file":
        return stop.add("N0112", "a text stands behind the edition line, once", "expected a declaration")
    if stop.is_word or stop.found[0] in '"0123456789([':
        message = f"the statement was complete before `{short(stop.found)}`"
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
    message = f"`{short(match[0])}` is no number"
    help_text = "numbers look like 4, 0.5 or 1e-3; a product is written with `*`, and a word stands behind a space"
    stop.report.add("N0115", message, span, help=help_text)
    return True


def _reserved_name(stop: Stop) -> bool:
    wants_name = bool(stop.expected & {"NAME", "WORD", "IDENTIFIER"}) and not stop.wants_expression
    if not wants_name or stop.found not in ("true", "false", "inf"):
        return False
    return stop.add("N0113", f"`{stop.found}` is a word of the language and cannot be a name", "choose another name")


def _needs_expression(stop: Stop) -> bool:
    if not stop.wants_expression:
        return False
    after = f" after `{short(stop.previous)}`" if stop.previous else ""
    label = "expected a name, a number or a call"
    if stop.found:
        return stop.add("N0101", f"an expression is missing{after}: found `{short(stop.found)}`", label)
    help_text = None
    if joins(stop.previous):
        help_text = "a new line ends a statement; to go on in the next line, put the expression into ( )"
    return stop.add("N0101", f"an expression is missing{after}", label, help=help_text)


def _parentheses(stop: Stop) -> bool:
    if stop.expected != {"LPAR"} or stop.place != "item":
        return False
    if stop.first == "use":
        help_text = f"name what to bring in: `{stop.before} (a, b)`"
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
    wanted = _wanted(stop.expected)
    after = f" after `{short(stop.previous)}`" if stop.previous else ""
    message = f"unexpected `{short(stop.found)}`{after}" if stop.found else f"the text ends too early{after}"
    more = {}
    if not stop.found and joins(stop.previous):
        more["help"] = "a new line ends a statement; it may be broken inside of ( ) and [ ] only"
    return stop.add("N0101", message, f"expected {wanted}" if wanted else "", **more)


def _wanted(expected: frozenset[str]) -> str:
    """Return the expected terminals in words, expressions and operators summed up."""
    rest = set(expected)
    words: list[str] = []
    if rest >= EXPRESSION:
        words.append("an expression")
        rest -= EXPRESSION
    if rest & (OPERATORS - {"TRANSPOSE"}):  # behind a product the grammar may have room for sums alone
        words.append("an operator")
        rest -= OPERATORS | {"LPAR", "EQUAL"}
    words += sorted({_TERMINALS.get(name, f"`{name.lower()}`") for name in rest})
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" or {words[-1]}" if words else ""


_RULES: tuple[Callable[[Stop], bool], ...] = (
    _walrus,
    _compound,
    power,
    foreign_comment,
    late_docstring,
    _orphan_block,
    _plain_docstring,
    _number,
    character,
    _reserved_name,
    _unknown_statement,
    _assignment,
    _bare_expression,
    _let_missing,
    _missing_colon,
    _misplaced_arrow,
    _missing_word,
    input_shape,
    several_outputs,
    subscript,
    bare_transpose,
    _reset_word,
    _two_statements,
    _parentheses,
    _brace_on_next_line,
    _needs_expression,
    _anything,
)
