"""Text to syntax tree.

The scanner looks at the text first, the grammar reads the whole file, the builder makes the nodes. When the grammar
does not accept the file, `recovery` reads it piece by piece, so that one run reports many errors.
"""

from __future__ import annotations

import re

from nsam.dsl import syntax
from nsam.dsl.diagnostics import Fix, Report
from nsam.dsl.grammar import Start, grammar
from nsam.dsl.scan import Scanned, scan
from nsam.dsl.spans import Source, Span
from nsam.dsl.words import EDITION

_HEADER = re.compile(r"\s*(?P<line>nsam\b[ \t]*(?P<number>[^\s;]*)[^\n;]*)?")


def parse(source: Source) -> syntax.File:
    """Return the tree of `source`; raise `ProgramError` with every syntax error found."""
    report = Report()
    file = parse_with_report(source, report)
    report.raise_if_failed()
    if file is None:
        raise RuntimeError(f"internal error: {source.name} has neither a tree nor an error; please report this")
    return file


def parse_with_report(source: Source, report: Report) -> syntax.File | None:
    """Return the tree of `source`, or None when it has errors, which are added to `report`."""
    from lark.exceptions import UnexpectedInput

    own = Report()
    scanned = scan(source, own)
    file: syntax.File | None = None
    if scanned is not None and edition_is_known(source, scanned, own):
        try:
            found = parse_piece(source, scanned.text, "file", own)
        except UnexpectedInput:
            from nsam.dsl.recovery import report_errors

            report_errors(source, scanned, own)
        else:
            assert isinstance(found, syntax.File)
            file = with_comments(found, scanned)
    in_order = sorted(own.diagnostics, key=lambda found: -1 if found.primary is None else found.primary.span.start)
    report.diagnostics.extend(found for found in in_order if found not in report.diagnostics)
    return None if own.failed else file


def with_comments(file: syntax.File, scanned: Scanned) -> syntax.File:
    """Return `file` with the comments that the scanner set aside."""
    return syntax.File(file.span, file.edition, file.docstring, file.uses, file.declarations, tuple(scanned.comments))


def parse_piece(
    source: Source, text: str, start: Start, report: Report, offset: int = 0, place: str | None = None
) -> object:
    """Parse `text`, which stands at character `offset` of `source`; lark's `UnexpectedInput` says what went wrong.

    Mistakes that the grammar lets through are added to `report`, and statements that do not belong into `place` (a key
    of `PLACES`), where the piece is read on its own.
    """
    from nsam.dsl.builder import Builder

    own = Report()
    tree = grammar().parse(text, start=start)
    builder = Builder(source, own, offset)
    node = builder.transform(tree)
    if place is not None:
        builder.check_place(node, place)
    report.diagnostics.extend(own.diagnostics)
    return node


def edition_is_known(source: Source, scanned: Scanned, report: Report) -> bool:
    """Check the first line. An unknown edition ends it: nobody knows what the rest means."""
    match = _HEADER.match(scanned.text)
    assert match is not None
    if match["line"] is None:
        place = len(source.text) - len(source.text.lstrip())
        span = Span(source, place, place)
        message = "the program does not say which edition of the language it is written in"
        fix = Fix(Span(source, 0, 0), f"nsam {EDITION}\n\n", safe=True)
        help_text = f"the first line of a program is `nsam {EDITION}`"
        report.add("N0005", message, span, f"expected `nsam {EDITION}` before this", help=help_text, fix=fix)
        return True
    number, span = match["number"], Span(source, *match.span("number"))
    if number == str(EDITION):
        return True
    fix = Fix(span, str(EDITION))
    if not number:
        fix = Fix(span, f" {EDITION}", safe=True)
        report.add("N0005", "`nsam` needs the number of an edition", span, f"expected {EDITION}", fix=fix)
        return False
    if number == "0":
        message = "edition 0 is deprecated and no longer read"
        report.add("N0007", message, span, "deprecated", help=f"rewrite the program for edition {EDITION}", fix=fix)
        return False
    newer = number.isdecimal()
    message = (
        f"edition {number} is not known to this version of nsam" if newer else "this is no edition of the language"
    )
    notes = ["a newer version of nsam may know it"] if newer else []
    report.add("N0006", message, span, f"expected {EDITION}", notes=notes, fix=fix)
    return False
