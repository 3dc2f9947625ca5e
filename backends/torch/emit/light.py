"""Which stages are too little to be compiled."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

from nsam.compiler.expressions import Node

ALONE = frozenset({"add", "sub", "mul", "embedding", "linear", "merge"})
"""What torch does by one kernel: as all that a stage does it is not compiled, which costs seconds and gains nothing."""
LOOKS = frozenset({"split", "given", "gate"})
"""Other ways to look at a tensor."""
NARROW = frozenset({"sigmoid", "exp", "log", "softplus", "neg", "add", "sub", "mul", "div"})
FEW = 8
"""Numbers a token, a gate for each head, with which these take less time than the call of a compiled function."""
MOST_NARROW = 4
"""How many of them."""


def light(nodes: Sequence[Node], later: Container[int]) -> bool:
    """Whether a stage does one operation at most, not counting gates and what kernels make `later`, by id."""
    work = [n for n in nodes if n.op not in LOOKS and n.id not in later]
    narrow = [n for n in work if n.op in NARROW and math.prod(n.shape) <= FEW]
    rest = [n for n in work if n not in narrow]
    alone = len(rest) == 1 and rest[0].op in ALONE and len(rest[0].args) <= 2
    return len(narrow) <= MOST_NARROW and (not rest or alone)
