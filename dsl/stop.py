"""Where the grammar stopped in a piece of text, and what could have come there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nsam.dsl.diagnostics import Report
from nsam.dsl.records import dataclass
from nsam.dsl.spans import Source, Span

if TYPE_CHECKING:
    from lark.exceptions import UnexpectedInput

_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|\w+|->|<-|:=|==|[-+*/]=|\*\*|\S')
WORD = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)

OPERATORS = {"PLUS", "MINUS", "STAR", "SLASH", "AT", "CARET", "TRANSPOSE"}
EXPRESSION = {"NUMBER", "INF", "STRING", "TRUE", "FALSE", "NAME", "MINUS", "LPAR", "LSQB"}


@dataclass(frozen=True, slots=True)
class Stop:
    """Where the parser stopped. `found` is empty at the end of the piece, `expected` holds names of terminals,
    `before` is the piece up to there."""

    source: Source
    place: str
    first: str
    second: str
    previous: str
    before: str
    found: str
    after: str
    piece_start: int
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
        return bool(WORD.match(self.found))

    @property
    def complete(self) -> bool:
        """Whether the text before would have been a whole statement."""
        return bool(self.expected & {"$END", "_NEWLINE", "SEMICOLON"})

    @property
    def declaration(self) -> str:
        """The word of the declaration that this stands in: `rule`, `system` or `train`; empty before the first."""
        found = re.findall(r"^[ \t]*(rule|system|train)\b", self.source.text[: self.start], re.MULTILINE)
        return found[-1] if found else ""

    @property
    def wants_expression(self) -> bool:
        """Whether an expression must come here."""
        return self.expected >= EXPRESSION

    def add(self, code: str, message: str, label: str = "", **more: object) -> bool:
        """Report at the found text; True."""
        self.report.add(code, message, self.span, label, **more)  # type: ignore[arg-type]
        return True


def find_stop(source: Source, text: str, place: str, offset: int, error: UnexpectedInput, report: Report) -> Stop:
    """Return where `error` stopped the parser in `text`, which stands at `offset` of `source`."""
    position = error.pos_in_stream
    token = getattr(error, "token", None)
    if position is None or (token is not None and token.type == "$END"):
        position = len(text)
    while position < len(text) and text[position].isspace():
        position += 1
    if text[position - 1 : position + 1] == "->":  # where no arrow can stand, its first half was read as a minus
        position -= 1
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
        text[:position].strip(),
        here[0] if here else "",
        following[0] if following else "",
        offset + (len(text) - len(text.lstrip())),
        position + offset,
        previous_end + offset,
        _expected(error),
        report,
    )


def short(text: str) -> str:
    """Return what a message quotes of `text`."""
    return text if len(text) <= 30 else text[:29] + "…"


def _expected(error: UnexpectedInput) -> frozenset[str]:
    """Return the terminals that could have come."""
    parser = getattr(error, "interactive_parser", None)
    if parser is None:
        return frozenset()
    found = set(parser.accepts())
    choices = parser.choices()
    return frozenset(found | ({"$END"} & set(choices)))
