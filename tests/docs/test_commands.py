"""What the pages say about the command line: every command they name exists, and asking for the wrong thing is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import nsam
from nsam.cli.app import application
from nsam.cli.request import unknown

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "examples/hope/README.md", "examples/zoo/README.md", "docs/language.md", "docs/architecture.md"]


def test_every_command_that_a_page_names_exists() -> None:
    commands = set(application().commands)
    readme = set(re.findall(r"`nsam ([a-z]+)[ `]", (ROOT / "README.md").read_text("utf-8")))
    assert {"check", "graph", "explain", "verify", "train", "generate"} <= readme
    for page in PAGES:
        for word in re.findall(r"`nsam ([a-z]+)[ `]", (ROOT / page).read_text("utf-8")):
            assert word in commands, f"{page}: nsam {word}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hope_bytes", "`hope_bytes` is a train declaration: a system is needed here"),
        ("titans", "`titans` is a system: a train declaration is needed here"),
        ("titan", "declares no system or train called `titan`"),
    ],
)
def test_a_name_of_the_other_kind_is_called_that(name: str, message: str) -> None:
    program = nsam.load(ROOT / "examples" / "hope" / "hope.nsam")
    assert message in str(unknown(program, name))
