"""What comes out of a command that fails: an exit code and a message, never a traceback."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from nsam.cli.guard import guarded
from nsam.dsl.diagnostics import fail


def result_of(error: BaseException, monkeypatch: pytest.MonkeyPatch | None = None) -> tuple[int, str]:
    app = typer.Typer(pretty_exceptions_enable=False)

    def command(name: str = "x") -> None:
        raise error

    app.command()(guarded(command))
    found = CliRunner().invoke(app, ["--name", "y"])
    return found.exit_code, found.output


def test_diagnostics_exit_1_and_are_rendered() -> None:
    code, output = result_of(fail("N0502", "there is no text", help="give some"))
    assert code == 1
    assert "N0502" in output
    assert "there is no text" in output
    assert "give some" in output
    assert "Traceback" not in output


def test_ctrl_c_exits_130() -> None:
    assert result_of(KeyboardInterrupt()) == (130, "Interrupted.\n")


def test_a_fault_of_ours_says_so_and_asks_for_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NSAM_DEBUG", raising=False)
    code, output = result_of(ZeroDivisionError("oh"))
    assert code == 70
    assert "internal error: ZeroDivisionError: oh" in output
    assert "report" in output
    assert "Traceback" not in output
    monkeypatch.setenv("NSAM_DEBUG", "1")
    code, output = result_of(ZeroDivisionError("oh"))
    assert code == 70
    assert "Traceback" in output


def test_usage_errors_and_exits_pass_through() -> None:
    assert result_of(typer.BadParameter("no"))[0] == 2
    assert result_of(typer.Exit(3))[0] == 3
