"""What the checker accepts and refuses, beyond the one example that each code has."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nsam.dsl.diagnostics import Diagnostic, ProgramError
from nsam.dsl.program import Program

ROOT = Path(__file__).parents[2]
BAD = sorted((ROOT / "tests" / "programs_bad" / "check").glob("*.nsam"))
SHIPPED = (ROOT / "examples/hope/hope.nsam", ROOT / "examples/zoo/zoo.nsam", ROOT / "dsl/std/rules.nsam")


def system(body: str, parameters: str = "dim: int", use: str = "gd, dgd, muon, m3") -> str:
    """Return a program of one system `s` that reads a vector `x`."""
    return f"nsam 1\nuse std.rules ({use})\nsystem s({parameters}) {{\n input x: [dim]\n{body}\n}}\n"


def findings(text: str) -> list[Diagnostic]:
    """Return what is wrong with a program."""
    with pytest.raises(ProgramError) as caught:
        Program.loads(text)
    return list(caught.value.diagnostics)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_programs_are_clean(path: Path) -> None:
    assert Program.load(path).warnings == ()


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_program_triggers_exactly_these_codes(path: Path) -> None:
    text = path.read_text()
    expected = text.splitlines()[0].removeprefix("# expect: ").split()
    started = time.monotonic()
    with pytest.raises(ProgramError) as caught:
        Program.load(path)
    assert sorted(found.code for found in caught.value.diagnostics) == sorted(expected)
    assert time.monotonic() - started < 20


def test_there_are_bad_programs() -> None:
    assert len(BAD) > 40


def test_a_mismatch_shows_declaration_and_use() -> None:
    (found,) = findings(system("memory m : linear(2*dim -> dim)\noutput m(x)"))
    assert found.primary is not None
    assert found.primary.span.text == "x"
    assert found.primary.text == "this is [dim]"
    assert [label.span.text for label in found.secondary] == ["m"]
    assert "[2*dim]" in found.message


def test_elementwise_mismatch_shows_both_operands() -> None:
    (found,) = findings(system("memory m : linear(dim -> 2*dim)\noutput x + m(x)"))
    assert found.code == "N0214"
    assert found.primary is not None
    assert (found.primary.span.text, [label.span.text for label in found.secondary]) == ("m(x)", ["x"])


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("sigmod(x)", "sigmoid"), ("hiden(x)", "hidden"), ("x + hdden", "hidden"), ("normalise(x)", "normalize")],
)
def test_unknown_names_are_suggested(wrong: str, right: str) -> None:
    found = findings(system(f"memory hidden : vector(dim)\noutput {wrong}"))
    assert found[0].help == f"did you mean `{right}`?"


def test_a_cycle_is_drawn_in_full() -> None:
    (found,) = findings(system("let a = b\nlet b = c + x\nlet c = a\noutput a"))
    assert "a -> c -> b -> a" in found.message
    assert [label.span.text for label in found.secondary] == ["c", "b"]


def test_an_error_in_a_used_system_names_the_use() -> None:
    program = Program.load(ROOT / "examples/hope/hope.nsam")
    with pytest.raises(ProgramError) as caught:
        program.instantiate("hope", {"dim": 10})
    found = caught.value.diagnostics[0]
    assert found.code == "N0215"
    assert "titans(n1(h), dim)" in [label.span.text for label in found.secondary]
    assert any("dim = 10" in note for note in found.notes)


def test_one_fault_is_reported_once_however_often_it_is_used() -> None:
    text = "nsam 1\nsystem a(dim: int) {\n input x: [dim]\n output x + z\n}\n" + "".join(
        f"system b{i}(dim: int) {{\n input x: [dim]\n output a(x, dim) + a(x, 2*dim)\n}}\n" for i in range(3)
    )
    assert [found.code for found in findings(text)] == ["N0201"]


def test_undecidable_sizes_wait_for_numbers() -> None:
    program = Program.loads(system("memory m : linear(other -> dim)\noutput m(x)", "dim: int, other: int"))
    assert program.instantiate("s", {"dim": 8, "other": 8}).memory("m").structure.sizes == (8, 8)
    with pytest.raises(ProgramError, match="N0214"):
        program.instantiate("s", {"dim": 8, "other": 9})


def test_defaults_are_checked_too() -> None:
    body = "memory m : linear(4*dim -> dim, heads = heads)\noutput m(concat(x, x, x, x))"
    assert Program.loads(system(body, "dim: int, heads: int = 3")).systems == ("s",)
    fixed = body.replace("dim", "8").replace("concat(x, x, x, x)", "concat(y, y, y, y)")
    text = f"nsam 1\nsystem s(heads: int = 3) {{\n input y: [8]\n{fixed}\n}}\n"
    assert [found.code for found in findings(text)] == ["N0215"]


def test_defaults_may_use_parameters_before_them() -> None:
    program = Program.loads(system("memory m : linear(dim -> half)\noutput m(x)", "dim: int, half: int = dim / 2"))
    assert program.instantiate("s", {"dim": 8}).outputs[0][1].type.shape == (4,)
    assert program.instantiate("s", {"dim": 8, "half": 3}).outputs[0][1].type.shape == (3,)
    with pytest.raises(ProgramError, match="N0250"):
        program.instantiate("s")
    with pytest.raises(ProgramError, match="N0210"):
        program.instantiate("s", {"dim": 7})


def test_running_read_puts_what_it_learns_first() -> None:
    body = (
        "memory k, v : linear(dim -> dim)\nlet y = m(x)\n"
        "memory m : linear(dim -> dim) { learn kk -> v(x); minimize l2; by gd(lr = 0.1); every 1 token; reads R }\n"
        "let kk = k(x)\noutput y"
    )
    order = {
        mode: [step.name for step in Program.loads(system(body.replace("R", mode))).instantiate("s", {"dim": 4}).steps]
        for mode in ("running", "boundary")
    }
    assert order == {"running": ["kk", "y"], "boundary": ["y", "kk"]}


@pytest.mark.parametrize(
    "body",
    [
        "memory c : vector(dim) { learn x; minimize l2; by gd(lr = 0.1); every 1 token }\noutput x + c",
        "memory norm : rmsnorm(dim)\noutput norm(x)",
        "memory a : mlp(dim -> dim -> dim)\nmemory b : like(a) { init a }\noutput b(x)",
        "memory m : linear(dim -> dim) { minimize task; by gd(lr = 0.1); every 4 tokens }\noutput m(x)",
        "memory m : linear(dim -> dim) { learn x -> x; minimize l2; by gd(lr = 0.1); every inf tokens }\noutput m(x)",
        "memory a : linear(dim -> dim)\nmemory b : linear(dim -> dim)\noutput chain([a, b, a], x)",
        "memory a : mlp(dim -> dim -> dim, gated, bias)\noutput a(x)",
        "output index(x, 0) * slice(x, 0, 2)",
    ],
)
def test_accepted(body: str) -> None:
    Program.loads(system(body)).instantiate("s", {"dim": 8})


def test_names_may_be_used_before_their_line_and_order_does_not_matter() -> None:
    first = Program.loads(system("let a = x + 1\nlet b = 2 * a\noutput b")).instantiate("s", {"dim": 4})
    second = Program.loads(system("let b = 2 * a\nlet a = x + 1\noutput b")).instantiate("s", {"dim": 4})
    assert [(step.name, step.value) for step in first.bindings] == [(step.name, step.value) for step in second.bindings]
    assert first.outputs == second.outputs


def test_renaming_changes_only_names() -> None:
    body = (
        "let NAME = x + 1\n"
        "memory m : linear(dim -> dim) { learn NAME -> x; minimize l2; by gd(lr = 0.1); every 4 tokens }\n"
        "output m(NAME)"
    )
    one, other = (Program.loads(system(body.replace("NAME", name))).instantiate("s", {"dim": 4}) for name in "aq")
    parts = [(unit.bindings[0].value, unit.memory("m").objective, unit.outputs) for unit in (one, other)]
    assert repr(parts[0]).replace("name='a'", "name='q'").replace(":17:", ":") == repr(parts[1]).replace(":17:", ":")
    assert one.memory("m").context != other.memory("m").context
    assert one.memory("m").frequency.period == other.memory("m").frequency.period == 4


def test_a_memory_that_nothing_reads_changes_nothing_else() -> None:
    body = "memory m : linear(dim -> dim)\nEXTRA\noutput m(x)"
    plain = Program.loads(system(body.replace("EXTRA", ""))).instantiate("s", {"dim": 4})
    more = Program.loads(system(body.replace("EXTRA", "memory n : vector(dim)"))).instantiate("s", {"dim": 4})
    assert plain.outputs == more.outputs
    assert [memory.name for memory in more.memories] == ["m", "n"]


@pytest.mark.parametrize(
    ("parameters", "code", "said"),
    [
        ({}, "N0250", "give it: `dim=64`, on the command line `-p dim=64`"),
        ({"dim": 8, "haeds": 2}, "N0250", "did you mean `heads`"),
        ({"dim": "x"}, "N0250", "for instance `dim=64`"),
        ({"dim": True}, "N0250", "for instance"),
        ({"dim": 8.5}, "N0250", "for instance"),
        ({"dim": 0}, "N0211", ""),
        ({"dim": -4}, "N0211", ""),
        ({"dim": 10**12}, "N0211", ""),
        ({"dim": 10**40}, "N0250", ""),
        ({"dim": 2**20}, "N0211", ""),
        ({"dim": 8, "chunk": 0}, "N0223", ""),
        ({"dim": 8, "bound": float("nan")}, "N0250", ""),
        ({"dim": 8, "bound": -1.0}, "N0211", ""),
        ({"dim": 8, "heads": 3}, "N0215", ""),
    ],
)
def test_wrong_parameters(parameters: dict[str, object], code: str, said: str) -> None:
    program = Program.load(ROOT / "examples/hope/hope.nsam")
    with pytest.raises(ProgramError) as caught:
        program.instantiate("titans", parameters)
    assert {found.code for found in caught.value.diagnostics} == {code}
    assert said in (caught.value.diagnostics[0].help or "")


def test_unknown_system_is_suggested() -> None:
    program = Program.load(ROOT / "examples/hope/hope.nsam")
    with pytest.raises(ProgramError) as caught:
        program.instantiate("titan", {})
    assert [(found.code, found.help) for found in caught.value.diagnostics] == [("N0251", "did you mean `titans`?")]
