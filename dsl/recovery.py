"""temporary."""

from __future__ import annotations

from nsam.dsl.diagnostics import Report
from nsam.dsl.scan import Scanned
from nsam.dsl.spans import Source, Span


def report_errors(source: Source, scanned: Scanned, report: Report) -> None:
    """Report one error at the place where the grammar stopped."""
    from lark.exceptions import UnexpectedInput

    from nsam.dsl.parser import grammar

    try:
        grammar().parse(scanned.text, start="file")
    except UnexpectedInput as error:
        position = error.pos_in_stream or 0
        report.add("N0101", "unexpected text", Span(source, position, position + 1))
