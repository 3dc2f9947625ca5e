"""Writing so that a reader, or a run killed at any moment, sees the old content or the new, never a part."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from nsam.dsl.diagnostics import fail


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`: written beside it, forced to disk, renamed. N0514 when that is impossible.

    What `path` is stays: of a link the file that it leads to is replaced, a file keeps its mode; a device, a pipe and
    the standard output are written to.
    """
    # A summary tells names of files, which need not be UTF-8.
    data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    try:
        found = _stat(path)
        if found is None or (stat.S_ISREG(found.st_mode) and not is_output(path)):
            _replace(Path(os.path.realpath(path)), data, found)
        else:
            with path.open("wb") as file:
                file.write(data)
    except OSError as error:
        raise cannot_write(path, error) from None


def is_output(path: Path) -> bool:
    """Whether `path` is where the standard output goes (`/dev/stdout`)."""
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


def _stat(path: Path) -> os.stat_result | None:
    """What `path` leads to; None where there is nothing yet."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _replace(path: Path, data: bytes, before: os.stat_result | None) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if before is not None:  # first, so that nobody reads the content who may not read the file
            beside.touch(mode=0o600)
            with suppress(OSError):
                os.chown(beside, before.st_uid, before.st_gid)
            beside.chmod(stat.S_IMODE(before.st_mode))
        write_durably(beside, data)
        beside.replace(path)
        sync_folder(path.parent)
    except BaseException:  # a second Ctrl-C too
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


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
