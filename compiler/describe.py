"""Short texts for memories and their clauses, in the program's own words where it has any."""

from __future__ import annotations

from math import prod

from nsam.dsl.checked import Expr, Initial, Memory, Reset, Structure
from nsam.dsl.constants import Unknown
from nsam.dsl.sizes import Size
from nsam.dsl.spans import Span


def structure_text(structure: Structure) -> str:
    """Write a structure as a program does: `mlp(64 -> 256 -> 64, act = silu, residual, heads = 4)`."""
    if structure.kind == "like":
        return "like(self)"
    shape = " -> " if structure.kind in ("linear", "mlp") else ", "
    parts = [shape.join(str(size) for size in structure.sizes)] if structure.sizes else []
    if structure.kind == "conv":
        parts = [str(structure.sizes[0]), f"width = {structure.sizes[1]}"]
    named = {"act": structure.act, "heads": structure.heads, "kv_heads": structure.kv_heads, "window": structure.window}
    if structure.kind == "mlp" or structure.act:
        parts += [f"act = {structure.act}"] if structure.act else []
    del named["act"]
    parts += [flag for flag in ("residual", "gated", "bias") if getattr(structure, flag)]
    parts += [f"{name} = {value}" for name, value in named.items() if value is not None]
    parts += [f"eps = {number_text(structure.eps)}"] if structure.eps is not None else []
    return f"{structure.kind}({', '.join(parts)})"


def clause(span: Span, word: str) -> str:
    """Return a clause's source text on one line, without its keyword and comments."""
    lines = (line.split("#", 1)[0] for line in span.text.split("\n"))
    text = " ".join(" ".join(lines).split()).rstrip(" ;")
    return text.removeprefix(word).strip()


def initial_text(initial: Initial) -> str:
    """Write an initial state as a program does."""
    if initial.kind == "memory":
        return str(initial.memory)
    if initial.kind == "expression":
        return source_text(initial.expression)
    if initial.kind == "learned" and initial.deviation is not None:
        return f"learned normal({number_text(initial.deviation)})"
    return initial.kind


def number_text(value: object) -> str:
    """Write a number; … for one that waits for a parameter's value."""
    return f"{value:g}" if isinstance(value, int | float) else "…" if isinstance(value, Unknown) else str(value)


def source_text(expr: Expr | None) -> str:
    """Return an expression's source text on one line."""
    return "" if expr is None else clause(expr.span, "")


def reset_text(reset: Reset) -> str:
    """Write a reset as a program does: `per sequence`, `never`, `every 64 tokens`."""
    if reset.kind == "every":
        return f"every {reset.period} tokens"
    return "per sequence" if reset.kind == "sequence" else "never"


def state_size(memory: Memory) -> Size | None:
    """Return how many numbers a memory's state holds; None while a size has no value (and for attention)."""
    if memory.structure.kind in ("attention", "like"):
        return 0
    try:
        tensors = memory.structure.tensors()
    except (TypeError, IndexError, ValueError):
        return None
    sizes = [size for shape in tensors.values() for size in shape]
    return sum(prod(shape) for shape in tensors.values()) if all(isinstance(size, int) for size in sizes) else None


def cut(text: str, width: int) -> str:
    """Cut in the middle: long paths have their beginning in common, and their end tells them apart."""
    if len(text) <= width:
        return text
    end = (width - 1) * 2 // 3
    return f"{text[: width - 1 - end]}…{text[-end:]}"
