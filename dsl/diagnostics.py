"""One object for everything the compiler has to say: code, spans, notes, help, fix; and the error that carries it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from nsam.dsl.records import dataclass
from nsam.dsl.spans import Span

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Label:
    """A span with what is to be said about it."""

    span: Span
    text: str = ""


@dataclass(frozen=True, slots=True)
class Fix:
    """A replacement of a span; `safe` when it cannot change the meaning of a program that was right."""

    span: Span
    replacement: str
    safe: bool = False


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. `code` is stable (`N0214`), `name` its kebab-case name; `primary` is None when no text is at fault
    (a file that cannot be read)."""

    code: str
    name: str
    severity: Severity
    message: str
    primary: Label | None = None
    secondary: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    help: str | None = None
    fix: Fix | None = None


class ProgramError(Exception):
    """A program, a file or a request that a user can repair; `diagnostics` says how."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        super().__init__("; ".join(f"{d.code} {d.message}" for d in self.diagnostics))


class Report:
    """Collects diagnostics, so that one run reports many."""

    def __init__(self) -> None:
        self.diagnostics: list[Diagnostic] = []

    def add(
        self,
        code: str,
        message: str,
        span: Span | None,
        label: str = "",
        *,
        secondary: Sequence[Label] = (),
        notes: Sequence[str] = (),
        help: str | None = None,
        fix: Fix | None = None,
    ) -> None:
        """Add a finding; its name and severity come from the table of codes. Exact repeats are dropped."""
        from nsam.dsl.codes import CODES

        entry = CODES[code]
        primary = None if span is None else Label(span, label)
        found = Diagnostic(
            code, entry.name, entry.severity, message, primary, tuple(secondary), tuple(notes), help, fix
        )
        if found not in self.diagnostics:
            self.diagnostics.append(found)

    @property
    def failed(self) -> bool:
        """Whether an error (not only warnings) was added."""
        return any(d.severity == "error" for d in self.diagnostics)

    def raise_if_failed(self) -> None:
        """Raise `ProgramError` with everything found if there was an error."""
        if self.failed:
            raise ProgramError(self.diagnostics)


def fail(code: str, message: str, span: Span | None = None, label: str = "", **more: object) -> ProgramError:
    """Return a `ProgramError` with one diagnostic, for places that cannot go on."""
    report = Report()
    report.add(code, message, span, label, **more)  # type: ignore[arg-type]
    return ProgramError(report.diagnostics)
