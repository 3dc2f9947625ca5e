"""Writing so that a reader, or a run killed at any moment, sees the old content or the new, never a part."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from nsam.dsl.diagnostics import fail


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`: written beside it, forced to disk, renamed. N0514 when that is impossible."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(beside, content.encode() if isinstance(content, str) else content)
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def write_durably(path: Path, content: bytes) -> None:
    """Write `content` to `path` and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk knows the names in `folder` (a rename is not durable before)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> Exception:
    """Return the diagnostic for a path that cannot be written."""
    return fail("N0514", f"cannot write {path}: {error.strerror}", help="choose another place")
