"""Printing diagnostics: for people on stderr, as JSON on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

import click

from nsam.cli.options import Format
from nsam.dsl.diagnostics import Diagnostic


def show(diagnostics: Sequence[Diagnostic], format: Format = Format.text) -> None:
    """Print `diagnostics`: text on stderr, JSON on stdout (where a program reads it)."""
    from nsam.dsl import rendering

    if format is Format.json:
        click.echo(rendering.render_json(diagnostics))
        return
    color = wants_color(sys.stderr)
    for diagnostic in diagnostics:
        click.echo(rendering.render_terminal(diagnostic, color=color) + "\n", err=True, color=color)
    if diagnostics:
        click.echo(_count(diagnostics), err=True)


def wants_color(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that wants colour (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _count(diagnostics: Sequence[Diagnostic]) -> str:
    parts = []
    for severity in ("error", "warning"):
        number = sum(d.severity == severity for d in diagnostics)
        if number:
            parts.append(f"{number} {severity}{'s' if number > 1 else ''}")
    return ", ".join(parts)
