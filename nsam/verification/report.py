"""What a verification found: one row for each check, with the number that was measured and its limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Result = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Row:
    """One check on one subject.

    `measured` against `limit` decided the `result`; skipped rows have neither and say why in `note`.
    """

    check: str
    subject: str
    result: Result
    measured: str = ""
    limit: str = ""
    note: str = ""


def at_most(check: str, subject: str, measured: float, limit: float, note: str = "") -> Row:
    """A row that holds when `measured` is at most `limit` (a NaN never is)."""
    return Row(check, subject, "ok" if measured <= limit else "failed", _number(measured), f"≤ {_number(limit)}", note)


def skipped(check: str, subject: str, why: str) -> Row:
    """A row for a check that has nothing to check here."""
    return Row(check, subject, "skipped", note=why)


def _number(x: float) -> str:
    return f"{x:.3g}"


@dataclass(frozen=True, slots=True)
class Report:
    """All rows of one verification."""

    system: str
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether no row failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if row.result == "failed")

    @property
    def text(self) -> str:
        """An aligned table, and a last line that counts."""
        header = ("check", "of", "measured", "limit", "result", "")
        cells = [header]
        cells += [(r.check, r.subject, r.measured, r.limit, r.result, r.note) for r in self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(header) - 1)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
            for row in cells
        ]
        return "\n".join([self.system, *lines, self.summary]) + "\n"

    @property
    def summary(self) -> str:
        """One line: how many rows held, failed, did not apply."""
        count = {kind: sum(row.result == kind for row in self.rows) for kind in ("ok", "failed", "skipped")}
        return f"{count['ok']} checks hold, {count['failed']} failed, {count['skipped']} skipped"
