"""Arguments and options that several commands share, and how `name=value` is read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

import rich_click as click

Value: TypeAlias = "int | float | bool | str | tuple[Value, ...]"

MAX_VALUE_LENGTH = 10_000
"""Characters in one `name=value`: far above any use, low enough that no request can be a bomb."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*\Z")
_INT = re.compile(r"[+-]?[0-9]+\Z")


class Format(StrEnum):
    """How diagnostics and reports are printed."""

    text = "text"
    json = "json"


class Precision(StrEnum):
    """Precision of matrix products."""

    float32 = "float32"
    bfloat16 = "bfloat16"


MAX_SEED = 2**64 - 1
"""The largest seed of torch's generators."""

PATH = click.Path(path_type=Path)


class NumberRange(click.FloatRange):
    """Numbers within bounds. Every comparison with nan is false, so that click's own lets it through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; a usage error for what is none, or lies outside."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("nan is not a number.", param, ctx)
        return number


with_file = click.argument("file", type=PATH, help="The program, a .nsam file.")
with_system = click.argument("system", required=False, help="A system or train declaration of the program.")
with_parameters = click.option(
    "--param",
    "-p",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the system, e.g. [cyan]-p dim=64[/]; may be repeated.",
)
with_passes = click.option(
    "--without",
    multiple=True,
    metavar="PASS,…",
    help="Passes of the compiler to switch off, e.g. [cyan]share,hoist[/], or [cyan]all[/]. Values stay the same.",
)
with_format = click.option(
    "--format", type=click.Choice(Format), default=Format.text, show_default=True, help="How to print what was found."
)
with_device = click.option("--device", metavar="DEVICE", default="cpu", show_default=True, help="cpu, cuda, cuda:1, …")
with_threads = click.option("--threads", type=click.IntRange(1, 1024), metavar="COUNT", help="CPU threads.")


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


def parse_pairs(pairs: Sequence[str], option: str) -> dict[str, Value]:
    """Return what `pairs` (`["dim=64", …]`) assign; anything else, and a name said twice, is a usage error."""
    found: dict[str, Value] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip()
        if len(pair) > MAX_VALUE_LENGTH:
            raise click.BadParameter(f"longer than {MAX_VALUE_LENGTH:,} characters", param_hint=option)
        if not equals or not _NAME.match(name) or not text.strip():
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE, e.g. dim=64", param_hint=option)
        if name in found:
            raise click.BadParameter(f"{name} is given twice", param_hint=option)
        try:
            found[name] = parse_value(text)
        except ValueError as error:
            raise click.BadParameter(f"{pair!r}: {error}", param_hint=option) from None
    return found
