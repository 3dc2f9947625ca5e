"""The text of a program and of every local file it uses, as a run folder keeps them."""

from __future__ import annotations

import os
from pathlib import Path

from nsam.dsl.imports import load_file


def program_sources(file: Path) -> dict[str, str]:
    """Return the text of every file of the program at `file`, by its path relative to that file's folder.

    A program reaches files in its own folder and below, so `use "./other.nsam"` finds them again in a copy. The
    standard library is not among them: it comes with nsam.
    """
    folder = os.path.realpath(file.parent)
    return {
        os.path.relpath(key, folder): loaded.source.text
        for key, loaded in load_file(file).files.items()
        if os.path.isabs(key)
    }
