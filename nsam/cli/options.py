"""Arguments and options that several commands share, and how `name=value` is read."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Value: TypeAlias = "int | float | bool | str | tuple[Value, ...]"

MAX_VALUE_LENGTH = 10_000
"""Characters in one `name=value`: far above any use, low enough that no request can be a bomb."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*\Z")
_INT = re.compile(r"[+-]?[0-9]+\Z")


class Format(StrEnum):
    """How diagnostics and reports are printed."""

    text = "text"
    json = "json"


File = Annotated[Path, typer.Argument(metavar="FILE", help="The program, a .nsam file.", show_default=False)]
System = Annotated[
    str | None,
    typer.Argument(metavar="SYSTEM", help="A system or train declaration of the program.", show_default=False),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        metavar="NAME=VALUE",
        help="A parameter of the system, e.g. [cyan]-p dim=64[/]; may be repeated.",
        show_default=False,
    ),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        "--without",
        metavar="PASS,…",
        help="Passes of the compiler to switch off, e.g. [cyan]share,hoist[/], or [cyan]all[/]. Values stay the same.",
        show_default=False,
    ),
]
MAX_SEED = 2**64 - 1
"""The largest seed of torch's generators."""

OutputFormat = Annotated[Format, typer.Option("--format", help="How to print what was found.")]


def parse_value(text: str) -> Value:
    """Return the compile-time value written as `text`: int, float with `inf`, true/false, list, else a string."""
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    if _INT.match(text):
        return int(text)
    if text.startswith("[") and text.endswith("]"):
        inside = text[1:-1].strip()
        if "[" in inside:
            raise ValueError("lists of lists are not values")
        return tuple(parse_value(item) for item in inside.split(",")) if inside else ()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1]
    try:
        number = float(text)
    except ValueError:
        return text
    if math.isnan(number):
        raise ValueError("nan is not a value")
    return number


def parse_pairs(pairs: list[str] | None, option: str) -> dict[str, Value]:
    """Return what `pairs` (`["dim=64", …]`) assign; anything else, and a name said twice, is a usage error."""
    found: dict[str, Value] = {}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        name = name.strip()
        if len(pair) > MAX_VALUE_LENGTH:
            raise typer.BadParameter(f"longer than {MAX_VALUE_LENGTH:,} characters", param_hint=option)
        if not equals or not _NAME.match(name) or not text.strip():
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE, e.g. dim=64", param_hint=option)
        if name in found:
            raise typer.BadParameter(f"{name} is given twice", param_hint=option)
        try:
            found[name] = parse_value(text)
        except ValueError as error:
            raise typer.BadParameter(f"{pair!r}: {error}", param_hint=option) from None
    return found
