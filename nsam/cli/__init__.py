"""The command line: one file a command."""

from __future__ import annotations


def main() -> None:
    """Run the command `nsam` and exit: 0 clean, 1 diagnostics, 2 usage, 70 internal error, 130 interrupted."""
    import io
    import sys

    from nsam.cli.app import application

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a sign of ours (η, ●) gets a question mark, not an error.
            stream.reconfigure(errors="replace")
    application(sys.argv[1] if len(sys.argv) > 1 else None)(prog_name="nsam")
