"""Shapes, outputs and values in the forms of other languages: rules of `mistakes`."""

from __future__ import annotations

import re

from nsam.dsl.diagnostics import Fix
from nsam.dsl.spans import Span
from nsam.dsl.stop import OPERATORS, WORD, Stop


def input_shape(stop: Stop) -> bool:
    """`input x: dim`, `input x: float[dim]`, `input t: token`."""
    if stop.first != "input" or stop.expected != {"LPAR"}:
        return False
    word = stop.previous
    span = Span(stop.source, stop.previous_end - len(word), stop.previous_end)
    message, label = f"`{word}` is no shape", "expected `[…]`"
    help_text = f"a vector per token is `[{word}]`, an integer token `token(vocab)`"
    fix = None
    if word == "token":
        help_text, label = "a token is one of a number of classes: `token(vocab)`", "expected `token(…)`"
    elif stop.found == "[":
        help_text = "a shape is its sizes alone, of one vector per token `[dim]`"
    else:
        fix = Fix(span, f"[{word}]")
    stop.report.add("N0101", message, span, label, help=help_text, fix=fix)
    return True


def several_outputs(stop: Stop) -> bool:
    """`output a, b`."""
    if stop.found != "," or stop.first != "output" or not stop.complete:
        return False
    help_text = "join several values with `concat(a, b)`"
    return stop.add("N0101", "a system returns one value", "expected an operator or a new line", help=help_text)


def subscript(stop: Stop) -> bool:
    """`x[0]`, `f(x)[0]`: brackets right behind a value."""
    if stop.found != "[" or stop.previous_end != stop.start or stop.wants_expression:
        return False
    if not stop.expected & OPERATORS or not (stop.previous == ")" or WORD.match(stop.previous)):
        return False
    help_text = "one number of a vector `v` is `index(v, 0)`, a part of it `slice(v, 0, 2)`"
    return stop.add("N0116", "`[ ]` takes nothing out of a value", "expected an operator", help=help_text)


def bare_transpose(stop: Stop) -> bool:
    """`m.T` that is not called."""
    if stop.expected != {"LPAR"} or not stop.before.endswith(".T"):
        return False
    name = re.findall(r"\w*", stop.before[:-2])[-2]
    help_text = f"`{name}.T(x)` reads a memory"
    if stop.declaration == "rule":
        help_text = f"the transpose of a matrix is `transpose({name})`; {help_text}"
    return stop.add("N0101", f"`{name}.T` is no value of its own", "expected `(`", help=help_text)
