"""One layout: shipped programs are fixed points, alignment is kept where it is consistent, comments stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsam.dsl.diagnostics import ProgramError
from nsam.dsl.format import format_check, format_source
from nsam.dsl.parser import parse
from nsam.dsl.program import Program
from nsam.dsl.spans import Source

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*ROOT.glob("dsl/std/*.nsam"), *ROOT.glob("examples/**/*.nsam")])


def system(*lines: str) -> str:
    return "\n".join(["nsam 1", "", "system s(dim: int) {", *lines, "}", ""])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_programs_are_fixed_points(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert format_source(text) == text
    assert format_check(text)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_squeezed_and_stretched_programs_keep_meaning_and_comments(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = parse(Source("p", text))
    squeezed = "\n".join(" ".join(line.split()) for line in text.split("\n"))
    for other in (squeezed, text.replace("  ", "\t"), text.replace("\n", "\n\n\n"), text.replace("\n", "   \r\n")):
        formatted = format_source(other)
        again = parse(Source("p", formatted))
        assert (again.uses, again.declarations) == (tree.uses, tree.declarations)  # a docstring's blanks are its own
        assert [one.text for one in parse(Source("p", formatted)).comments] == [one.text for one in tree.comments]
        assert format_source(formatted) == formatted


@pytest.mark.parametrize(
    ("line", "formatted"),
    [
        ("input   x :[ dim ]", "  input x: [dim]"),
        ("let y=a+b*-c^2", "  let y = a + b * -c^2"),
        ("let y = f( a ,b , n=2 )", "  let y = f(a, b, n = 2)"),
        ("let y = m . T(x)", None),
        ("let y = m.T (x)", "  let y = m.T(x)"),
        ("let y = [ 1,2 ]", "  let y = [1, 2]"),
        ("memory m:mlp( dim->4 * dim->dim,residual )", "  memory m : mlp(dim -> 4*dim -> dim, residual)"),
        ("memory q,k[ p in list ]:vector( 3 ){}", "  memory q, k[p in list] : vector(3) {}"),
        ("memory m : vector(3) {learn x;minimize (a);}", "  memory m : vector(3) { learn x; minimize (a) }"),
        ("transfer a,b->c:direct", "  transfer a, b -> c : direct"),
        ("output (x+1)", "  output (x + 1)"),
        ("let a = 1 ;; let b = 2;", "  let a = 1; let b = 2"),
        ("let a = ((x))  # why   ", "  let a = ((x))  # why"),
    ],
)
def test_blanks(line: str, formatted: str | None) -> None:
    if formatted is None:
        with pytest.raises(ProgramError):
            format_source(system(line))
    else:
        assert format_source(system(line)) == system(formatted)


def test_a_block_of_several_lines_has_its_braces_at_the_ends() -> None:
    text = system("memory m : vector(3) { learn x", "minimize l2; by gd }")
    assert format_source(text) == system("  memory m : vector(3) {", "    learn x", "    minimize l2; by gd", "  }")


def test_alignment_of_clauses_is_the_authors_choice() -> None:
    aligned = system("  memory m : vector(3) {", "    learn    x", "    minimize l2", "    by       gd", "  }")
    plain = system("  memory m : vector(3) {", "    learn x", "    minimize l2", "    by gd", "  }")
    wide = system("  memory m : vector(3) {", "    learn      x", "    minimize   l2", "    by         gd", "  }")
    ragged = system("  memory m : vector(3) {", "    learn     x", "    minimize l2", "    by   gd", "  }")
    assert [format_source(text) for text in (aligned, plain, wide, ragged)] == [aligned, plain, aligned, plain]


def test_alignment_of_equals_and_colons() -> None:
    aligned = system("  let a   = 1", "  let abc = 2", "  memory m  : vector(3)", "  memory mm : vector(3)")
    assert format_source(aligned) == aligned
    assert format_source(aligned.replace("let a   =", "let a =")) == aligned.replace("let a   =", "let a =")
    lonely = system("  let a    = 1", "", "  let abc = 2")
    assert format_source(lonely) == system("  let a = 1", "", "  let abc = 2")


def test_comments_keep_their_column_while_two_blanks_fit() -> None:
    text = system("  let a = 1          # one", "  let bb = 2         # two", "  let c = 3 # three")
    assert format_source(text) == text.replace("3 # three", "3  # three")
    assert format_source(text.replace("a = 1 ", "a=1   ")) == format_source(text)


def test_comments_of_their_own_take_the_indentation_of_their_place() -> None:
    text = system("# a", "      # b", "  let y = f(", "# c", "  1)", " # d")
    assert format_source(text) == system("  # a", "  # b", "  let y = f(", "    # c", "    1)", "  # d")


def test_blank_lines() -> None:
    text = (
        'nsam 1\n"""Doc."""\nuse std.rules (gd)\n\n\n\nuse std.rules (m3)\n# about r\nrule r(lr) {\n\n\n'
        "  self <- 1\n\n\n  self <- 2\n\n}\nrule q(lr) {\n}"
    )
    assert format_source(text) == (
        'nsam 1\n\n"""Doc."""\n\nuse std.rules (gd)\n\nuse std.rules (m3)\n\n# about r\nrule r(lr) {\n'
        "  self <- 1\n\n  self <- 2\n}\n\nrule q(lr) {\n}\n"
    )


def test_line_ends_are_line_feeds_in_docstrings_too() -> None:
    text = 'nsam 1\n\n"""Two\nlines."""\n\n# one\nrule q(lr) { self <- self - lr * grad }  # two\n'
    assert format_source(text.replace("\n", "\r\n")) == text
    assert Program.loads(text.replace("\n", "\r\n")).docstring == "Two\nlines."


def test_a_broken_program_is_not_formatted() -> None:
    with pytest.raises(ProgramError):
        format_source("nsam 1\nrule r(lr) {\n  self <-\n}\n")
    with pytest.raises(ProgramError):
        format_check("system")


def test_format_check_sees_a_difference() -> None:
    assert not format_check("nsam  1\n")
    assert format_check("nsam 1\n")


def test_bodies_that_no_line_has_room_for_are_broken() -> None:
    learn = "learn k(x) -> x; minimize l2; by gd(lr = 0.1); every 1 token"
    short = f"memory m : linear(dim -> dim) {{ {learn} }}"
    body = f"input x: [dim]; {short}; memory k : linear(dim -> dim); output m(x)"
    text = f"nsam 1\n\nsystem s(dim: int) {{ {body} }}  # end\n"
    found = format_source(text)
    assert found == (
        "nsam 1\n\nsystem s(dim: int) {\n  input x: [dim]\n  "
        f"{short}\n  memory k : linear(dim -> dim)\n  output m(x)\n}}  # end\n"
    )
    assert format_source(found) == found
    assert parse(Source("a", found)) == parse(Source("a", text))
