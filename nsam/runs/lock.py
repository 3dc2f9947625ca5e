"""One process at a time trains a run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from nsam.dsl.diagnostics import fail
from nsam.runs.folder import RunFolder


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Keep a run to this process; N0523 while another one has it. Where files cannot be locked nothing is kept."""
    descriptor = _lock(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that was forked may have it open too
            os.close(descriptor)


def _lock(folder: RunFolder) -> int | None:
    if not folder.description.exists():
        return None
    try:
        descriptor = os.open(folder.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:  # what is wrong with the folder is said when something is to be written
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise fail(
            "N0523",
            f"another process trains the run in {folder.path}",
            help="wait for it, stop it, or start another run: leave --resume out",
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor
