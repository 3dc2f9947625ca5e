"""Files in a cache that other processes read meanwhile."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def put(path: Path, data: bytes, *, executable: bool = False) -> None:
    """Write a file whole or not at all: aside, then moved into its place. Raises OSError where that is not allowed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        if executable:
            os.chmod(name, 0o755)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
