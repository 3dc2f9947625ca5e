"""A program as the commands want it: checked to the end, levels included, its warnings told."""

from __future__ import annotations

from pathlib import Path

from nsam.cli.output import show
from nsam.compiler.checks import check_unit
from nsam.dsl.diagnostics import Diagnostic, ProgramError, Report
from nsam.dsl.program import Program


def load_checked(file: Path) -> tuple[Program, list[Diagnostic]]:
    """Return the program at `file` and its warnings; raise `ProgramError` with everything found.

    The levels of every system are checked with the parameters that have no default left open, so that a program is
    right or wrong whatever sizes it is used at.
    """
    program = Program.load(file)
    report = Report()
    for name in program.systems:
        check_unit(program.symbolic(name), report=report)
    for name in program.trains:
        train = program.train(name)
        check_unit(train.model, train, report=report)
    found = _each_once([*program.warnings, *report.diagnostics])
    if report.failed:
        raise ProgramError(found)
    return program, found


def load(file: Path) -> Program:
    """Return the checked program at `file` after printing its warnings; raise `ProgramError` when it has errors."""
    program, warnings = load_checked(file)
    show(warnings)
    return program


def _each_once(found: list[Diagnostic]) -> list[Diagnostic]:
    """A system used by another one, or by a train declaration, is checked there again: keep one finding a place."""
    seen: dict[tuple[object, ...], Diagnostic] = {}
    for diagnostic in found:
        place = None if diagnostic.primary is None else diagnostic.primary.span
        seen.setdefault((diagnostic.code, place or diagnostic.message), diagnostic)
    return list(seen.values())
