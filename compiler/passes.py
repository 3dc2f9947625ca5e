"""The passes that a plan may use, each with a name by which it can be switched off.

Every pass makes the generated code cheaper and changes no value: with it off, the plain form is written. Which passes
acted on a program, and why the others did not, is told by `explain_passes.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from nsam.dsl.diagnostics import fail
from nsam.dsl.records import dataclass


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: what it `does`, and what stands in the code `without` it."""

    name: str
    does: str
    without: str


PASSES = (
    Pass(
        "chunk",
        "fold the tokens of a chunk by matrix products where the rule is an affine recurrence",
        "the rule token by token",
    ),
    Pass(
        "split",
        "fold a long chunk in pieces, so that work on pairs of tokens does not grow with the chunk's square",
        "the whole chunk at once",
    ),
    Pass(
        "exact",
        "fold many tokens at once where a memory that moves every token has an exact parallel form",
        "one block for each token",
    ),
    Pass("share", "one triangle and one decay for all weights with equal keys and gates", "each weight has its own"),
    Pass(
        "reuse",
        "take what a memory's own forward pass has computed at its key over into its update",
        "the update computes it again",
    ),
    Pass(
        "stack",
        "move memories of equal structure that share keys, gates and period as one, their products stacked",
        "each memory on its own",
    ),
    Pass(
        "rows",
        "read a memory at several inputs (key, value, query) by one product over all their rows",
        "a product for each input",
    ),
    Pass(
        "hoist",
        "compute what depends on no moving state once, before the loop, for all tokens",
        "computed in the loop that uses it",
    ),
    Pass("sink", "compute what no update needs once, after the loop, for all tokens", "computed in the loop"),
    Pass("segment", "compile several short blocks as one call", "one call for each block"),
    Pass("inverse", "invert a triangle by matrix products, block by block", "forward substitution"),
    Pass(
        "recompute",
        "keep of a block what its products and sums give; the elementwise rest is computed again in the backward pass",
        "torch.compile's choice of what to keep",
    ),
    Pass(
        "native",
        "on CPU, do a block's work for one sequence and head after the other, in one kernel that keeps it in cache",
        "torch.compile's kernels, an operation or a few for all sequences",
    ),
)
NAMES = tuple(each.name for each in PASSES)


@dataclass(frozen=True, slots=True)
class Passes:
    """The passes that are switched off; all others are on."""

    off: frozenset[str] = frozenset()

    def __contains__(self, name: str) -> bool:
        """Whether the pass called `name` is on."""
        if name not in NAMES:
            raise AssertionError(f"no pass is called {name}")
        return name not in self.off

    @property
    def without(self) -> tuple[str, ...]:
        """Names of the passes that are off, in the order of `PASSES`."""
        return tuple(name for name in NAMES if name in self.off)


ALL = Passes()


def switched_off(name: str) -> str:
    """How explanations say that a pass was left out."""
    return f"pass `{name}` is switched off"


def passes_without(names: str | Iterable[str]) -> Passes:
    """All passes but those named: `("share", "exact")` or `"share, exact"`; `"all"` stands for every one.

    Raises `ProgramError` N0403 for a name that no pass has.
    """
    given = names if isinstance(names, Iterable) and not isinstance(names, str) else [names]
    listed = (part.strip() for text in given for part in str(text).split(","))
    off: set[str] = set()
    for name in filter(None, listed):
        if name != "all" and name not in NAMES:
            close = get_close_matches(name, NAMES, 1)
            hint = f"did you mean `{close[0]}`? " if close else ""
            raise fail(
                "N0403",
                f"there is no pass `{name}`",
                help=f"{hint}the passes are {', '.join(NAMES)}; or all of them: all",
            )
        off |= set(NAMES) if name == "all" else {name}
    return Passes(frozenset(off))
