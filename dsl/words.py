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

PLACES = {
    "file": ("at the top of a file", DECLARATIONS),
    "item": ("at the top of a file", DECLARATIONS),
    "system": ("in the body of a system", SYSTEM_STATEMENTS),
    "rule": ("in the body of a rule", RULE_STATEMENTS),
    "clause": ("among the clauses of a memory", CLAUSES),
    "field": ("in a `train` declaration", FIELDS),
}
"""For each place of a piece of text: what messages call it, and the words that start something there."""

HOMES = {
    **dict.fromkeys(SETTINGS, "in a `train` declaration"),
    **dict.fromkeys(SYSTEM_STATEMENTS, "in the body of a system"),
    **dict.fromkeys(RULE_STATEMENTS, "in the body of a rule"),
    **dict.fromkeys(("memory", "let"), "in the body of a system or rule"),
    **dict.fromkeys(CLAUSES, "among the clauses of a memory"),
    **dict.fromkeys(DECLARATIONS, "at the top of a file"),
}
"""Where each word belongs."""

FOREIGN = {
    "def": "rule",
    "fn": "rule",
    "function": "rule",
    "optimizer": "rule",
    "class": "system",
    "module": "system",
    "model": "system",
    "network": "system",
    "import": "use",
    "from": "use",
    "include": "use",
    "for": "repeat",
    "while": "repeat",
    "loop": "repeat",
    "return": "output",
    "yield": "output",
    "var": "let",
    "const": "let",
    "val": "let",
    "param": "memory",
    "parameter": "memory",
    "layer": "memory",
    "maximize": "minimize",
    "loss": "minimize",
    "objective": "minimize",
    "context": "learn",
    "initial": "init",
    "read": "reads",
}
"""What a word of another language stands for here."""


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


def counted(number: object, noun: str) -> str:
    """Return "1 memory", "2 memories", "n memories"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"
