"""`metrics.jsonl`: one JSON object a line, each with its step; the curve of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nsam.runs.atomic import cannot_write, write_atomic


class MetricsLog:
    """Appends to a metrics file. Opened at step n, it first drops what stands there for later steps.

    So the file of a run that was killed and resumed reads as that of one that was not.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise cannot_write(path, error) from None
        self._path = path

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one line for `step`, on disk at once as far as this process is concerned."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file up to the first that is none, as one that a kill cut off."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            values = json.loads(line.decode())
        except ValueError:
            break
        if not isinstance(values, dict) or not isinstance(values.get("step"), int):
            break
        found.append(values)
    return found
