"""What comes out of a command that fails: an exit code and a message, never a traceback."""

from __future__ import annotations

import io
import sys

import click
import pytest
from click.testing import CliRunner

from nsam.cli import main
from nsam.cli.guard import guarded
from nsam.dsl.diagnostics import fail


def result_of(error: BaseException, monkeypatch: pytest.MonkeyPatch | None = None) -> tuple[int, str]:
    @click.command()
    @click.option("--name")
    @guarded
    def command(name: str) -> None:
        raise error

    found = CliRunner().invoke(command, ["--name", "y"])
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
    assert result_of(click.BadParameter("no"))[0] == 2
    assert result_of(click.exceptions.Exit(3))[0] == 3


@pytest.mark.parametrize("file", [None, "checkpoint"])
def test_a_place_without_room_is_said(file: str | None) -> None:
    code, output = result_of(OSError(28, "No space left on device", file))
    assert code == 1
    assert output == f"nsam: cannot write{' checkpoint' if file else ''}: No space left on device\n"


def test_an_output_that_takes_no_more_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    full = Full()
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(click.exceptions.Exit) as caught:
        guarded(lambda: print("much"))()
    assert caught.value.exit_code == 1
    assert sys.stdout is not full  # or Python would end with an error of its own
    assert capsys.readouterr().err == "nsam: cannot write: No space left on device\n"


def test_a_closed_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "argv", ["nsam", "explain", "N0509"])
    with pytest.raises(SystemExit) as caught:
        main()
    sys.stdout.close()
    assert caught.value.code == 0
