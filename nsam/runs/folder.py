"""A run on disk: the program and everything needed to continue it or to generate from it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nsam.dsl.diagnostics import fail
from nsam.runs.atomic import cannot_write, write_atomic
from nsam.runs.checkpoint import checkpoints

FORMAT = 1
"""Version of the folder's layout."""


@dataclass(frozen=True, slots=True)
class RunDescription:
    """What a run was started with. `data` holds absolute paths; empty means Python's documentation topics.

    `overrides` are the `--set` values, `main` the program's file inside `program/`, `fingerprint` that of the corpus,
    `without` the passes of the compiler that were switched off, `memory` the budget in bytes.
    """

    train: str
    overrides: Mapping[str, Any]
    main: str
    data: tuple[str, ...]
    fingerprint: str
    context: int
    batch: int
    seed: int
    dtype: str
    version: str
    without: tuple[str, ...] = ()
    memory: int | None = None
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths inside one run folder."""

    path: Path

    @property
    def description(self) -> Path:
        """What the run was started with, JSON."""
        return self.path / "run.json"

    @property
    def program(self) -> Path:
        """Folder with a copy of the program and of every local file that it uses."""
        return self.path / "program"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: steps, held-out losses, memories."""
        return self.path / "metrics.jsonl"

    def write(self, name: str, content: bytes | str) -> Path:
        """Write one file of the run at once; return its path."""
        path = self.path / name
        write_atomic(path, content)
        return path


def create_run(path: Path, description: RunDescription, sources: Mapping[str, str]) -> RunFolder:
    """Make a new run folder holding `description` and the program's `sources` by relative path.

    N0508 when `path` holds a run or anything else already, N0514 when it cannot be written.
    """
    folder = RunFolder(path)
    if folder.description.exists():
        raise fail(
            "N0508",
            f"{path} holds a run already",
            help="add --resume to continue it, or choose another folder with --out",
        )
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise fail("N0508", f"{path} exists and is not an empty folder", help="choose another one with --out")
        folder.checkpoints.mkdir(parents=True)
    except FileExistsError:
        raise fail("N0508", f"another run begins in {path}", help="choose another folder with --out") from None
    except OSError as error:
        raise cannot_write(path, error) from None
    keep_program(folder, sources)
    folder.write("run.json", json.dumps(asdict(description), indent=2) + "\n")
    return folder


def keep_program(folder: RunFolder, sources: Mapping[str, str]) -> None:
    """Keep the text of a program's files, by relative path; N0514 when that is impossible."""
    try:
        for name, text in sources.items():
            target = folder.program / name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, text)
    except OSError as error:
        raise cannot_write(folder.program, error) from None


def changed_sources(folder: RunFolder, main: str, sources: Mapping[str, str], now: str) -> list[str]:
    """Return the files of a program whose text is not what the run keeps; `main` is called `now` by now."""
    return [name for name, text in sources.items() if _kept(folder, main if name == now else name) != text.encode()]


def _kept(folder: RunFolder, name: str) -> bytes | None:
    try:
        return (folder.program / name).read_bytes()
    except OSError:
        return None


def open_run(path: Path) -> tuple[RunFolder, RunDescription]:
    """Return the run at `path` and what it was started with; N0509 when it is not one."""
    folder = RunFolder(path)
    try:
        found = json.loads(folder.description.read_bytes())
        if found.get("format") != FORMAT:
            raise fail("N0509", f"{path} was written by another version of nsam (format {found.get('format')})")
        found["data"] = tuple(found["data"])
        found["without"] = tuple(found.get("without", ()))
        found["overrides"] = {name: _frozen(value) for name, value in found["overrides"].items()}
        return folder, RunDescription(**found)
    except OSError as error:
        raise fail(
            "N0509",
            f"{path} is not a run folder: cannot read {folder.description.name}: {error.strerror}",
            help="a run folder is what `nsam train FILE --out DIR` makes",
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise fail("N0509", f"{folder.description} is damaged: {error}") from None


def update_overrides(folder: RunFolder, description: RunDescription) -> None:
    """Store a description that a resumed run changed (its number of steps, say)."""
    folder.write("run.json", json.dumps(asdict(description), indent=2) + "\n")


def claim_run(root: Path, train: str) -> Path:
    """Make the first free folder `root/<train>-<n>`, for this process alone; N0514 when that is impossible."""
    number = max(_numbers(root, train), default=0) + 1
    while True:
        path = root / f"{train}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # another process was faster
            number += 1
        except OSError as error:
            raise cannot_write(path, error) from None
        else:
            return path


def last_run(root: Path, train: str) -> Path:
    """Return the latest `root/<train>-<n>` with a checkpoint, else the latest that began; N0509 when there is none."""
    begun = [root / f"{train}-{number}" for number in sorted(_numbers(root, train))]
    begun = [path for path in begun if RunFolder(path).description.exists()]
    trained = [path for path in begun if checkpoints(RunFolder(path).checkpoints)]
    if not begun:
        raise fail("N0509", f"there is no run of `{train}` in {root}/ to resume", help="say which with --out DIR")
    return (trained or begun)[-1]


def _numbers(root: Path, train: str) -> list[int]:
    if not root.is_dir():
        return []
    pattern = re.compile(re.escape(train) + r"-([0-9]{1,9})\Z")
    found = (pattern.match(path.name) for path in root.iterdir())
    return [int(match[1]) for match in found if match]


def _frozen(value: Any) -> Any:
    """Lists come back from JSON where tuples went in."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
