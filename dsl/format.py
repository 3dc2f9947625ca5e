"""One layout for all programs: `nsam fmt`.

The formatter keeps what the author decides and a reader sees: line breaks between clauses and statements, `;` between
those that share a line, brackets, comments, single blank lines. It settles the rest by rules: two blanks of
indentation a block or open bracket, blanks around operators, blank lines between declarations, no trailing blanks.

Alignment is the author's choice where it is consistent. Neighbouring lines whose clause arguments, `=`, `:` or parts
behind `;` start in one column stay aligned, at the least column that holds them; a gap that lines up with nothing
closes. A comment behind code keeps its column as long as two blanks fit before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from nsam.dsl import syntax
from nsam.dsl.diagnostics import Report
from nsam.dsl.grammar import grammar
from nsam.dsl.parser import parse
from nsam.dsl.scan import scan
from nsam.dsl.spans import Source

if TYPE_CHECKING:
    from lark import Token, Tree

_INDENT = 2
_COMMENT_GAP = 2
_TAB = 4
_WIDTH = 120
_CLAUSES = frozenset({"LEARN", "MINIMIZE", "BY", "EVERY", "READS", "RESET", "INIT"})
_KEYWORDS_BEFORE_BRACKET = _CLAUSES | {"OUTPUT", "REPEAT", "OVER", "LAST", "IN"}
_SPACED = frozenset({"EQUAL", "ARROW", "LEFT_ARROW", "PLUS", "MINUS", "STAR", "SLASH", "AT"})


def format_source(text: str, name: str = "<text>") -> str:
    """Return `text` in the standard layout; raise `ProgramError` when it is no program."""
    source = Source(name, text.removeprefix("\ufeff"))
    return format_file(parse(source), source)


def format_check(text: str, name: str = "<text>") -> bool:
    """Whether `text` has the standard layout already; raise `ProgramError` when it is no program."""
    return format_source(text, name) == text


def format_file(file: syntax.File, source: Source) -> str:
    """Return the text of `source`, whose tree is `file`, in the standard layout."""
    scanned = scan(source, Report())
    if scanned is None:
        raise RuntimeError(f"internal error: {source.name} parsed but does not scan; please report this")
    tree = grammar().parse(scanned.text, start="file")
    pieces = _pieces(tree, file, source)
    broken: set[int] = set()
    while True:
        lines = _lines(pieces, source.text, broken)
        _align(lines)
        found = _too_long(lines) - broken
        if not found:
            return _text(lines)
        broken |= found


@dataclass(slots=True)
class _Piece:
    """A token or comment. `tight` operators have no blanks around them; `slot` names what may be aligned here."""

    kind: str
    text: str
    start: int
    end: int
    column: int
    tight: bool = False
    slot: str = ""


@dataclass(slots=True)
class _Line:
    """One line of output: `gaps[i]` blanks before `pieces[i]`; `blank` when an empty line stands before it."""

    depth: int
    blank: bool
    pieces: list[_Piece] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)

    def column(self, index: int) -> int:
        """Return the output column of a piece."""
        widths = sum(len(piece.text) for piece in self.pieces[:index])
        return self.depth * _INDENT + sum(self.gaps[: index + 1]) + widths

    def slots(self) -> dict[str, int]:
        """Return the index of the piece in each slot."""
        found: dict[str, int] = {}
        semicolons = 0
        for index, piece in enumerate(self.pieces):
            if index and self.pieces[index - 1].kind == "SEMICOLON":
                semicolons += 1
                found[f"part {semicolons}"] = index
            elif piece.slot and piece.slot != "head" and piece.slot not in found:
                found[piece.slot] = index
        if len(self.pieces) > 1 and self.pieces[0].slot == "head" and self.pieces[1].kind != "COMMENT":
            found["head"] = 1
        return found


# --- pieces ---


def _pieces(tree: Tree[Token], file: syntax.File, source: Source) -> list[_Piece]:
    """Return tokens and comments in the order of the text."""
    found = [_piece(source, token.type, token.start_pos or 0, token.end_pos or 0) for token in _tokens(tree)]
    found += [_piece(source, "COMMENT", comment.span.start, comment.span.end) for comment in file.comments]
    found.sort(key=lambda piece: piece.start)
    _mark(tree, {piece.start: piece for piece in found})
    return found


def _tokens(tree: Tree[Token]) -> list[Token]:
    """Return the tokens below `tree` but line ends, in no order, without recursion."""
    return [token for node in tree.iter_subtrees() for token in _own_tokens(node)]


def _own_tokens(node: Tree[Token]) -> list[Token]:
    """Return the tokens of a node itself, line ends left out."""
    from lark import Token

    return [child for child in node.children if isinstance(child, Token) and child.type != "_NEWLINE"]


def _piece(source: Source, kind: str, start: int, end: int) -> _Piece:
    line_start = source.text.rfind("\n", 0, start) + 1
    column = len(source.text[line_start:start].expandtabs(_TAB))
    text = source.text[start:end].rstrip().replace("\r\n", "\n")  # a docstring has line ends of its own
    return _Piece(kind, text, start, end, column)


def _mark(tree: Tree[Token], at: dict[int, _Piece]) -> None:
    """Note on each piece what only the tree knows: products in sizes, unary minus, the colons and `=` of statements."""
    for node in tree.iter_subtrees():
        if node.data in ("structure", "shape", "token_shape"):
            for token in _tokens(node):
                if token.type in ("STAR", "SLASH"):
                    at[token.start_pos or 0].tight = True
        tokens = {token.type: at[token.start_pos or 0] for token in _own_tokens(node)}
        if node.data == "negative":
            tokens["MINUS"].kind = "NEGATIVE"
        elif node.data in ("memory", "transfer"):
            tokens["COLON"].kind = "SPACED_COLON"
            tokens["COLON"].slot = "colon"
        elif node.data in ("let", "assign", "state"):
            tokens["EQUAL"].slot = "assign"
        elif node.data == "update":
            tokens["LEFT_ARROW"].slot = "assign"
        elif node.data == "block":
            tokens["LBRACE"].slot = "body"
        elif node.data == "setting":
            tokens["NAME"].slot = "head"
    for piece in at.values():
        if piece.kind in _CLAUSES:
            piece.slot = "head"


# --- lines ---


def _lines(pieces: list[_Piece], text: str, broken: set[int]) -> list[_Line]:
    """Break the pieces into lines where the author did, and around the contents of blocks of several lines.

    `broken` are the positions of the braces of one-line blocks that no line has room for.
    """
    layout = _Layout(text, _long_blocks(pieces, text), broken)
    for index, piece in enumerate(pieces):
        following = pieces[index + 1] if index + 1 < len(pieces) else None
        layout.add(piece, following)
    return [line for line in layout.lines if line.pieces]


def _long_blocks(pieces: list[_Piece], text: str) -> set[int]:
    """Return the positions of the braces of blocks that span several lines."""
    found: set[int] = set()
    stack: list[int] = []
    for piece in pieces:
        if piece.kind == "LBRACE":
            stack.append(piece.start)
        elif piece.kind == "RBRACE":
            start = stack.pop()
            if "\n" in text[start : piece.start]:
                found |= {start, piece.start}
    return found


def _too_long(lines: list[_Line]) -> set[int]:
    """Return the positions of the outer braces of bodies that make lines too long; clauses stay as they are."""
    found: set[int] = set()
    for line in lines:
        width = line.column(len(line.pieces) - 1) + len(line.pieces[-1].text)
        stack: list[_Piece] = []
        for piece in line.pieces if width > _WIDTH else ():
            if piece.kind == "LBRACE":
                stack.append(piece)
            elif piece.kind == "RBRACE" and stack:
                opener = stack.pop()
                if not stack and opener.slot == "body":
                    found |= {opener.start, piece.start}
    return found


class _Layout:
    """Collects lines piece by piece."""

    def __init__(self, text: str, long_blocks: set[int], broken: set[int]) -> None:
        self.text = text
        self.long = long_blocks | broken
        self.broken = broken
        self.opened: list[int] = []
        self.split = False  # a `;` of a broken block stood before the next piece
        self.lines: list[_Line] = [_Line(0, False)]
        self.depth = 0
        self.brackets = 0
        self.previous: _Piece | None = None
        self.ended = ""  # the kind of top-level thing that ended last: edition, docstring, use, declaration

    def add(self, piece: _Piece, following: _Piece | None) -> None:
        """Place one piece."""
        newlines = 0 if self.previous is None else self.text.count("\n", self.previous.end, piece.start)
        if piece.kind == "SEMICOLON" and self.opened and self.opened[-1] in self.broken:
            self.split = True
            return
        if piece.kind == "SEMICOLON" and self.needless(piece, following):
            return
        closes = piece.kind in ("RBRACE", "RPAR", "RSQB")
        if closes:
            self.close(piece.kind)
        if newlines or self.split or self.forced(piece):
            self.break_line(piece, newlines)
        self.split = False
        line = self.lines[-1]
        line.gaps.append(_gap(line.pieces[-1], piece) if line.pieces else 0)
        line.pieces.append(piece)
        if piece.kind == "LBRACE":
            self.depth += 1
            self.opened.append(piece.start)
        elif piece.kind in ("LPAR", "LSQB"):
            self.brackets += 1
        self.previous = piece

    def close(self, kind: str) -> None:
        if kind == "RBRACE":
            self.depth -= 1
            self.opened.pop()
        else:
            self.brackets -= 1

    def needless(self, piece: _Piece, following: _Piece | None) -> bool:
        """Whether a `;` separates nothing that a line break or brace does not separate."""
        line = self.lines[-1]
        if not line.pieces or line.pieces[-1].kind in ("LBRACE", "SEMICOLON"):
            return True
        if self.previous is not None and "\n" in self.text[self.previous.end : piece.start]:
            return True
        if following is None or following.kind in ("SEMICOLON", "RBRACE", "COMMENT"):
            return True
        return "\n" in self.text[piece.end : following.start]

    def forced(self, piece: _Piece) -> bool:
        """Whether a line ends here whatever the author did."""
        if self.previous is None or piece.kind == "COMMENT":
            return False
        opened = self.previous.kind == "LBRACE" and self.previous.start in self.long
        return opened or (piece.kind == "RBRACE" and piece.start in self.long)

    def break_line(self, piece: _Piece, newlines: int) -> None:
        """Start a new line, with an empty one before it where the author left one or the rules want one."""
        last = self.lines[-1]
        blank = newlines > 1 and not self.brackets
        opener = last.pieces[-1].kind if last.pieces else ""
        if opener == "COMMENT" and len(last.pieces) > 1:
            opener = last.pieces[-2].kind
        if opener == "LBRACE" or piece.kind == "RBRACE" or not last.pieces:
            blank = False
        elif self.depth == 0 and not self.brackets:
            blank = blank or self.section_ends(last, piece)
        self.lines.append(_Line(self.depth + self.brackets, blank))

    def section_ends(self, last: _Line, piece: _Piece) -> bool:
        """Whether an edition line, docstring, list of `use` lines or declaration ends before `piece`."""
        kinds = [found.kind for found in last.pieces if found.kind != "COMMENT"]
        if not kinds:
            return False
        if kinds[0] in ("NSAM", "DOCSTRING") or kinds[-1] == "RBRACE":
            return True
        return piece.kind != "USE" and kinds[-1] == "RPAR"


def _gap(left: _Piece, right: _Piece) -> int:
    """Return how many blanks stand between two neighbours of a line."""
    if right.kind == "COMMENT":
        return _COMMENT_GAP
    if right.kind in ("COMMA", "SEMICOLON", "RPAR", "RSQB", "TRANSPOSE", "CARET", "COLON"):
        return 0
    if left.kind in ("LPAR", "LSQB", "CARET", "NEGATIVE") or (left.kind == "LBRACE" and right.kind == "RBRACE"):
        return 0
    if left.tight or right.tight or "DOTS" in (left.kind, right.kind):
        return 0
    if right.kind in ("LPAR", "LSQB"):
        return 0 if left.kind in ("NAME", "TRANSPOSE") else 1
    return 1


# --- alignment ---


def _align(lines: list[_Line]) -> None:
    """Keep the alignment of neighbouring lines where the author's columns agree."""
    widest = max((len(line.slots()) for line in lines), default=0)
    names = ["head", "colon", "assign", *(f"part {number}" for number in range(1, widest + 1))]
    slots = [line.slots() for line in lines]
    for name in names:
        for run in _runs(lines, slots, name):
            indexes = [(lines[number], slots[number][name]) for number in run]
            target = max(line.column(index) for line, index in indexes)
            for line, index in indexes:
                line.gaps[index] += target - line.column(index)


def _runs(lines: list[_Line], slots: list[dict[str, int]], name: str) -> list[list[int]]:
    """Return the runs of neighbouring lines whose pieces in slot `name` start in one column of the source."""

    def key(number: int) -> tuple[int, int] | None:
        index = slots[number].get(name)
        return None if index is None else (lines[number].depth, lines[number].pieces[index].column)

    found: list[list[int]] = []
    for wanted, group in groupby(range(len(lines)), key):
        run: list[int] = []
        for number in group if wanted is not None else ():
            if run and lines[number].blank:
                found.append(run)
                run = []
            run.append(number)
        found.append(run)
    return [run for run in found if len(run) > 1]


# --- text ---


def _text(lines: list[_Line]) -> str:
    """Return the lines as text; a comment behind code goes back to its column where that is free."""
    found: list[str] = []
    for line in lines:
        if line.blank:
            found.append("")
        text = " " * (line.depth * _INDENT)
        for piece, gap in zip(line.pieces, line.gaps, strict=True):
            if piece.kind == "COMMENT" and piece is not line.pieces[0] and piece.column <= _WIDTH:
                gap = max(gap, piece.column - len(text))
            text += " " * gap + piece.text
        found.append(text)
    return "\n".join(found) + "\n"
