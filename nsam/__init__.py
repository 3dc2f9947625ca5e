"""nsam: a language and compiler for nested learning.

    program = nsam.load("hope.nsam")
    module = nsam.compile(program, "titans", dim=64)
    y, state = module(x)

Importing this package loads neither torch nor networkx; the functions that need them do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsam.dsl.diagnostics import Diagnostic, ProgramError

if TYPE_CHECKING:
    from nsam.api import (
        compile,
        graph,
        load,
        load_state,
        loads,
        new_sequence,
        optimizer,
        save_state,
        source,
        take_sequences,
        verify,
    )
    from nsam.dsl.program import Program

__version__ = "0.1.0"
__all__ = [
    "Diagnostic",
    "Program",
    "ProgramError",
    "compile",
    "graph",
    "load",
    "load_state",
    "loads",
    "new_sequence",
    "optimizer",
    "save_state",
    "source",
    "take_sequences",
    "verify",
]


def __getattr__(name: str) -> object:
    if name == "Program":
        from nsam.dsl.program import Program

        return Program
    if name in __all__:
        from nsam import api

        return getattr(api, name)
    raise AttributeError(f"module 'nsam' has no attribute '{name}'")
