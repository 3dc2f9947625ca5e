"""The text of a program and of every local file it uses, as a run folder keeps them."""

from __future__ import annotations

import os
from pathlib import Path

from nsam.dsl.program import Program


def program_sources(program: Program, file: Path) -> tuple[str, dict[str, str]]:
    """Return the main file's name, and the text of every file of the program by its path relative to the main one's
    folder, so that `use "./other.nsam"` finds them again."""
    folder = file.resolve().parent
    texts: dict[str, str] = {}
    for source in program.sources:
        path = Path(source.name).resolve()
        texts[os.path.relpath(path, folder)] = source.text
    return file.name, texts
