"""How the checker reports: one finding a place, with the calls that led there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TypeVar

from nsam.dsl.diagnostics import Fix, Label, Report
from nsam.dsl.spans import Span

T = TypeVar("T")

_MOST_ERRORS = 100


class Skip(Exception):
    """Raised after a finding was reported, to leave the piece of program that it makes meaningless."""


class TooMany(Exception):
    """Raised when so many errors were found that going on helps nobody."""


class Findings:
    """Collects diagnostics of one check.

    A place (code and span) is reported once, however many systems use it. `calls` is the stack of systems being
    instantiated, so that an error inside one can say from where it was used.
    """

    def __init__(self) -> None:
        self.report = Report()
        self._seen: set[tuple[str, Span | None, str]] = set()
        self._calls: list[tuple[Span, str]] = []
        self._errors = 0

    @property
    def failed(self) -> bool:
        """Whether an error was reported."""
        return self.report.failed

    @property
    def depth(self) -> int:
        """How many systems are being instantiated within each other."""
        return len(self._calls)

    def error(
        self,
        code: str,
        message: str,
        span: Span | None,
        label: str = "",
        *,
        secondary: Sequence[Label] = (),
        notes: Sequence[str] = (),
        help: str | None = None,
        fix: Fix | None = None,
        detail: str = "",
    ) -> Skip:
        """Report a finding and return the exception to raise where work cannot go on.

        `detail` tells findings apart that have one place, such as two missing clauses.
        """
        key = (code, span, detail or (message if span is None else ""))
        if key not in self._seen:
            self._seen.add(key)
            context = [f"in {text}" for _, text in self._calls[-1:]]
            called = [Label(place, "used here") for place, _ in self._calls[-1:]]
            self.report.add(
                code,
                message,
                span,
                label,
                secondary=[*secondary, *called],
                notes=[*notes, *context],
                help=help,
                fix=fix,
            )
            self._errors += 1
            if self._errors >= _MOST_ERRORS:
                raise TooMany
        return Skip()

    def twice(self, name: str, span: Span) -> Skip:
        """Report an argument that is given a second time, at `span`: N0205."""
        return self.error(
            "N0205", f"`{name}` is given twice", span, "given again here", help="leave one of the two out"
        )

    @contextmanager
    def inside(self, span: Span, text: str) -> Iterator[None]:
        """Findings made inside mention the call at `span`, described by `text`."""
        self._calls.append((span, text))
        try:
            yield
        finally:
            self._calls.pop()


def attempt_all(thunks: Iterable[Callable[[], T]]) -> list[T]:
    """Run all thunks, so that each reports its own findings; raise `Skip` afterwards when one did."""
    results: list[T] = []
    failed = False
    for thunk in thunks:
        try:
            results.append(thunk())
        except Skip:
            failed = True
    if failed:
        raise Skip
    return results


def suggest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is closest to `name`, if one is close."""
    if len(name) > 60:
        return None
    near = [other for other in known if abs(len(other) - len(name)) <= 3][:500]
    found = get_close_matches(name, near, n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return a help text that suggests a known name, or None."""
    found = suggest(name, known)
    return f"did you mean `{found}`?" if found else None
