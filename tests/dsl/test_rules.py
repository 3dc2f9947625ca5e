"""Every place in the checker that reports something is reached by a program whose recorded text shows it.

So deleting a rule, or the condition that guards it, changes a recorded text. `NSAM_UPDATE_GOLDENS=1` rewrites them.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rule_corpus import RULES, corpus

from nsam.dsl import types
from nsam.dsl.diagnostics import Report

ROOT = Path(__file__).parents[2]
REPORTERS = ("error", "add", "fail", "ShapeProblem")
FORWARDED = ("code", "problem.code")
"""First arguments that stand for the code that a caller gave."""
REQUESTS = re.compile(r'"N025[01]"|"N0405"')
"""What only a request from outside can get wrong: `test_requests.py`, `tests/torch/test_inputs.py`."""


@pytest.fixture(scope="module")
def run() -> Iterator[tuple[dict[Path, str], set[tuple[str, int]]]]:
    """The corpus's texts by golden file, and the lines that were on the stack when something was reported."""
    lines: set[tuple[str, int]] = set()

    def note() -> None:
        frame = sys._getframe(2)
        while frame is not None:
            lines.add((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back  # type: ignore[assignment]

    add, shape_problem = Report.add, types.ShapeProblem.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Report, "add", lambda self, *a, **k: (note(), add(self, *a, **k))[1])
        patch.setattr(types.ShapeProblem, "__init__", lambda self, *a, **k: (note(), shape_problem(self, *a, **k))[1])
        yield dict(corpus()), lines


def test_everything_is_said_as_recorded(run: tuple[dict[Path, str], set[tuple[str, int]]]) -> None:
    texts, _ = run
    if os.environ.get("NSAM_UPDATE_GOLDENS"):
        for golden, text in texts.items():
            golden.write_text(text, encoding="utf-8")
    for golden, text in texts.items():
        assert text == golden.read_text(encoding="utf-8"), golden.relative_to(RULES)


def sites(path: Path) -> Iterator[ast.Call]:
    """Yield the calls in a file that report something."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        code = ast.unparse(node.args[0])
        known = name == "ShapeProblem" or re.search(r"'N0\d\d\d'|_CODES", code) or code in FORWARDED
        if name in REPORTERS and known:
            yield node


PLACES = [
    (path, site)
    for path in [*sorted((ROOT / "dsl").glob("*.py")), ROOT / "compiler" / "checks.py"]
    for site in sites(path)
    if not REQUESTS.search(ast.get_source_segment(path.read_text(encoding="utf-8"), site) or "")
]


def test_every_place_that_reports_is_reached(run: tuple[dict[Path, str], set[tuple[str, int]]]) -> None:
    _, lines = run
    reached = {(Path(name), line) for name, line in lines}
    missing = [
        f"{path.relative_to(ROOT)}:{site.lineno}"
        for path, site in PLACES
        if not any((path, line) in reached for line in range(site.lineno, (site.end_lineno or site.lineno) + 1))
    ]
    assert not missing
    assert len(PLACES) > 200
