"""One diagnostic, four forms. `NSAM_UPDATE_GOLDENS=1` rewrites the texts beside the programs in `programs_bad`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from nsam.dsl.diagnostics import Diagnostic, Fix, Label, ProgramError
from nsam.dsl.parser import parse
from nsam.dsl.rendering import explain_code, render_json, render_markdown, render_terminal, to_dict, to_lsp
from nsam.dsl.spans import Source, Span

PROGRAMS = sorted((Path(__file__).parents[1] / "programs_bad").glob("*.nsam"))


def at(source: Source, text: str, label: str = "") -> Label:
    start = source.text.index(text)
    return Label(Span(source, start, start + len(text)), label)


def diagnostic(primary: Label | None, *secondary: Label, **more: object) -> Diagnostic:
    return Diagnostic("N0214", "shape-mismatch", "error", "shapes differ", primary, secondary, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_bad_programs_are_described_as_recorded(path: Path) -> None:
    with pytest.raises(ProgramError) as error:
        parse(Source(path.name, path.read_text(encoding="utf-8")))
    shown = "\n\n".join(render_terminal(found) for found in error.value.diagnostics) + "\n"
    golden = path.with_suffix(".txt")
    if os.environ.get("NSAM_UPDATE_GOLDENS"):
        golden.write_text(shown, encoding="utf-8")
    assert shown == golden.read_text(encoding="utf-8")


def test_labels_on_one_line_hang_below_their_marks() -> None:
    source = Source("a.nsam", "let y = f(x) + g(z)\n")
    shown = diagnostic(at(source, "g(z)", "[16]"), at(source, "f(x)", "[8]"), help="add a projection")
    assert render_terminal(shown) == (
        "error[N0214 shape-mismatch]: shapes differ\n"
        " --> a.nsam:1:16\n"
        "  |\n"
        "1 | let y = f(x) + g(z)\n"
        "  |         ----   ^^^^ [16]\n"
        "  |         [8]\n"
        "  = help: add a projection"
    )


def test_three_labels_have_connectors() -> None:
    source = Source("a.nsam", "a + b + c\n")
    shown = render_terminal(diagnostic(at(source, "a", "one"), at(source, "b", "two"), at(source, "c", "three")))
    assert shown.split("\n")[3:] == [
        "1 | a + b + c",
        "  | ^   -   - three",
        "  | |   two",
        "  | one",
    ]


def test_two_files_are_shown_under_their_names() -> None:
    one, two = Source("a.nsam", "let y = x\n"), Source("b.nsam", "\n\nrule gd(lr)\n")
    shown = render_terminal(diagnostic(at(one, "x", "here"), at(two, "gd", "declared here")))
    assert " --> a.nsam:1:9" in shown
    assert " ::: b.nsam:3:6" in shown
    assert "3 | rule gd(lr)" in shown


def test_a_label_of_many_lines_says_where_it_ends() -> None:
    source = Source("a.nsam", "system s {\n  x\n}\n")
    shown = render_terminal(diagnostic(Label(Span(source, 0, len(source.text) - 1), "this one")))
    assert "1 | system s {\n  | ^^^^^^^^^^ this one (to line 3)" in shown


def test_tabs_and_wide_characters_keep_the_marks_in_place() -> None:
    source = Source("a.nsam", '\tlet y = "日本" $\n')
    lines = render_terminal(diagnostic(at(source, "$", "here"))).split("\n")
    assert lines[3] == '1 |     let y = "日本" $'
    assert lines[4] == "  | " + " " * (4 + len('let y = "') + 4 + len('" ')) + "^ here"


def test_a_long_line_is_cut_around_the_label() -> None:
    source = Source("a.nsam", "let y = " + "a + " * 2_000 + "$ + " + "b + " * 2_000 + "c\n")
    lines = render_terminal(diagnostic(at(source, "$", "here"))).split("\n")
    assert max(map(len, lines)) < 140
    assert lines[3].count("…") == 2
    assert lines[3][lines[4].index("^")] == "$"


def test_the_place_behind_the_last_character_has_a_mark() -> None:
    source = Source("a.nsam", "let y = x +")
    shown = render_terminal(diagnostic(Label(Span(source, 11, 11), "expected more")))
    assert shown.endswith("1 | let y = x +\n  |            ^ expected more")


def test_without_a_place_there_is_no_excerpt() -> None:
    shown = render_terminal(diagnostic(None, help="look again", notes=("as said",)))
    assert shown == "error[N0214 shape-mismatch]: shapes differ\n  = note: as said\n  = help: look again"


def test_color_is_only_paint() -> None:
    source = Source("a.nsam", "let y = f(x) + g(z)\n")
    shown = diagnostic(
        at(source, "g(z)", "[16]"), at(source, "f(x)", "[8]"), help="add", fix=Fix(at(source, "y").span, "z")
    )
    painted = render_terminal(shown, color=True)
    assert "\x1b[1;31m" in painted
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == render_terminal(shown)
    assert "\x1b" not in render_terminal(shown)


def test_a_program_cannot_steer_the_terminal() -> None:
    source = Source("a\x1b[31m.nsam", "let y = \x1b[2J\n")
    shown = render_terminal(diagnostic(at(source, "y", "\x1b]0;x\x07"), help="\x9b1m"))
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_json_is_stable() -> None:
    source = Source("a.nsam", "nsam 1\nlet y = é\n")
    fix = Fix(at(source, "é").span, "e", safe=True)
    data = json.loads(
        render_json([diagnostic(at(source, "é", "here"), at(source, "y"), notes=("n",), help="h", fix=fix)])
    )
    span = {"file": "a.nsam", "start": 15, "end": 16, "line": 2, "column": 9, "end_line": 2, "end_column": 10}
    assert data["version"] == 1
    (found,) = data["diagnostics"]
    assert found["primary"] == {"span": span, "text": "here"}
    assert found["fix"] == {"span": span, "replacement": "e", "safe": True}
    assert list(found) == ["code", "name", "severity", "message", "primary", "secondary", "notes", "help", "fix"]
    assert to_dict(diagnostic(None))["primary"] is None


def test_language_servers_count_lines_from_0_in_utf_16() -> None:
    source = Source("a.nsam", 'nsam 1\n"😀" $\n')
    found = to_lsp(diagnostic(at(source, "$", "here"), help="h"))
    assert found["range"] == {"start": {"line": 1, "character": 5}, "end": {"line": 1, "character": 6}}
    assert found["message"] == "shapes differ\nhere\nhelp: h"
    assert found["severity"] == 1


def test_markdown_fences_hold() -> None:
    source = Source("a.nsam", "let y = ```\n")
    shown = render_markdown(diagnostic(at(source, "y", "here"), notes=("n",), help="h"))
    assert shown.startswith("### N0214 shape-mismatch\n\n**error**: shapes differ\n\n````text\n")
    assert shown.endswith("````\n\n- note: n\n- help: h\n")


def test_explain_shows_rule_failure_and_repair() -> None:
    page = explain_code("N0109")
    assert page.startswith("N0109 missing-colon (error)")
    assert "memory m linear(dim -> dim)" in page
    assert "memory m : linear(dim -> dim)" in page
    with pytest.raises(KeyError):
        explain_code("N9999")
