"""Absurd and hostile input: a diagnostic within about a second, never a traceback, never a full stack."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nsam.dsl.codes import CODES, Code
from nsam.dsl.diagnostics import Diagnostic, ProgramError
from nsam.dsl.format import format_source
from nsam.dsl.imports import load_file, load_text, read_source
from nsam.dsl.rendering import explain_code, render_json, render_markdown, render_terminal, to_lsp

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "dsl/std/rules.nsam", ROOT / "examples/hope/hope.nsam", ROOT / "examples/zoo/zoo.nsam"]
TEXT_CODES = [entry for code, entry in CODES.items() if code.startswith(("N00", "N01")) and entry.failing is not None]


def found(text: str) -> tuple[Diagnostic, ...]:
    try:
        load_text(text, "p.nsam")
    except ProgramError as error:
        return error.diagnostics
    return ()


def system(line: str) -> str:
    return f"nsam 1\n\nsystem s(dim: int) {{\n  input x: [dim]\n  {line}\n  output x\n}}\n"


@pytest.mark.parametrize("entry", TEXT_CODES, ids=lambda entry: entry.code)
def test_each_code_is_triggered_by_its_program_and_cured_by_the_repair(entry: Code) -> None:
    assert entry.failing is not None
    assert entry.repaired is not None
    assert [diagnostic.code for diagnostic in found(entry.failing)] == [entry.code]
    assert found(entry.repaired) == ()
    assert entry.rule in explain_code(entry.code)


def test_codes_are_named_once() -> None:
    names = [entry.name for entry in CODES.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("N0[0-9]{3}", code) and entry.code == code for code, entry in CODES.items())


HOSTILE = {
    "brackets": (system("let y = " + "(" * 10_000 + "x" + ")" * 10_000), "N0004"),
    "repeats": (system("repeat 2 {" * 10_000 + "}" * 10_000), "N0004"),
    "lists": (system("let y = " + "[" * 10_000 + "x" + "]" * 10_000), "N0004"),
    "long sum": (system("let y = " + "+".join(["x"] * 10_000)), "N0004"),
    "sum of 1,000": (system("let y = " + "+".join(["x"] * 1_000)), "N0004"),
    "minus signs": (system("let y = " + "-" * 20_000 + "x"), "N0004"),
    "powers": (system("let y = " + "x^" * 20_000 + "x"), "N0004"),
    "calls": (system("let y = " + "f(" * 199 + "x" + ")" * 199), "N0004"),
    "digits": (system("let y = 1" + "0" * 400_000), "N0115"),
    "exponent": (system("let y = 1e" + "9" * 100), "N0115"),
    "10 MB": ("x" * 10_000_000, "N0003"),
    "parameters": ("nsam 1\nsystem s(" + ",".join(f"p{i}: int" for i in range(30_000)) + ") {\n}\n", "N0003"),
    "short lines": ("nsam 1\n" + "x y\n" * 60_000, "N0003"),
    "opened": ("nsam 1\n" + "(" * 50_000, "N0004"),
    "opened and cut": ("nsam 1\n" + "(\n{" * 15_000, "N0102"),
    "closed": ("nsam 1\n" + "}" * 50_000, "N0104"),
    "quotes": ("nsam 1\n" + '"\n' * 29_000, "N0105"),
    "bad statements": (system("let y 3\n" * 10_000), "N0101"),
    "NUL": ("nsam 1\n\0", "N0002"),
    "lone surrogate": ("nsam 1\n# \ud800", "N0002"),
    "control characters": ("nsam 1\n\x1b[31m", "N0002"),
    "empty": ("", "N0005"),
    "blank": (" \n\t\n", "N0005"),
    "nsam only": ("nsam", "N0005"),
    "open docstring": ('nsam 1\n"""never ends\n', "N0105"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_gets_a_diagnostic(name: str) -> None:
    text, code = HOSTILE[name]
    started = time.process_time()
    diagnostics = found(text)
    rendered = [render_terminal(diagnostic) for diagnostic in diagnostics]
    assert time.process_time() - started < 3  # a second or so, with room for a slow machine
    assert diagnostics[0].code == code
    assert len(diagnostics) <= 60
    assert all(len(shown) < 3_000 for shown in rendered)


@pytest.mark.parametrize(
    "text",
    [
        "nsam 1\n" + ";" * 50_000,
        "nsam 1\n" + "# x\n" * 20_000,
        system("let y = " + "(" * 150 + "x" + ")" * 150),
        system("let y = " + "+".join(["x"] * 95)),
        system("repeat 2 {" * 30 + "}" * 30),
    ],
    ids=["semicolons", "comments", "150 brackets", "95 terms", "30 repeats"],
)
def test_odd_but_right_text_is_accepted_and_formatted(text: str) -> None:
    assert found(text) == ()
    formatted = format_source(text)
    assert format_source(formatted) == formatted


def test_a_broken_program_never_breaks_the_parser() -> None:
    dice = random.Random(7)
    broken = 0
    for path in SHIPPED:
        words = re.findall(r"\s+|\w+|[^\w\s]", path.read_text(encoding="utf-8"))
        for _ in range(40):
            piece = list(words)
            for _ in range(dice.randrange(1, 4)):
                place = dice.randrange(len(piece))
                piece[place : place + dice.randrange(2)] = [
                    dice.choice([*words, "$", "é", '"', "{", ")", "->", "\0", ""])
                ]
            diagnostics = found("".join(piece))
            broken += bool(diagnostics)
            render_json(diagnostics)
            for diagnostic in diagnostics:
                assert diagnostic.code.startswith(("N00", "N01"))
                assert render_terminal(diagnostic, color=True)
                assert render_markdown(diagnostic)
                assert to_lsp(diagnostic)
    assert broken > 60


def code_of(path: Path) -> str:
    with pytest.raises(ProgramError) as error:
        load_file(path)
    assert len(error.value.diagnostics) == 1
    return error.value.diagnostics[0].code


def test_files_that_are_no_programs(tmp_path: Path) -> None:
    assert code_of(tmp_path / "missing.nsam") == "N0001"
    assert code_of(tmp_path) == "N0001"
    assert code_of(Path("a\0b")) == "N0001"
    (tmp_path / "binary.nsam").write_bytes(b"\x7fELF\x80\x81\xff")
    assert code_of(tmp_path / "binary.nsam") == "N0002"
    (tmp_path / "nul.nsam").write_bytes(b"nsam 1\n\0\0")
    assert code_of(tmp_path / "nul.nsam") == "N0002"
    (tmp_path / "large.nsam").write_bytes(b"nsam 1\n" + b"# \n" * 3_400_000)
    assert code_of(tmp_path / "large.nsam") == "N0003"
    (tmp_path / "loop.nsam").symlink_to(tmp_path / "loop.nsam")
    assert code_of(tmp_path / "loop.nsam") == "N0001"


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "hope.nsam").write_text("nsam 1\n")
    with pytest.raises(ProgramError) as error:
        read_source(tmp_path / "hop.nsam")
    assert "hope.nsam" in (error.value.diagnostics[0].help or "")


def test_invalid_utf8_names_byte_and_line(tmp_path: Path) -> None:
    (tmp_path / "latin.nsam").write_bytes("nsam 1\n# für\n".encode("latin-1"))
    with pytest.raises(ProgramError, match=r"byte 0xfc in line 2"):
        load_file(tmp_path / "latin.nsam")


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "bom.nsam").write_bytes(b"\xef\xbb\xbfnsam 1\r\n")
    assert load_file(tmp_path / "bom.nsam").root.tree.edition == 1


def test_parsing_is_quick_to_start() -> None:
    """Start of Python, imports, tables and hope.nsam: under half a second of processor time (with room)."""
    program = (
        "import time, sys; from nsam.dsl.imports import load_file; load_file(sys.argv[1]); "
        "assert 'torch' not in sys.modules and 'networkx' not in sys.modules; print(time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(SHIPPED[1])], capture_output=True, text=True, check=True, timeout=60
    )
    assert float(done.stdout) < 1.0
