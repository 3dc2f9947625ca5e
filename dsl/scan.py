"""First look at the text: comments, brackets, strings and limits, before the grammar.

The scanner hands the parser a text of the same length in which comments and the newlines inside ( ) [ ] are spaces, so
that every position stays what it was, and marks where statements and blocks begin and end, so that a file with errors
can be split into pieces that are parsed on their own.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Literal

from nsam.dsl.diagnostics import Fix, Label, Report
from nsam.dsl.limits import MAX_BLOCKS, MAX_BRACKETS, MAX_CHARACTERS, MAX_ERRORS, MAX_TOKENS
from nsam.dsl.spans import Source, Span
from nsam.dsl.syntax import Comment

_LEXEME = re.compile(
    r'(?P<docstring>"""[\s\S]*?""")|(?P<open_docstring>""")|(?P<string>"(?:\\.|[^"\\\n])*")|(?P<quote>"[^\n]*)'
    r"|(?P<comment>#[^\n]*)|(?P<newline>\n)|(?P<blank>[^\S\x00-\x7f]+)|(?P<bracket>[()\[\]{}])|(?P<semicolon>;)|(?P<word>\w+)|(?P<sign>[^\s])"
)
# Not only what steers a terminal: also what breaks a line for some editors and not for others, and what makes a line
# look as if it said something else (https://trojansource.codes). A carriage return is part of a line end before `\n`.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)")
_LINE_BREAKS = {
    "\x0c": "form feed",
    "\r": "carriage return without a newline",
    "\x85": "next-line character",
    "\u2028": "line separator",
    "\u2029": "paragraph separator",
}
_DIRECTIONS = frozenset({"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"})
_STATEMENT = re.compile(
    r"[ \t]*(?:rule|system|train|input|memory|let|repeat|transfer|output|state"
    r"|learn|minimize|by|every|reads|reset|init)"
    r"[ \t]+[A-Za-z_]"
)
_DECLARATION = re.compile(r"(?:rule|system|train)[ \t]+[A-Za-z_]")
_CLOSES = {")": "(", "]": "[", "}": "{"}
_CLOSED_BY = {"(": ")", "[": "]", "{": "}"}

MarkKind = Literal["separator", "open", "close"]


@dataclass(slots=True)
class Scanned:
    """What the scanner found. `problems` are positions whose piece of text was already complained about."""

    text: str = ""
    comments: list[Comment] = field(default_factory=list)
    marks: list[tuple[MarkKind, int]] = field(default_factory=list)
    problems: list[int] = field(default_factory=list)


def scan(source: Source, report: Report) -> Scanned | None:
    """Scan `source`; None when it is no program text at all or beyond a limit (reported)."""
    if len(source.text) > MAX_CHARACTERS:
        message = f"{source.name} has {len(source.text):,} characters; a program may have {MAX_CHARACTERS:,}"
        report.add("N0003", message, None, help="split it into several files and bring them together with `use`")
        return None
    control = _CONTROL.search(source.text)
    if control is not None:
        _report_control(source, control, report)
        return None
    return _Scanner(source, report).run()


def _report_control(source: Source, found: re.Match[str], report: Report) -> None:
    """N0002 at a control character, with the way out that it has."""
    span = Span(source, found.start(), found.end())
    if found[0] == "\r" and "\n" not in source.text:
        message = f"the lines of {source.name} end in carriage returns alone (U+000D)"
        help_text = "save it with line ends LF or CRLF, or convert it: `tr '\\r' '\\n' < old.nsam > new.nsam`"
        report.add("N0002", message, Span(source, span.start, span.start), "the first line ends here", help=help_text)
        return
    point = f"U+{ord(found[0]):04X}"
    message = f"this is not program text: it contains the character {point}"
    label, help_text, fix = "a control character", "save the program as plain UTF-8 text", None
    if found[0] in _LINE_BREAKS:
        label, fix = f"a {_LINE_BREAKS[found[0]]}", Fix(span, "\n" if found[0] == "\r" else " ")
        help_text = "a line ends with a newline, and blanks stand within it"
    elif unicodedata.bidirectional(found[0]) in _DIRECTIONS:
        label, fix = "turns the direction of the text that is shown", Fix(span, "")
        help_text = "what a program shows has to be what it says: remove the character"
    report.add("N0002", message, span, label, help=help_text, fix=fix)


class _Scanner:
    """One pass over one text."""

    def __init__(self, source: Source, report: Report) -> None:
        self.source = source
        self.report = report
        self.found = Scanned()
        self.open: list[tuple[str, int]] = []  # brackets and braces that wait for their partner
        self.blocks = 0
        self.blanks: list[tuple[int, int]] = []
        self.strange = 0  # blanks that are none to the language

    def run(self) -> Scanned | None:
        """Visit every lexeme; None past a limit."""
        for count, match in enumerate(_LEXEME.finditer(self.source.text), 1):
            if len(self.found.problems) + self.strange > MAX_ERRORS:
                return None
            if count > MAX_TOKENS:
                message = f"{self.source.name} has more than {MAX_TOKENS:,} words and signs"
                help_text = "split it into several files and bring them together with `use`"
                self.report.add("N0003", message, self.span(match.start(), match.end()), "too much", help=help_text)
                return None
            kind = match.lastgroup
            if kind == "comment":
                self.comment(match)
            elif kind == "newline":
                self.newline(match.start())
            elif kind == "blank":
                self.blank(match)
            elif kind == "semicolon":
                self.found.marks.append(("separator", match.start()))
            elif kind == "bracket":
                if not self.bracket(match[0], match.start()):
                    return None
            elif kind in ("quote", "open_docstring"):
                self.unterminated(match)
        self.close_all(len(self.source.text))
        self.found.text = self.blanked()
        return self.found

    def span(self, start: int, end: int) -> Span:
        return Span(self.source, start, end)

    def problem(self, position: int) -> None:
        self.found.problems.append(position)

    def comment(self, match: re.Match[str]) -> None:
        start = match.start()
        line_start = self.source.text.rfind("\n", 0, start) + 1
        alone = not self.source.text[line_start:start].strip()
        self.found.comments.append(Comment(self.span(start, match.end()), match[0].rstrip(), alone))
        self.blanks.append((start, match.end()))

    def newline(self, position: int) -> None:
        if self.open and _DECLARATION.match(self.source.text, position + 1):
            self.close_all(position, Label(self.span(*self.word_after(position)), "expected before this declaration"))
        if self.bracketed() and _STATEMENT.match(self.source.text, position + 1):
            self.close_brackets(position)
        if self.bracketed():
            self.blanks.append((position, position + 1))
        else:
            self.found.marks.append(("separator", position))

    def blank(self, match: re.Match[str]) -> None:
        """Report blanks of other kinds, and read them as what they look like."""
        span = self.span(*match.span())
        name = unicodedata.name(match[0][0], "blank").lower()
        article = "an" if name[0] in "aeiou" else "a"
        message = f"U+{ord(match[0][0]):04X}, {article} {name}, is no part of the language"
        help_text = "words and signs stand apart by blanks, tabs and newlines"
        self.report.add("N0106", message, span, "looks like a blank", help=help_text, fix=Fix(span, " ", safe=True))
        self.blanks.append(match.span())
        self.strange += 1

    def word_after(self, position: int) -> tuple[int, int]:
        match = re.compile(r"\s*(\w+)").match(self.source.text, position)
        return match.span(1) if match else (position, position)

    def bracketed(self) -> bool:
        return bool(self.open) and self.open[-1][0] != "{"

    def bracket(self, sign: str, position: int) -> bool:
        """Take one bracket or brace; False past a limit."""
        if sign in "([":
            self.open.append((sign, position))
        elif sign == "{":
            self.close_brackets(position)
            self.open.append((sign, position))
            self.blocks += 1
            self.found.marks.append(("open", position))
        else:
            self.closing(sign, position)
        return self.within_limits(position)

    def within_limits(self, position: int) -> bool:
        if self.blocks <= MAX_BLOCKS and len(self.open) - self.blocks <= MAX_BRACKETS:
            return True
        what = f"{MAX_BLOCKS} blocks" if self.blocks > MAX_BLOCKS else f"{MAX_BRACKETS} brackets"
        message = f"more than {what} within each other"
        help_text = "give an inner part a name of its own with `let`, or make it a system"
        self.report.add("N0004", message, self.span(position, position + 1), "one too many", help=help_text)
        return False

    def closing(self, sign: str, position: int) -> None:
        span = self.span(position, position + 1)
        if sign == "}":
            self.close_brackets(position)
            if self.open:
                self.open.pop()
                self.blocks -= 1
                self.found.marks.append(("close", position))
                return
        elif self.bracketed():
            opener, start = self.open.pop()
            if opener != _CLOSES[sign]:
                right = _CLOSED_BY[opener]
                label = Label(self.span(start, start + 1), "opened here")
                message = f"`{opener}` is closed by `{sign}`"
                fix = Fix(span, right)
                self.report.add("N0104", message, span, f"expected `{right}`", secondary=[label], fix=fix)
                self.problem(position)
            return
        message = f"nothing is open that this `{sign}` could close"
        fix = Fix(span, "")
        self.report.add("N0104", message, span, "no partner", help=f"remove it, or add `{_CLOSES[sign]}`", fix=fix)
        self.problem(position)

    def close_brackets(self, position: int) -> None:
        """Report the ( and [ that are still open at a place where none can be."""
        while self.bracketed():
            sign, start = self.open.pop()
            place = self.end_before(position)
            message = f"this `{sign}` is never closed"
            expected = Label(self.span(place, place), f"expected `{_CLOSED_BY[sign]}` by here")
            self.report.add("N0102", message, self.span(start, start + 1), "opened here", secondary=[expected])
            self.problem(start)

    def close_all(self, position: int, label: Label | None = None) -> None:
        """Report everything that is open at the end of the text or where the next declaration starts."""
        while self.open:
            self.close_brackets(position)
            if not self.open:
                break
            _, start = self.open.pop()
            self.blocks -= 1
            place = self.end_before(position)
            fix = Fix(self.span(place, place), "\n}")
            where = label or Label(self.span(place, place), "the text ends here")
            span = self.span(start, start + 1)
            self.report.add("N0103", "this `{` is never closed", span, "opened here", secondary=[where], fix=fix)
            self.found.marks.append(("close", position))

    def end_before(self, position: int) -> int:
        """Return where the last text before `position` ends (comments count as text)."""
        while position > 0 and self.source.text[position - 1].isspace():
            position -= 1
        return position

    def unterminated(self, match: re.Match[str]) -> None:
        if match.lastgroup == "open_docstring":
            help_text = 'a text ends with `"""`, on its first line or on a later one'
            span = self.span(*match.span())
            self.report.add("N0105", 'this text has no closing `"""`', span, "starts here", help=help_text)
        else:
            end = match.start() + len(match[0].rstrip())
            help_text = 'a string ends on its line with `"`; write `\\n` for a newline in it'
            span = self.span(match.start(), end)
            self.report.add("N0105", 'this string has no closing `"`', span, "starts here", help=help_text)
        self.problem(match.start())

    def blanked(self) -> str:
        pieces, last = [], 0
        for start, end in self.blanks:
            pieces += [self.source.text[last:start], " " * (end - start)]
            last = end
        return "".join([*pieces, self.source.text[last:]])
