"""The level graph without a graph library: optimisation problems, transfers between them, same-time needs.

A node is one optimisation problem (definition 3): a memory with its structure, context, objective, rule and frequency.
`graph.py` turns this into a networkx graph for users; checks work on it directly, because they must load quickly.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal, TypeAlias

from nsam.compiler.rates import Rate
from nsam.dsl.checked import Memory, Structure
from nsam.dsl.records import dataclass
from nsam.dsl.sizes import Size
from nsam.dsl.spans import Span

Kind: TypeAlias = Literal["backprop", "direct", "init", "generate"]
Role: TypeAlias = Literal["memory", "weight", "attention", "generated", "rule-memory", "rule-state", "training"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One optimisation problem, a node of the level graph. Texts are those of the program where it has any.

    `role`: "memory" moves in the sequence or has its own step period; "weight" is a parameter of the training level;
    "generated" holds what another memory writes; "rule-memory" and "rule-state" belong to a rule that serves `hosts`.
    `count` is how often a repeat makes it; `parameters` (learned numbers) and `size` (numbers in the state) are of
    one copy, None while sizes have no value yet.
    """

    path: str
    role: Role
    system: str
    unit: str
    rate: Rate
    span: Span
    structure: Structure | None = None
    structure_text: str = ""
    context: str = ""
    objective: str = ""
    rule: str = ""
    initial: str = ""
    reads: Literal["boundary", "running"] = "boundary"
    reset: str = ""
    summed: bool = False
    count: Size = 1
    parameters: Size | None = 0
    size: Size | None = 0
    hosts: tuple[str, ...] = ()
    memory: Memory | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Edge:
    """One transfer of knowledge (section 3.3) from `source` to `target`.

    `uses` says what for: "read" (the target is read at the source's output), "key", "value", the name of a rule's
    argument, "initial", "gradient", "update", "objective" (the loss of the training level). `shows` is the state of
    the source that the target sees: "same-time", "last boundary", or "at reset". `carried`: only from the pass before
    of a repeat.
    """

    source: str
    target: str
    kind: Kind
    uses: tuple[str, ...]
    shows: Literal["same-time", "last boundary", "at reset"]
    span: Span
    declared: bool = False
    carried: bool = False


@dataclass(frozen=True, slots=True)
class Need:
    """Computing `target`'s state at time t needs `source`'s state at time t itself, for `use`."""

    source: str
    target: str
    use: str
    span: Span


@dataclass(frozen=True, slots=True)
class LevelGraph:
    """Problems by path, transfers, same-time needs, and the paths that have a say in the system's output."""

    name: str
    problems: dict[str, Problem]
    edges: tuple[Edge, ...]
    needs: tuple[Need, ...]
    reaching: frozenset[str]
    training: str
