"""Many errors from one run: a file that the grammar refuses is split by brace depth and read piece by piece.

A piece is a statement, clause or declaration; one with a block is read with its block emptied, and the block's pieces
on their own. Pieces that the scanner has complained about already are skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nsam.dsl.diagnostics import Report
from nsam.dsl.grammar import Start
from nsam.dsl.limits import MAX_ERRORS
from nsam.dsl.mistakes import describe, joins
from nsam.dsl.parser import parse_piece
from nsam.dsl.scan import Scanned
from nsam.dsl.spans import Source
from nsam.dsl.words import PLACES

if TYPE_CHECKING:
    from lark.exceptions import UnexpectedInput


@dataclass(slots=True)
class _Piece:
    """Text from `start` to `end`; `blocks` are the positions behind `{` and at `}`, with the pieces between them."""

    start: int
    end: int = -1
    blocks: list[tuple[int, int, list[_Piece]]] = field(default_factory=list)


def report_errors(source: Source, scanned: Scanned, report: Report) -> None:
    """Add every syntax error of the file to `report`; there is at least one."""
    recovery = _Recovery(source, scanned, report)
    recovery.file()
    if not report.failed:
        recovery.whole()


class _Recovery:
    """Reads the pieces of one file."""

    def __init__(self, source: Source, scanned: Scanned, report: Report) -> None:
        self.source = source
        self.text = scanned.text
        self.problems = sorted(scanned.problems)
        self.report = report
        self.pieces = _split(scanned)

    def file(self) -> None:
        """Read the top-level pieces, the edition line and the docstring left out."""
        pieces = []
        for number, piece in enumerate(self.pieces):
            head = self.text[piece.start : piece.end]
            if not ((head.startswith("nsam") and number == 0) or head.startswith('"""')):
                pieces.append(piece)
        self.block(pieces, "item", "item")

    def block(self, pieces: list[_Piece], start: Start, place: str) -> None:
        """Read the pieces of one block. What a broken line goes on with is no statement, and no mistake of its own."""
        broken = False
        for piece in pieces:
            if broken and not self.begins(piece, place):
                broken = joins(self.text[piece.start : piece.end].rstrip()[-1:])
                continue
            broken = self.read(piece, start, place)

    def begins(self, piece: _Piece, place: str) -> bool:
        """Whether a piece starts with a word that begins something in its place, or assigns."""
        head = self.text[piece.start : piece.end]
        word = re.match(r"\w*", head)
        assert word is not None
        return bool(piece.blocks) or word[0] in PLACES[place][1] or bool(re.match(r"\w+\s*(?:=|<-)", head))

    def whole(self) -> None:
        """Report the error of the file as a whole: the pieces are right and only their order is not."""
        error = self.attempt(self.text, "file", 0, None)
        if error is None:
            raise RuntimeError(f"internal error: {self.source.name} was refused without a reason; please report this")
        describe(self.source, self.text, "file", 0, error, self.report)

    def attempt(self, text: str, start: Start, offset: int, place: str | None) -> UnexpectedInput | None:
        """Parse a piece; return what stopped the parser."""
        from lark.exceptions import UnexpectedInput

        try:
            parse_piece(self.source, text, start, self.report, offset, place)
        except UnexpectedInput as error:
            return error
        return None

    def read(self, piece: _Piece, start: Start, place: str) -> bool:
        """Report what is wrong with one piece and, if it is wrong, with the pieces in its blocks.

        Returns whether the piece breaks off where something has to follow.
        """
        if len(self.report.diagnostics) >= MAX_ERRORS:
            return False
        text = self.text[piece.start : piece.end]
        if not self.complained(piece) and self.attempt(text, start, piece.start, place) is None:
            return False
        head = self.emptied(piece)
        before, broken = len(self.report.diagnostics), False
        if not self.complained(piece, head_only=True):
            error = self.attempt(head, start, piece.start, place)
            if error is not None:
                broken = describe(self.source, head, place, piece.start, error, self.report)
        inner = _inside(head, place)
        if inner is None and len(self.report.diagnostics) > before:
            return broken  # an unknown kind of block: no telling what its pieces are
        for _, _, pieces in piece.blocks:
            self.block(pieces, *(inner or (start, place)))
        return broken

    def complained(self, piece: _Piece, *, head_only: bool = False) -> bool:
        """Whether the scanner found a problem in the piece (outside its blocks)."""
        return any(
            piece.start <= position < piece.end
            and not (head_only and any(start <= position < end for start, end, _ in piece.blocks))
            for position in self.problems
        )

    def emptied(self, piece: _Piece) -> str:
        """Return the piece's text with blanks for what its blocks hold, and a `}` where one is missing."""
        parts, last = [], piece.start
        for start, end, _ in piece.blocks:
            parts += [self.text[last:start], " " * (end - start)]
            last = end
            if self.text[end : end + 1] != "}":
                parts.append("}")
        return "".join([*parts, self.text[last : piece.end]])


def _inside(head: str, place: str) -> tuple[Start, str] | None:
    """Return what the block of a piece is made of, by the piece's first word, and how messages call that place."""
    first = head.split(None, 1)[0] if head.split() else ""
    if first in ("rule", "system"):
        return "statement", first
    if first == "repeat" and place in ("rule", "system"):
        return "statement", place
    return {"memory": ("clause", "clause"), "train": ("field", "field")}.get(first)  # type: ignore[return-value]


def _split(scanned: Scanned) -> list[_Piece]:
    """Return the top-level pieces of the text."""
    splitter = _Splitter(scanned.text)
    for kind, position in scanned.marks:
        getattr(splitter, kind)(position)
    while splitter.stack:
        splitter.close(len(scanned.text))
    splitter.separator(len(scanned.text))
    return splitter.pieces


class _Splitter:
    """Turns the scanner's marks into nested pieces."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces: list[_Piece] = []  # of the block that is being read
        self.current: _Piece | None = None
        self.position = 0  # behind the last separator or brace
        self.stack: list[tuple[list[_Piece], _Piece, int]] = []

    def begin(self, position: int) -> _Piece:
        """Return the piece that the text up to `position` belongs to."""
        if self.current is None:
            start = self.position
            while start < position and self.text[start].isspace():
                start += 1
            self.current = _Piece(start)
        return self.current

    def separator(self, position: int) -> None:
        """End the current piece, if there is any text in it."""
        piece = self.begin(position)
        piece.end = position
        if piece.start < position:
            self.pieces.append(piece)
        self.current = None
        self.position = position + 1

    def open(self, position: int) -> None:
        """Start a block of the current piece."""
        self.stack.append((self.pieces, self.begin(position), position + 1))
        self.pieces, self.current, self.position = [], None, position + 1

    def close(self, position: int) -> None:
        """End a block and go on with the piece that it belongs to."""
        self.separator(position)
        inner = self.pieces
        self.pieces, piece, start = self.stack.pop()
        piece.blocks.append((start, position, inner))
        self.current = piece
