"""The parser that lark makes of `grammar.lark`, and its tables kept between processes.

Working out the tables takes a tenth of a second, a fifth of what `nsam check` may take in all; reading them takes a
tenth of that. They lie in the user's cache folder under a name that says what they were made from.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lark import Lark

Start = Literal["file", "item", "statement", "clause", "field"]
STARTS: tuple[Start, ...] = ("file", "item", "statement", "clause", "field")


@cache
def grammar() -> Lark:
    """Return the parser, made once a process."""
    text = files("nsam.dsl").joinpath("grammar.lark").read_text(encoding="utf-8")
    kept = kept_at(text)
    found = None if kept is None else _read(kept)
    if found is not None:
        return found
    made = build(text)
    if kept is not None:
        _keep(made, kept)
    return made


def build(text: str) -> Lark:
    """Return the parser of a grammar, its tables worked out anew."""
    from lark import Lark

    return Lark(
        text, parser="lalr", lexer="contextual", start=list(STARTS), keep_all_tokens=True, maybe_placeholders=False
    )


def kept_at(text: str) -> Path | None:
    """Return where the tables of this grammar are kept, or None where there is no folder for it (no home)."""
    import lark

    made_from = "\0".join((text, *STARTS, lark.__version__, sys.version))
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return folder / "nsam" / f"grammar-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.pickle"


def _read(kept: Path) -> Lark | None:
    """Return the parser whose tables lie at `kept`; None when there are none or they cannot be read."""
    from lark import Lark

    try:
        with open(kept, "rb") as file:
            return Lark.load(file)
    except Exception:  # whatever a broken pickle makes of itself; the tables are worked out anew
        return None


def _keep(made: Lark, kept: Path) -> None:
    """Write the tables for the next process, whole or not at all; where that is not allowed, leave it."""
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=kept.parent, prefix=kept.stem)
        try:
            with os.fdopen(handle, "wb") as file:
                made.save(file)
            os.replace(name, kept)
        except BaseException:
            os.unlink(name)
            raise
