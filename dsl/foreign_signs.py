"""Signs that are no part of the language, many of them from others: rules of `mistakes`."""

from __future__ import annotations

import re

from nsam.dsl.diagnostics import Fix
from nsam.dsl.spans import Span
from nsam.dsl.stop import Stop, short


def power(stop: Stop) -> bool:
    """`a ** b`: the second star is where an expression must start."""
    second = stop.found == "*" and stop.previous == "*" and stop.previous_end == stop.start
    if stop.found == "**" or second:
        length = 2 if stop.found == "**" else 1
        start = stop.start - (2 - length)
        span = Span(stop.source, start, start + 2)
        stop.report.add("N0106", "a power is written `^`", span, "expected `^`", fix=Fix(span, "^"))
        return True
    return False


def foreign_comment(stop: Stop) -> bool:
    """`// …` and `/* … */`, or a quotient `a//2`: the second sign is found first where an operator can stand."""
    start = stop.start - (stop.previous == "/" and stop.previous_end == stop.start)
    sign = stop.source.text[start : start + 2]
    if sign not in ("//", "/*") or not stop.found:
        return False
    span = Span(stop.source, start, start + 2)
    fix = Fix(span, "#") if sign == "//" and start == stop.start else None
    help_text = "comments begin with `#` and end with their line"
    if sign == "//" and re.match(r"[\w)\]]//[\w(]|. *// *[0-9]", stop.source.text[max(start - 1, 0) :], re.ASCII):
        help_text = "a quotient is `/`, of whole numbers whole where it divides exactly; a comment begins with `#`"
        fix = None
    stop.report.add("N0106", f"`{sign}` is no part of the language", span, "unknown", help=help_text, fix=fix)
    return True


def late_docstring(stop: Stop) -> bool:
    """A text between three quotes, anywhere but behind the edition line."""
    if not stop.source.text.startswith('"""', stop.start) or not stop.found:
        return False
    end = stop.source.text.find('"""', stop.start + 3) + 3
    span = Span(stop.source, stop.start, end if end > 2 else stop.start + 3)
    message = "a text stands behind the edition line, once"
    stop.report.add("N0112", message, span, "cannot stand here", help="comments begin with `#`")
    return True


def character(stop: Stop) -> bool:
    """A character or sign that is no part of the language."""
    if not stop.found:
        return False
    sign = stop.found
    if sign in ("<-", "->"):
        return False
    if re.match(r"[A-Za-z0-9_\"(){}\[\],:;=+\-*/@^.]", sign, re.ASCII) and sign not in ("==",):
        if sign.isascii():
            return False
        help_text = "names are made of a-z, A-Z, 0-9 and `_`"
        return stop.add("N0106", f"`{short(sign)}` has letters that names cannot have", help=help_text)
    named = {
        "<": "there are no comparisons",
        ">": "there are no comparisons",
        "!": "there are no comparisons",
        "&": "there are no logical operators",
        "|": "there are no logical operators",
        "%": "there is no remainder",
        "'": 'strings stand between `"`',
        "`": 'strings stand between `"`',
        "~": "there is no such operator",
        "\\": "a line goes on inside ( ) or [ ], without a backslash",
    }
    help_text = named.get(sign[0], "names are made of a-z, A-Z, 0-9 and `_`; the operators are + - * / @ ^")
    point = f" (U+{ord(sign[0]):04X})" if not sign[0].isascii() else ""
    message = f"`{short(sign)}`{point} is no part of the language"
    return stop.add("N0106", message, "unknown", help=help_text)
