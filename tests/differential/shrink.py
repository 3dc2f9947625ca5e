"""From a program that fails to a small one that fails in the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from comparison import SYSTEM, TOLERANCE, Case, Outcome, compare
from program_text import program_text
from reductions import reductions, size

from nsam.dsl import syntax
from nsam.dsl.diagnostics import ProgramError
from nsam.dsl.parser import parse
from nsam.dsl.spans import Source

LIMIT = 1500
"""Programs that are tried, the invalid ones included."""


@dataclass
class FailsAlike:
    """Whether a case fails as another one did: in one of its ways, with a gap not much smaller than its widest."""

    outcome: Outcome
    kinds: frozenset[str] = field(init=False)
    tolerance: float = field(init=False)

    def __post_init__(self) -> None:
        self.kinds = self.outcome.kinds()
        self.tolerance = max(TOLERANCE, 1e-3 * min(self.outcome.worst(), 1.0))

    def __call__(self, case: Case) -> bool:
        try:
            found = compare(case)
        except ProgramError:
            return False
        return bool(found.kinds(self.tolerance) & self.kinds)


def shrink(case: Case, fails: Callable[[Case], bool], limit: int = LIMIT) -> Case:
    """A small case for which `fails` holds, as it does for `case`: no single reduction of it fails."""
    return _Search(fails, limit).shrink(case)


@dataclass
class _Search:
    fails: Callable[[Case], bool]
    left: int
    known: dict[Case, bool] = field(default_factory=dict)

    def shrink(self, case: Case) -> Case:
        before = None
        while case != before and self.left > 0:
            before = case
            case = self.smaller(self.shorter(self.plainer(case)))
        return case

    def holds(self, case: Case) -> bool:
        if case not in self.known:
            self.left -= 1
            self.known[case] = self.left >= 0 and self.fails(case)
        return self.known[case]

    def plainer(self, case: Case) -> Case:
        """Fewer passes switched off."""
        for name in case.without:
            more = replace(case, without=tuple(n for n in case.without if n != name))
            case = more if self.holds(more) else case
        return case

    def shorter(self, case: Case) -> Case:
        """Fewer sequences and fewer tokens."""
        if case.batch > 1 and self.holds(replace(case, batch=1)):
            case = replace(case, batch=1)
        for time in range(1, case.time):
            if self.holds(replace(case, time=time)):
                return replace(case, time=time)
        return case

    def smaller(self, case: Case) -> Case:
        """Every reduction in turn; after one that holds, the next ones of what it leaves."""
        tree = parse(Source("<shrunk>", case.text))
        index = 0
        choices = self.choices(tree)
        while index < len(choices) and self.left > 0:
            candidate = replace(case, text=program_text(choices[index]))
            if self.holds(candidate):
                tree, case = choices[index], candidate
                choices = self.choices(tree)
            else:
                index += 1
        return case

    def choices(self, tree: syntax.File) -> list[syntax.File]:
        own = size(tree)
        return [smaller for smaller in reductions(tree, SYSTEM) if size(smaller) < own]
