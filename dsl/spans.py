"""Where a piece of program text stands: carried by every node, never as bare integers."""

from __future__ import annotations

from nsam.dsl.records import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """One file's text, under the name that diagnostics print."""

    name: str
    text: str

    def line(self, number: int) -> str:
        """Return line `number` (from 1) without its newline; empty past the end."""
        lines = self.text.split("\n")
        return lines[number - 1] if 1 <= number <= len(lines) else ""


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range `[start, end)` of characters in one source."""

    source: Source
    start: int
    end: int

    @property
    def text(self) -> str:
        """The characters that the span covers."""
        return self.source.text[self.start : self.end]

    @property
    def line(self) -> int:
        """Line of the first character, from 1."""
        return self.source.text.count("\n", 0, self.start) + 1

    @property
    def column(self) -> int:
        """Column of the first character, from 1."""
        return self.start - (self.source.text.rfind("\n", 0, self.start) + 1) + 1

    @property
    def last_line(self) -> int:
        """Line of the last character, from 1; the first line for an empty span."""
        return self.source.text.count("\n", 0, max(self.start, self.end - 1)) + 1

    def to(self, other: Span) -> Span:
        """Return the span from the start of this one to the end of `other`, in the same source."""
        return Span(self.source, self.start, max(self.end, other.end))

    def __repr__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"
