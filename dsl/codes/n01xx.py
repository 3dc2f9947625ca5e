"""N01xx: syntax."""

from __future__ import annotations

from nsam.dsl.codes.entry import Code


def _system(line: str, output: str = "x") -> str:
    """Return a small program with `line` in the body of its system, which returns `output`."""
    return f"nsam 1\n\nsystem sample(dim: int) {{\n  input x: [dim]\n  {line}\n  output {output}\n}}\n"


def _memory(clause: str) -> str:
    """Return a small program with `clause` among the clauses of its memory."""
    return (
        "nsam 1\n\nuse std.rules (gd)\n\nsystem sample(dim: int) {\n  input x: [dim]\n"
        f"  memory m : linear(dim -> dim) {{\n    learn x -> x\n    minimize l2\n    by gd(lr = 0.1)\n    {clause}\n"
        "  }\n  output m(x)\n}\n"
    )


def _rule(line: str) -> str:
    """Return a small program with `line` in the body of its rule."""
    return f"nsam 1\n\nrule sample(lr) {{\n  {line}\n}}\n"


_RIGHT = _memory("every 4 tokens")
_UPDATE = _rule("self <- self - lr * grad")

TABLE: tuple[Code, ...] = (
    Code(
        "N0101",
        "unexpected-text",
        "error",
        "The text follows the grammar of the language.",
        _system("let y = x +"),
        _system("let y = x + 1"),
    ),
    Code(
        "N0102",
        "unclosed-bracket",
        "error",
        "Every `(` and `[` is closed before its statement ends.",
        _system("let y = sum(x"),
        _system("let y = sum(x)"),
    ),
    Code(
        "N0103",
        "unclosed-block",
        "error",
        "Every `{` has its `}`.",
        _system("let y = x").removesuffix("}\n"),
        _system("let y = x"),
    ),
    Code(
        "N0104",
        "unmatched-bracket",
        "error",
        "Every closing bracket closes an open one of its own kind.",
        _system("let y = sum(x))"),
        _system("let y = sum(x)"),
    ),
    Code(
        "N0105",
        "unterminated-string",
        "error",
        'A string ends with `"` on the line on which it starts, a docstring with `"""`.',
        'nsam 1\n\nuse "./rules.nsam (gd)\n',
        "nsam 1\n\nuse std.rules (gd)\n",
    ),
    Code(
        "N0106",
        "unknown-character",
        "error",
        "Names are made of a-z, A-Z, 0-9 and `_`; the operators are + - * / @ ^.",
        _system("let y = x $ 2"),
        _system("let y = x * 2"),
    ),
    Code(
        "N0107",
        "wrong-assignment",
        "error",
        "`let name = …` binds a new name, `name = …` reassigns one in a `repeat`, and `name <- …` updates the state of "
        "a rule.",
        _rule("self = self - lr * grad"),
        _UPDATE,
    ),
    Code(
        "N0108",
        "unknown-statement",
        "error",
        "A line starts with one of the words that the block around it knows, or assigns a name.",
        _system("memmory m : linear(dim -> dim)", "m(x)"),
        _system("memory m : linear(dim -> dim)", "m(x)"),
    ),
    Code(
        "N0109",
        "missing-colon",
        "error",
        "A `:` stands between the name of an input, memory, parameter or transfer and what it is.",
        _system("memory m linear(dim -> dim)", "m(x)"),
        _system("memory m : linear(dim -> dim)", "m(x)"),
    ),
    Code(
        "N0110",
        "missing-type",
        "error",
        "Parameters of a system have a type; parameters of a rule need none.",
        "nsam 1\n\nsystem copy(dim) {\n  input x: [dim]\n  output x\n}\n",
        "nsam 1\n\nsystem copy(dim: int) {\n  input x: [dim]\n  output x\n}\n",
    ),
    Code(
        "N0111",
        "unknown-word",
        "error",
        "Units, types, ways to read, kinds of transfer and fields of `train` come from short lists of words.",
        _memory("every 4 seconds"),
        _RIGHT,
    ),
    Code(
        "N0112",
        "out-of-place",
        "error",
        "Each statement and clause has its place: `state` in rules, `input` and `output` in systems, `learn` in "
        "memories, `use` before the first declaration.",
        _system("state s = zeros", "x + s"),
        _system("memory s : vector(dim)", "x + s"),
    ),
    Code(
        "N0113",
        "reserved-word",
        "error",
        "Words that start a statement and the constants `true`, `false` and `inf` are no names.",
        _system("let memory = x"),
        _system("let remembered = x"),
    ),
    Code(
        "N0114",
        "positional-after-named",
        "error",
        "In a call, arguments without a name come before those with one.",
        _memory("every 4 tokens").replace("gd(lr = 0.1)", "gd(lr = 0.1, 1)"),
        _RIGHT.replace("gd(lr = 0.1)", "gd(0.1, 1)"),
    ),
    Code(
        "N0115",
        "bad-number",
        "error",
        "A whole number has at most 18 digits, any other is at most 1.7e308, and a number ends where its digits end.",
        _system("let y = 1e999 * x"),
        _system("let y = 1e9 * x"),
    ),
    Code(
        "N0116",
        "missing-separator",
        "error",
        "A newline or `;` ends a statement; two statements do not share a line without it.",
        _system("let y = x let z = x"),
        _system("let y = x; let z = x"),
    ),
    Code(
        "N0117",
        "bad-escape",
        "error",
        'A string knows the escapes `\\n`, `\\t`, `\\"` and `\\\\`.',
        'nsam 1\n\nuse ".\\rules.nsam" (gd)\n',
        "nsam 1\n\nuse std.rules (gd)\n",
    ),
    Code(
        "N0118",
        "misplaced-arrow",
        "error",
        "`->` stands between the sizes of a structure, between key and value in `learn`, and in `transfer`; it is no "
        "operator.",
        _system("let y = x -> x"),
        _system("let y = x - x"),
    ),
    Code(
        "N0119",
        "size-order",
        "error",
        "A structure lists its sizes first, then `name = value`, then flags.",
        _system("memory m : mlp(act = silu, dim -> dim -> dim)", "m(x)"),
        _system("memory m : mlp(dim -> dim -> dim, act = silu)", "m(x)"),
    ),
    Code(
        "N0120",
        "half-adaptive",
        "error",
        "An adaptive period has both: the range that it may have, `n..m tokens`, and `when surprise > x`.",
        _memory("every 4..16 tokens"),
        _memory("every 4..16 tokens when surprise > 0.5"),
    ),
)
