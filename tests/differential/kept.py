"""Programs that once failed, each a file of its own with a comment that says what it is run on."""

from __future__ import annotations

import re
from pathlib import Path

from comparison import Case

from nsam.dsl.format import format_source

FOLDER = Path(__file__).parent / "kept"
_RUN = re.compile(r"# seed (?P<seed>\d+), (?P<batch>\d+) x (?P<time>\d+) tokens( without (?P<off>[a-z, ]+))?:")


def files() -> list[Path]:
    """All kept programs."""
    return sorted(FOLDER.glob("*.nsam"))


def read(path: Path) -> Case:
    """The case in a file."""
    text = path.read_text()
    found = _RUN.search(text)
    assert found, f"{path.name}: a comment must say `# seed S, B x T tokens: …`, or `… tokens without PASS, PASS: …`"
    off = tuple(found["off"].split(", ")) if found["off"] else ()
    return Case(text, int(found["seed"]), int(found["time"]), int(found["batch"]), without=off)


def told(case: Case, why: str) -> str:
    """The text of a case's file."""
    edition, rest = case.text.split("\n", 1)
    off = f" without {', '.join(case.without)}" if case.without else ""
    return format_source(f"{edition}\n# seed {case.seed}, {case.batch} x {case.time} tokens{off}: {why}\n{rest}")


def keep(case: Case, name: str, why: str) -> Path:
    """Write a case to a file."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.nsam"
    path.write_text(told(case, why))
    return path
