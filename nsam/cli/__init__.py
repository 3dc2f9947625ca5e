"""The command line: one file a command."""

from __future__ import annotations


def main() -> None:
    """Run the command `nsam` and exit: 0 clean, 1 diagnostics, 2 usage, 70 internal error, 130 interrupted."""
    import gc
    import io
    import os
    import sys

    gc.disable()
    from nsam.cli.app import application

    command = application(sys.argv[1] if len(sys.argv) > 1 else None)
    gc.freeze()  # modules and options: never garbage, nor to be looked at again
    gc.enable()

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever called
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a sign of ours (η, ●) gets a question mark, not an error.
            stream.reconfigure(errors="replace")
    try:
        command(prog_name="nsam")
    except BrokenPipeError:  # who reads has seen enough; Python would try to write the rest when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
