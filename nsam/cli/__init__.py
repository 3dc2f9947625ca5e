"""The command line: one file a command."""

from __future__ import annotations


def main() -> None:
    """Run the command `nsam` and exit: 0 clean, 1 diagnostics, 2 usage, 70 internal error, 130 interrupted."""
    from nsam.cli.app import app

    app(prog_name="nsam")
