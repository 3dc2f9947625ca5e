"""Files in a cache that other processes read meanwhile."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def put(path: Path, data: bytes, *, executable: bool = False) -> None:
    """Write a file whole or not at all: aside, then moved into its place. Raises OSError where that is not allowed.

    Who may read it is what the process says of all its files (its umask): caches are shared between users.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with os.fdopen(
            os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o777 if executable else 0o666), "wb"
        ) as file:
            file.write(data)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
