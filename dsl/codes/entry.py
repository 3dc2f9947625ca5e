"""What is known about one diagnostic code; shown by `nsam explain CODE`, and run as a test."""

from __future__ import annotations

from typing import Literal

from nsam.dsl.records import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """One diagnostic code.

    `failing` is a program that triggers it and `repaired` the same program mended; both None only for codes that no
    program text can trigger (unreadable files, run-time data). `equation` names the paper's equation behind the rule.
    """

    code: str
    name: str
    severity: Literal["error", "warning"]
    rule: str
    failing: str | None = None
    repaired: str | None = None
    equation: str | None = None
