"""N00xx: files, imports, editions and resource limits."""

from __future__ import annotations

from nsam.dsl.codes.entry import Code

_BODY = "\n\nsystem copy(dim: int) {\n  input x: [dim]\n  output x\n}\n"
_USER = "\n\nsystem user(dim: int) {\n  input x: [dim]\n  memory m : linear(dim -> dim)\n  output m(x)\n}\n"

TABLE: tuple[Code, ...] = (
    Code(
        "N0001",
        "unreadable-file",
        "error",
        "A program is a file that exists, is no folder and may be read.",
    ),
    Code(
        "N0002",
        "not-text",
        "error",
        "A program is UTF-8 text whose lines end in LF or CRLF. It has no control characters other than tabs, no other "
        "characters that break lines (form feed, U+2028), and none that turn the direction of what is shown.",
        "nsam 1\n# a\x00b" + _BODY,
        "nsam 1\n# ab" + _BODY,
    ),
    Code(
        "N0003",
        "too-large",
        "error",
        "A file has at most a million characters and 60,000 words and signs, so that checking it stays quick.",
    ),
    Code(
        "N0004",
        "too-deep",
        "error",
        "Blocks, brackets and operations within each other have a limit far above what people write: 32 blocks, "
        "200 brackets, and expressions 100 operations deep.",
        "nsam 1\n\nsystem copy(dim: int) {\n  input x: [dim]\n  output " + "-" * 150 + "x\n}\n",
        "nsam 1\n\nsystem copy(dim: int) {\n  input x: [dim]\n  output " + "-" * 50 + "x\n}\n",
    ),
    Code(
        "N0005",
        "missing-edition",
        "error",
        "A file starts with the language edition that it is written in: `nsam 1`.",
        _BODY,
        "nsam 1" + _BODY,
    ),
    Code(
        "N0006",
        "unknown-edition",
        "error",
        "The edition is one that this version of nsam knows.",
        "nsam 9" + _BODY,
        "nsam 1" + _BODY,
    ),
    Code(
        "N0007",
        "deprecated-edition",
        "error",
        "Edition 0 was the draft of the language and is no longer read.",
        "nsam 0" + _BODY,
        "nsam 1" + _BODY,
    ),
    Code(
        "N0008",
        "unknown-module",
        "error",
        "`use` names a module of the standard library, such as `std.rules`, or a file in quotes.",
        "nsam 1\n\nuse std.rule (gd)" + _USER,
        "nsam 1\n\nuse std.rules (gd)" + _USER,
    ),
    Code(
        "N0009",
        "import-not-found",
        "error",
        "A file named in `use` exists; its path counts from the folder of the file that uses it.",
    ),
    Code(
        "N0010",
        "import-outside-project",
        "error",
        "`use` reaches only files in the folder of the main program and below, by a relative path that does not leave "
        "it, through links either. A program given as text has no folder and can use the standard library only.",
        'nsam 1\n\nuse "../secrets.nsam" (gd)' + _USER,
        "nsam 1\n\nuse std.rules (gd)" + _USER,
    ),
    Code(
        "N0011",
        "import-cycle",
        "error",
        "Files do not use each other in a circle.",
    ),
    Code(
        "N0012",
        "unknown-import",
        "error",
        "A name that `use` brings in is declared in the file that it names.",
        "nsam 1\n\nuse std.rules (adamv)" + _USER,
        "nsam 1\n\nuse std.rules (adamw)" + _USER,
    ),
    Code(
        "N0013",
        "too-many-files",
        "error",
        "A program brings together at most 100 files.",
    ),
)
