"""What the compiled backend cannot do, said as a diagnostic."""

from __future__ import annotations

from nsam.dsl.diagnostics import ProgramError, fail
from nsam.dsl.spans import Span


def unsupported(message: str, span: Span | None, help: str | None = None) -> ProgramError:
    """Return the error for a program that is right but has no compiled form."""
    return fail("N0401", message, span, "no compiled form", help=help)
