"""Any tree of frozen dataclasses as indented text: what `--dump` prints for stages without a form of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

WIDTH = 110


def tree_text(value: Any) -> str:
    """Return `value` over as many lines as it takes; fields that do not take part in equality are left out."""
    return "\n".join(_lines(value))


def _lines(value: Any, label: str = "", depth: int = 0) -> Iterator[str]:
    indent = "  " * depth
    whole = f"{indent}{label}{_one_line(value)}"
    parts = _parts(value)
    if len(whole) <= WIDTH or not parts:
        yield whole
        return
    yield f"{indent}{label}{_head(value)}"
    for name, part in parts:
        yield from _lines(part, name, depth + 1)


def _head(value: Any) -> str:
    return type(value).__name__ if is_dataclass(value) else f"{type(value).__name__} of {len(value)}"


def _parts(value: Any) -> list[tuple[str, Any]]:
    if is_dataclass(value) and not isinstance(value, type):
        return [(f"{f.name}: ", getattr(value, f.name)) for f in fields(value) if f.compare]
    if isinstance(value, Mapping):
        return [(f"{key}: ", item) for key, item in value.items()]
    if isinstance(value, tuple | list):
        return [("", item) for item in value]
    return []


def _one_line(value: Any) -> str:
    if is_dataclass(value) and not isinstance(value, type):
        inside = ", ".join(f"{name.rstrip(': ')} = {_one_line(part)}" for name, part in _parts(value))
        return f"{type(value).__name__}({inside})"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_one_line, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_one_line(item)}" for key, item in value.items()) + "}"
    return repr(value)
