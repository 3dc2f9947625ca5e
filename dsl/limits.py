"""Limits on program text, so that absurd input gets a diagnostic instead of taking time, memory or the stack.

They are far above what a program written by a person needs (the standard library has about 1,000 tokens and an
expression depth below 10), and low enough that every walk over a tree may recurse.
"""

from __future__ import annotations

MAX_CHARACTERS = 1_000_000
"""Characters in one file."""

MAX_TOKENS = 60_000
"""Words, numbers and signs in one file."""

MAX_BLOCKS = 32
"""Depth of `{ }` within each other."""

MAX_BRACKETS = 200
"""Depth of `( )` and `[ ]` within each other."""

MAX_DEPTH = 100
"""Depth of an expression: operators, calls and lists on the longest path from its top to a name or number."""

MAX_DIGITS = 18
"""Digits of a whole number; fits a 64-bit integer."""

MAX_FILES = 100
"""Files that one program may bring together by `use`."""

MAX_ERRORS = 50
"""Syntax errors reported for one file."""
