"""Programs that break every rule of the checker, and what is said about them.

`rules/` holds programs with many mistakes each, grouped by the part of the checker that reports them; what only text
beyond a limit triggers is generated here, and the tables of codes and `programs_bad/check` belong to it too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from nsam.compiler.checks import check_unit
from nsam.dsl.codes import CODES
from nsam.dsl.diagnostics import Diagnostic, ProgramError, Report
from nsam.dsl.imports import load_file
from nsam.dsl.program import Program
from nsam.dsl.rendering import render_terminal

TESTS = Path(__file__).parents[1]
RULES = TESTS / "dsl" / "rules"
CHECK = TESTS / "programs_bad" / "check"
FILES = [*sorted(RULES.glob("*.nsam")), RULES / "imports" / "main.nsam", RULES / "imports" / "names.nsam"]


def _system(*lines: str, parameters: str = "dim: int") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"nsam 1\n\nuse std.rules (gd)\n\nsystem sample({parameters}) {{\n  input x: [dim]\n{body}\n}}\n"


def _nested(depth: int) -> str:
    systems = [f"system s{i}() {{ input x: []; output s{i + 1}(x) }}" for i in range(depth)]
    return "\n".join(["nsam 1", "", *systems, f"system s{depth}() {{ input x: []; output x }}", ""])


GENERATED = {
    "characters": "x" * 1_000_001,
    "words": "nsam 1\n" + "x y\n" * 60_000,
    "brackets": _system("let y = " + "(" * 201 + "x" + ")" * 201),
    "blocks": _system("repeat 2 {" * 33 + "}" * 33),
    "depth": _system("let y = " + "+".join(["x"] * 200), "output x"),
    "open brackets": (
        "nsam 1\n\nsystem a(dim: int { input x: [dim]; output x }\nsystem b() { output (1 }\n"
        "system c() {\n  output 1\nsystem d() { output 2 }\nsystem e() { output (3"
    ),
    "wrong partner": _system("let y = (x + 1]", "let z = [1, 2)", "output x"),
    "quotes": 'nsam 1\n"""never ends\n',
    "control": "nsam 1\n\x1b[31m",
    "form feed": "nsam 1\n\x0c\n",
    "line separator": "nsam 1\n# one\u2028two\n",
    "carriage return": "nsam 1\r\n\r\n# one\rtwo\r\n",
    "carriage returns": "nsam 1\r\r# one\rsystem s() { output 1 }\r",
    "direction": "nsam 1\n# one \u202e two\n",
    "other blanks": _system("let\u00a0y = x", "let z =\u2003\u2003y  # \u00a0", "output z + w"),
    "line ends": _system("let y = z", "output y").replace("\n", "\r\n"),
    "foreign comments": _system("// one", "let y = x // two", "/* three */", "output x"),
    "whole quotients": _system(
        "memory a : linear(dim//2 -> dim)", "memory b : linear((dim) // 2 -> dim)", "let y = x //2", "output x// note"
    ),
    "small number": _system("output x * 1e-400 + 0e-400 * 0.0"),
    "operators out of range": _system(
        "memory a : linear(sqrt(0 - 1) -> dim)",
        "memory b : linear(1/(8 - 8) -> dim)",
        "memory c : linear(2.5^9999 -> 2)",
        "output x",
    ),
    "constants of rules": _system("let y = zeros + x", "output ones * y + identity"),
    "a table that learns": _system(
        "memory m : table(16, dim) { learn t -> t; minimize l2; by gd(lr = 0.1); every 4 tokens }",
        "input t: token(16)",
        "output m(t) + x",
    ),
    "late text": _system('"""One', 'two."""', "output x"),
    "broken lines": _system(
        "memory m : linear(dim -> dim) { learn x -> x; by gd(lr = 0.1),", "}", "let y = x +", "x -", "x", "output z"
    ),
    "no edition": "system s() { output 1 }\n",
    "empty edition": "nsam\n\nsystem s() { output 1 }\n",
    "old edition": "nsam 0\n",
    "newer edition": "nsam 7\n",
    "wrong edition": "nsam one\n",
    "second text": 'nsam 1\n\n"""One."""\n\n"""Two."""\n\nsystem s() { output 1 }\n',
    "string for text": 'nsam 1 "one"\n',
    "long list": _system(f"memory m[p in {[1] * 129}] : linear(dim -> dim)", "output x"),
    "long chain": _system(f"memory m[p in {[1] * 65}] : linear(dim -> dim)", "output chain([m, m], x)"),
    "memories": _system(
        "let h = x", "repeat 60000 { memory w, v : linear(dim -> dim); h = h + w(h) + v(h) }", "output h"
    ),
    "names": _system(
        "memory " + ", ".join(f"m{i}" for i in range(2_000)) + f"[p in {[1] * 64}] : linear(dim -> dim)", "output x"
    ),
    "depth of systems": _nested(70),
    "errors": _system(*[f"let a{i} = b{i}" for i in range(120)], "output x"),
    "syntax errors": _system(*["let y 3"] * 80, "output x"),
    "bracket errors": "nsam 1\n" + "}\n" * 80,
}
"""Texts past a limit, and first lines."""


def diagnostics(text: str | None, path: Path | None = None) -> list[Diagnostic]:
    """Return everything that `nsam check` says about a program: errors, or warnings and what the levels add."""
    try:
        program = Program.loads(text, "program.nsam") if path is None and text is not None else Program.load(path or "")
        report = Report()
        for name in program.systems:
            check_unit(program.symbolic(name), report=report)
        for name in program.trains:
            train = program.train(name)
            check_unit(train.model, train, report=report)
    except ProgramError as error:
        return list(error.diagnostics)
    return [*program.warnings, *report.diagnostics]


def rendered(found: list[Diagnostic]) -> str:
    """Return diagnostics as a terminal shows them, folders left out."""
    shown = "\n\n".join(render_terminal(diagnostic) for diagnostic in found)
    return shown.replace(str(RULES), "RULES") + "\n"


def corpus() -> Iterator[tuple[Path, str]]:
    """Yield each golden file with the text that belongs into it. Paths in it are relative to `rules/`."""
    before = Path.cwd()
    os.chdir(RULES)
    try:
        for path in FILES:
            yield path.with_suffix(".txt"), rendered(diagnostics(None, path.relative_to(RULES)))
        for name, texts in (
            ("generated", GENERATED),
            ("codes", {code: entry.failing for code, entry in CODES.items() if entry.failing is not None}),
            ("programs_bad", {path.stem: path.read_text(encoding="utf-8") for path in sorted(CHECK.glob("*.nsam"))}),
        ):
            parts = [f"=== {key}\n{rendered(diagnostics(text))}" for key, text in texts.items()]
            yield RULES / f"{name}.txt", "\n".join(parts)
        yield RULES / "files.txt", "\n".join(_unreadable())
    finally:
        os.chdir(before)


def _unreadable() -> Iterator[str]:
    """Files that cannot be read, one too large, and a program of too many files."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "large.nsam").write_bytes(b"nsam 1\n" + b"# \n" * 1_400_000)
        for i in range(101):
            (folder / f"part{i}.nsam").write_text("nsam 1\n")
        uses = "".join(f'use "./part{i}.nsam" (a)\n' for i in range(101))
        (folder / "main.nsam").write_text(f"nsam 1\n{uses}".replace(" (a)", " (nothing)"))
        paths = ["nothing.nsam", "claus.nsam", "imports", "a\0b", "imports/binary.nsam"]
        for path in [*paths, folder / "large.nsam", folder / "main.nsam"]:
            try:
                load_file(path)
            except ProgramError as error:
                found = [one for one in error.diagnostics if one.code != "N0012"]
                yield rendered(found).replace(os.path.relpath(name), "FOLDER").replace(name, "FOLDER")
