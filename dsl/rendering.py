"""One diagnostic, four forms: terminal, JSON, language server, Markdown."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from nsam.dsl.codes import CODES
from nsam.dsl.diagnostics import Diagnostic, Fix, Label
from nsam.dsl.spans import Source, Span

_TAB = 4
_WIDTH = 110  # columns of source shown; longer lines are cut around the label
_JSON_VERSION = 1

_Marked: TypeAlias = tuple[Label, str, str]  # a label, its mark and its colour

_BOLD, _RED, _YELLOW, _BLUE, _GREEN = "1", "1;31", "1;33", "1;34", "1;32"


# --- terminal ---


def render_terminal(diagnostic: Diagnostic, *, color: bool = False) -> str:
    """Return the diagnostic as people read it: message, source with carets, notes, help, fix. Ends without newline."""
    paint = _Paint(color)
    strong = _RED if diagnostic.severity == "error" else _YELLOW
    title = f"{diagnostic.severity}[{diagnostic.code} {diagnostic.name}]"
    lines = [paint(strong, title) + paint(_BOLD, f": {_plain(diagnostic.message)}")]
    labels = ([diagnostic.primary] if diagnostic.primary else []) + list(diagnostic.secondary)
    gutter = max((len(str(label.span.last_line)) for label in labels), default=0)
    lines += _excerpts(diagnostic, gutter, strong, paint)
    margin = " " * gutter + " " + paint(_BLUE, "=") + " " if labels else "  = "
    lines += [f"{margin}note: {_plain(note)}" for note in diagnostic.notes]
    if diagnostic.help:
        lines.append(f"{margin}{paint(_GREEN, 'help')}: {_plain(diagnostic.help)}")
    if diagnostic.fix:
        lines.append(f"{margin}{paint(_GREEN, 'fix')}: {_plain(_fix_in_words(diagnostic.fix))}")
    return "\n".join(lines)


class _Paint:
    """Wraps text in colour codes, or not."""

    def __init__(self, color: bool) -> None:
        self.color = color

    def __call__(self, style: str, text: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self.color and text else text


def _excerpts(diagnostic: Diagnostic, gutter: int, strong: str, paint: _Paint) -> list[str]:
    """Return the source lines under their labels, the primary label's file first."""
    if diagnostic.primary is None:
        return []
    marked = [(diagnostic.primary, "^", strong), *((label, "-", _BLUE) for label in diagnostic.secondary)]
    sources: list[Source] = []
    for label, _, _ in marked:
        if all(label.span.source is not known for known in sources):
            sources.append(label.span.source)
    lines: list[str] = []
    bar = " " * gutter + " " + paint(_BLUE, "|")
    for number, source in enumerate(sources):
        of_source = [entry for entry in marked if entry[0].span.source is source]
        arrow = "-->" if number == 0 else ":::"
        lines.append(" " * gutter + paint(_BLUE, arrow) + f" {_position(of_source[0][0].span)}")
        lines.append(bar)
        lines += _one_source(of_source, gutter, bar, paint)
    return lines


def _one_source(marked: list[_Marked], gutter: int, bar: str, paint: _Paint) -> list[str]:
    by_line: dict[int, list[_Marked]] = {}
    for entry in marked:
        by_line.setdefault(entry[0].span.line, []).append(entry)
    lines: list[str] = []
    previous = None
    for number in sorted(by_line):
        if previous is not None and number > previous + 1:
            lines.append(paint(_BLUE, "." * max(gutter, 3)))
        entries = sorted(by_line[number], key=lambda entry: (-entry[0].span.start, entry[1] == "-"))
        view = _View(entries[-1][0].span, [entry[0].span for entry in entries])
        lines.append(paint(_BLUE, f"{number:>{gutter}} |") + f" {view.text}")
        lines += [f"{bar} {row}".rstrip() for row in view.underline(entries, paint)]
        previous = max(entry[0].span.line for entry in entries)
    return lines


class _View:
    """One source line as it is shown: tabs as blanks, control characters replaced, cut to the labels' surroundings."""

    def __init__(self, span: Span, spans: Sequence[Span]) -> None:
        text = span.source.text
        self.line_start = text.rfind("\n", 0, span.start) + 1
        end = text.find("\n", span.start)
        end = len(text) if end < 0 else end
        end -= text[self.line_start : end].endswith("\r")  # of a line end `\r\n`
        first = min(found.start for found in spans) - self.line_start
        line_length = end - self.line_start
        cut = line_length > _WIDTH
        self.first = max(0, min(first - 20, line_length - _WIDTH)) if cut else 0
        self.last = min(line_length, self.first + _WIDTH) if cut else line_length
        shown = text[self.line_start + self.first : self.line_start + self.last]
        self.cells = [_cell(character) for character in shown]
        self.lead = "…" if self.first > 0 else ""
        self.text = (self.lead + "".join(self.cells)).rstrip() + ("…" if self.last < line_length else "")

    def columns(self, position: int) -> int:
        """Return the terminal columns left of the character at `position` of the source."""
        count = min(max(position - self.line_start - self.first, 0), len(self.cells))
        return len(self.lead) + sum(_width(cell) for cell in self.cells[:count])

    def underline(self, entries: list[_Marked], paint: _Paint) -> list[str]:
        """Return the rows under the line, `entries` from right to left: all marks, then what each label says."""
        marks = _Row(paint)
        for label, mark, style in reversed(entries):
            start, end = self.columns(label.span.start), self.columns(label.span.end)
            marks.put(start, mark * max(1, end - start), style)
        rows = [marks]
        for number, (label, _, style) in enumerate(entries):
            words = _words(label)
            if number == 0:
                marks.put(marks.width + 1, words, style)
            elif words:
                row = _Row(paint)
                for other, _, other_style in reversed(entries[number + 1 :]):
                    row.put(self.columns(other.span.start), "|", other_style)
                row.put(self.columns(label.span.start), words, style)
                rows.append(row)
        return [row.text for row in rows]


class _Row:
    """A row of painted pieces at given columns; a piece that comes too late starts at once."""

    def __init__(self, paint: _Paint) -> None:
        self.paint = paint
        self.text = ""
        self.width = 0

    def put(self, column: int, piece: str, style: str) -> None:
        """Add `piece` at `column`; what an earlier piece covers is left out."""
        hidden = max(0, self.width - column)
        piece = piece[hidden:] if set(piece) <= {"^", "-", "|"} else piece
        if not piece:
            return
        self.text += " " * max(0, column - self.width) + self.paint(style, piece)
        self.width = max(self.width, column) + len(piece)


def _words(label: Label) -> str:
    """Return what a label says; a label of many lines says where it ends."""
    words = _plain(label.text)
    if label.span.last_line > label.span.line:
        words += f"{' ' if words else ''}(to line {label.span.last_line})"
    return words


def _cell(character: str) -> str:
    """Return what a terminal shows for one character of source."""
    if character == "\t":
        return " " * _TAB
    return character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"


def _width(cell: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in cell)


def _plain(text: str) -> str:
    """Return text that cannot steer the terminal: a program's words are quoted in messages."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _position(span: Span) -> str:
    return f"{_plain(span.source.name)}:{span.line}:{span.column}"


def _fix_in_words(fix: Fix) -> str:
    old, new = fix.span.text, fix.replacement
    if old and not old.isprintable() and (old in "\r\f" or not old.isascii()):
        place = f"U+{ord(old[0]):04X}"  # not to be seen, or to be told from a blank
        return f"replace {place} by a {'blank' if new == ' ' else 'new line'}" if new else f"remove {place}"
    if not old.strip():
        shown = new.strip()
        return f"insert `{shown}`" if shown else "insert a new line"
    return f"remove `{old}`" if not new else f"replace `{old}` by `{new}`"


# --- JSON ---


def render_json(diagnostics: Iterable[Diagnostic]) -> str:
    """Return diagnostics as JSON: `{"version": 1, "diagnostics": [...]}`; `to_dict` gives the shape of each."""
    found = [to_dict(diagnostic) for diagnostic in diagnostics]
    return json.dumps({"version": _JSON_VERSION, "diagnostics": found}, indent=2, ensure_ascii=True)


def to_dict(diagnostic: Diagnostic) -> dict[str, Any]:
    """Return one diagnostic as plain data.

    Keys: code, name, severity, message, primary (label or null), secondary (labels), notes, help (or null), fix
    (`{"span", "replacement", "safe"}` or null). A label is `{"span", "text"}`; a span has file, start and end
    (characters from 0, end excluded), line and column (from 1), end_line and end_column.
    """
    fix = diagnostic.fix
    return {
        "code": diagnostic.code,
        "name": diagnostic.name,
        "severity": diagnostic.severity,
        "message": diagnostic.message,
        "primary": None if diagnostic.primary is None else _label(diagnostic.primary),
        "secondary": [_label(label) for label in diagnostic.secondary],
        "notes": list(diagnostic.notes),
        "help": diagnostic.help,
        "fix": fix and {"span": _span(fix.span), "replacement": fix.replacement, "safe": fix.safe},
    }


def _label(label: Label) -> dict[str, Any]:
    return {"span": _span(label.span), "text": label.text}


def _span(span: Span) -> dict[str, Any]:
    end = Span(span.source, span.end, span.end)
    return {
        "file": span.source.name,
        "start": span.start,
        "end": span.end,
        "line": span.line,
        "column": span.column,
        "end_line": end.line,
        "end_column": end.column,
    }


# --- language server ---


def to_lsp(diagnostic: Diagnostic) -> dict[str, Any]:
    """Return one diagnostic as the language server protocol has it (lines from 0, columns in UTF-16 units)."""
    origin = {"start": {"line": 0, "character": 0}, "end": {"line": 0, "character": 0}}
    message = "\n".join(
        [
            diagnostic.message,
            *([diagnostic.primary.text] if diagnostic.primary and diagnostic.primary.text else []),
            *(f"note: {note}" for note in diagnostic.notes),
            *([f"help: {diagnostic.help}"] if diagnostic.help else []),
        ]
    )
    found: dict[str, Any] = {
        "range": _range(diagnostic.primary.span) if diagnostic.primary else origin,
        "severity": 1 if diagnostic.severity == "error" else 2,
        "code": diagnostic.code,
        "source": "nsam",
        "message": message,
        "relatedInformation": [
            {"location": {"uri": label.span.source.name, "range": _range(label.span)}, "message": label.text}
            for label in diagnostic.secondary
        ],
    }
    if diagnostic.fix:
        edit = {"range": _range(diagnostic.fix.span), "newText": diagnostic.fix.replacement}
        found["data"] = {"fix": edit, "safe": diagnostic.fix.safe}
    return found


def _range(span: Span) -> dict[str, Any]:
    return {"start": _lsp_position(span.source, span.start), "end": _lsp_position(span.source, span.end)}


def _lsp_position(source: Source, position: int) -> dict[str, int]:
    span = Span(source, position, position)
    before = source.text[position - span.column + 1 : position]
    return {"line": span.line - 1, "character": len(before.encode("utf-16-le", "surrogatepass")) // 2}


# --- Markdown ---


def render_markdown(diagnostic: Diagnostic) -> str:
    """Return one diagnostic as a Markdown section: heading, message, excerpt, notes and help."""
    lines = [f"### {diagnostic.code} {diagnostic.name}", "", f"**{diagnostic.severity}**: {diagnostic.message}", ""]
    terminal = render_terminal(diagnostic).split("\n")[1:]
    excerpt = [line for line in terminal if not line.lstrip().startswith("= ")]
    if excerpt:
        lines += [*_fenced("\n".join(excerpt), "text"), ""]
    lines += [f"- note: {note}" for note in diagnostic.notes]
    if diagnostic.help:
        lines.append(f"- help: {diagnostic.help}")
    if diagnostic.fix:
        lines.append(f"- fix: {_fix_in_words(diagnostic.fix)}")
    return "\n".join(lines).rstrip() + "\n"


def explain_code(code: str) -> str:
    """Return the page of a diagnostic code: rule, equation, a failing program, its repair. KeyError if unknown."""
    entry = CODES[code]
    lines = [f"{entry.code} {entry.name} ({entry.severity})", "", entry.rule]
    if entry.equation:
        lines += ["", f"Equation: {entry.equation}"]
    for title, program in (("This program breaks the rule:", entry.failing), ("Repaired:", entry.repaired)):
        if program is not None:
            shown = program if len(program) <= 4000 else program[:4000] + " …"
            lines += ["", title, "", *(f"    {_plain(line)}".rstrip() for line in shown.rstrip("\n").split("\n"))]
    return "\n".join(lines)


def _fenced(text: str, language: str) -> list[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence + language, text, fence]
