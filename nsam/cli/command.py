"""How a function becomes a command of `nsam`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rich_click as click

from nsam.cli.guard import guarded
from nsam.dsl.collector import paused


def command(name: str, *, short: bool = False) -> Callable[[Callable[..., None]], click.RichCommand]:
    """Return the decorator that makes a function, with the options that stand below, the command `name`.

    Whatever the function raises becomes a message and an exit code. `short`: it is over before there is anything for
    Python to collect.
    """

    def make(function: Callable[..., None]) -> click.RichCommand:
        made: Callable[..., Any] = guarded(paused()(function) if short else function)
        return click.command(name)(made)

    return make
