"""What may come out of a command: a result, diagnostics, or a plain statement that nsam itself is at fault."""

from __future__ import annotations

import errno
import functools
import io
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click
from click.exceptions import Exit

from nsam.dsl.diagnostics import ProgramError

DIAGNOSTICS = 1
USAGE = 2
INTERNAL = 70
INTERRUPTED = 130

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a place that takes no more, as a full disk behind the standard output."""


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with every error turned into a message and an exit code; the signature stays.

    Diagnostics and a disk without room exit 1, Ctrl-C 130, anything unexpected 70 (its traceback only under
    NSAM_DEBUG=1). What click raises itself (usage, exit) and a closed pipe pass through.
    """

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
            sys.stdout.flush()
        except ProgramError as error:
            _show(error)
            raise Exit(DIAGNOSTICS) from None
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise Exit(INTERRUPTED) from None
        except (Exit, click.Abort, click.ClickException, BrokenPipeError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                _cannot_write(error)
                raise Exit(DIAGNOSTICS) from None
            _admit(error)
            raise Exit(INTERNAL) from None

    return run


def _show(error: ProgramError) -> None:
    from nsam.cli.output import show

    show(error.diagnostics)


def _cannot_write(error: OSError) -> None:
    where = "" if error.filename is None else f" {error.filename}"
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = io.StringIO()  # Python would try once more when it ends
    with suppress(OSError):
        click.echo(f"nsam: cannot write{where}: {error.strerror}", err=True)


def _admit(error: Exception) -> None:
    if os.environ.get("NSAM_DEBUG") == "1":
        traceback.print_exc(file=sys.stderr)
    click.echo(
        f"nsam: internal error: {type(error).__name__}: {error}\n"
        "This is a fault in nsam, not in your program. Please report it, with the program and the command; "
        "NSAM_DEBUG=1 shows where it happened.",
        err=True,
    )
