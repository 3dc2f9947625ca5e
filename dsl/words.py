"""The words of the language, by the place where they mean something, and the nearest word to a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable

DECLARATIONS = ("rule", "system", "train", "use")
SYSTEM_STATEMENTS = ("input", "memory", "let", "repeat", "transfer", "output")
RULE_STATEMENTS = ("state", "memory", "let")
CLAUSES = ("learn", "minimize", "by", "every", "reads", "reset", "init")
FIELDS = ("model", "data", "minimize", "by", "every", "steps")
SETTINGS = ("model", "data", "steps")
UNITS = ("token", "step", "update")
MODES = ("boundary", "running")
TARGETS = ("matrices", "others")
TRANSFERS = ("backprop", "direct", "init", "generate")
TYPES = ("int", "float", "bool", "str", "list")
EDITION = 1

RESERVED = frozenset({*DECLARATIONS, *SYSTEM_STATEMENTS, *RULE_STATEMENTS, "true", "false", "inf"})
"""Words that cannot be declared or assigned: each starts a statement or is a constant."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that `word` was most likely meant to be, or None when none is near."""
    from difflib import get_close_matches

    if len(word) > 100:
        return None
    found = get_close_matches(word.lower(), list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def alternatives(words: Iterable[str]) -> str:
    """Return "`a`, `b` or `c`"."""
    quoted = [f"`{word}`" for word in words]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"
