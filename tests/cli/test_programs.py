"""check, fmt, graph, schedule, explain, compile: exit codes, what goes where, what is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from nsam.cli.app import application

Run: TypeAlias = Callable[..., Any]

COMMANDS = ("check", "fmt", "graph", "schedule", "explain", "compile", "verify", "train", "generate", "bench")


def test_help_lists_every_command_and_each_has_an_example(run: Run) -> None:
    overview = run("--help")
    assert overview.returncode == 0
    for name in COMMANDS:
        assert f" {name} " in overview.stdout
    for name in ("check", "graph", "train"):
        page = run(name, "--help").stdout
        assert f"nsam {name} hope.nsam" in page


def test_check_clean(run: Run, tiny: Path) -> None:
    found = run("check", tiny)
    assert found.returncode == 0
    assert "no errors" in found.stdout
    assert found.stderr == ""


def test_check_reports_every_error_on_stderr(run: Run, wrong: Path) -> None:
    found = run("check", wrong)
    assert found.returncode == 1
    assert found.stdout == ""
    assert "wrong.nsam:7:" in found.stderr
    assert "lineer" in found.stderr
    assert "2 errors" in found.stderr


def test_check_json_has_codes_and_places(run: Run, wrong: Path, tiny: Path) -> None:
    found = run("check", wrong, "--format", "json")
    assert found.returncode == 1
    assert found.stderr == ""
    diagnostics = json.loads(found.stdout)["diagnostics"]
    assert len(diagnostics) == 2
    assert all(d["code"].startswith("N0") and d["severity"] == "error" for d in diagnostics)
    clean = run("check", tiny, "--format", "json")
    assert clean.returncode == 0
    assert json.loads(clean.stdout)["diagnostics"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["check"],
        ["check", "a", "b"],
        ["nothing"],
        ["check", "x", "--format", "y"],
        ["train", "x", "--checkpoint-every", "nan"],
        ["bench", "--seconds", "nan"],
        ["generate", "x", "--prompt", "a", "--temperature", "nan"],
    ],
)
def test_wrong_usage_exits_2(run: Run, arguments: list[str]) -> None:
    found = run(*arguments)
    assert found.returncode == 2
    assert "Traceback" not in found.stderr


def test_a_command_that_is_named_is_made_alone_otherwise_all_are(run: Run) -> None:
    assert list(application("fmt").commands) == ["fmt"]
    assert sorted(application("fnt").commands) == sorted(COMMANDS)
    assert "No such command 'fnt'" in run("fnt").stderr


def test_missing_and_hostile_files_are_diagnostics(run: Run, tmp_path: Path) -> None:
    (tmp_path / "binary.nsam").write_bytes(bytes(range(256)) * 50)
    (tmp_path / "deep.nsam").write_text("nsam 1\nsystem a() { output " + "(" * 10_000 + "1" + ")" * 10_000 + " }\n")
    for name in ("missing.nsam", "binary.nsam", "deep.nsam", "."):
        found = run("check", name)
        assert found.returncode == 1, name
        assert "Traceback" not in found.stderr
        assert "internal error" not in found.stderr


def test_check_loads_neither_torch_nor_networkx(tiny: Path) -> None:
    code = (
        "import sys; sys.argv = ['nsam', 'check', sys.argv[1]]\n"
        "from nsam.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'networkx', 'numpy', 'matplotlib', 'graphviz', 'safetensors', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr


def test_fmt(run: Run, tmp_path: Path, tiny: Path) -> None:
    text = tiny.read_text()
    assert run("fmt", "--check", tiny).returncode == 0, "the shipped layout is the standard one"
    tiny.write_text(text.replace("output embed.T(x + m", "output   embed.T( x+m"))
    found = run("fmt", "--check", tiny)
    assert (found.returncode, found.stdout) == (1, f"{tiny}: not formatted\n")
    assert run("fmt", tiny).returncode == 0
    assert tiny.read_text() == text
    broken = tmp_path / "broken.nsam"
    broken.write_text("nsam 1\nsystem {")
    tiny.write_text(text + "\n\n\n")
    found = run("fmt", broken, tiny)
    assert found.returncode == 1
    assert tiny.read_text() == text, "one broken file does not keep the others from being formatted"
    assert broken.read_text() == "nsam 1\nsystem {"


@pytest.mark.parametrize("ending", ["dot", "html", "mmd", "json"])
def test_graph(run: Run, tiny: Path, tmp_path: Path, ending: str) -> None:
    found = run("graph", tiny, "-o", f"out.{ending}")
    assert found.returncode == 0, found.stderr
    assert "embed" in (tmp_path / f"out.{ending}").read_text()


def test_graph_refuses_other_endings(run: Run, tiny: Path, tmp_path: Path) -> None:
    assert run("graph", tiny, "-o", "out.bmp").returncode == 2
    assert not (tmp_path / "out.bmp").exists()


def test_schedule_and_explain(run: Run, tiny: Path) -> None:
    found = run("schedule", tiny, "tiny", "--tokens", 16)
    assert found.returncode == 0, found.stderr
    assert "hyperperiod 4 tokens" in found.stdout
    found = run("explain", tiny, "tiny", "-p", "dim=8")
    assert found.returncode == 0, found.stderr
    assert "∂L/∂M" in found.stdout
    assert "eq. 57" in found.stdout


def test_explain_code(run: Run) -> None:
    found = run("explain", "n0506")
    assert found.returncode == 0, found.stderr
    assert "loss-not-finite" in found.stdout
    assert run("explain", "N9999").returncode == 2


def test_unknown_system_suggests(run: Run, tiny: Path) -> None:
    found = run("schedule", tiny, "tinny")
    assert found.returncode == 1
    assert "N0515" in found.stderr
    assert "`tiny" in found.stderr


def test_compile_writes_source_that_runs(run: Run, tiny: Path, tmp_path: Path) -> None:
    found = run("compile", tiny, "tiny", "-p", "dim=8", "-o", "out.py")
    assert found.returncode == 0, found.stderr
    source = (tmp_path / "out.py").read_text()
    compile(source, "out.py", "exec")
    assert "class " in source
    dumped = run("compile", tiny, "tiny", "-p", "dim=8", "--dump", "code")
    assert dumped.stdout.rstrip() == source.rstrip()


@pytest.mark.parametrize(
    ("stage", "word"), [("ast", "SystemDeclaration"), ("graph", '"embed"'), ("schedule", "hyperperiod"), ("plan", "m")]
)
def test_dumps(run: Run, tiny: Path, stage: str, word: str) -> None:
    found = run("compile", tiny, "tiny", "--dump", stage)
    assert found.returncode == 0, found.stderr
    assert word in found.stdout


def test_compile_needs_a_place_for_its_result(run: Run, tiny: Path) -> None:
    assert run("compile", tiny, "tiny").returncode == 2
    assert run("compile", tiny, "tiny", "-o", "a.py", "--dump", "ast").returncode == 2
    found = run("compile", tiny, "tiny", "-o", "missing/folder/a.py")
    assert found.returncode == 1
    assert "N0514" in found.stderr


def test_bench_says_when_there_is_nothing_to_run(run: Run) -> None:
    found = run("bench")
    assert found.returncode == 1
    assert "source checkout" in found.stderr


def test_verify(run: Run, tiny: Path) -> None:
    found = run("verify", tiny, "-p", "vocab=16")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "tiny(dim = 8, vocab = 16)" in found.stdout


@pytest.mark.slow
def test_a_terminal_without_unicode_is_no_error(tmp_path: Path, tiny: Path, text: Path) -> None:
    """Also where the output does not go through click: the training display draws with rich."""
    options = ["--data", str(text), "--no-compile", "--set", "steps=1", "--out", str(tmp_path / "ascii")]
    found = subprocess.run(
        [sys.executable, "-m", "nsam", "train", str(tiny), *options],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert b"?" in found.stdout  # the mark between prompt and sample
