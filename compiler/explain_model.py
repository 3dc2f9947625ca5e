"""What an explanation holds, before it is laid out as text or as JSON."""

from __future__ import annotations

from nsam.dsl.records import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One line of mathematics or of words. `equation` says where the paper has it: `eq. 90`, `section 3.3`, or ""."""

    text: str
    equation: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Lines under one label."""

    label: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class MemoryExplanation:
    """Memories that differ in name only: their inner problem, their update, and how it is computed."""

    names: tuple[str, ...]
    kind: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class SlowRow:
    """Weights that stay put in the sequence: how many `numbers` each has, how it starts, what else moves it."""

    names: str
    structure: str
    numbers: int
    starts: str
    moves: str = ""
    equation: str = ""


@dataclass(frozen=True, slots=True)
class UnitExplanation:
    """One system or repeat: its values, fast memories and attention, slow weights, calls, nest of loops, passes."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    values: tuple[Line, ...]
    memories: tuple[MemoryExplanation, ...]
    slow: tuple[SlowRow, ...]
    transfers: tuple[Line, ...]
    calls: tuple[Line, ...]
    schedule: tuple[Line, ...]
    passes: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class LevelExplanation:
    """A training level: when it moves, and the rule of each group of parameters."""

    name: str
    clock: str
    rules: tuple[Part, ...]
