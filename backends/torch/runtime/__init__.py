"""What generated modules import: `from nsam.backends.torch import runtime as rt`.

Needs torch only, not the compiler.
"""

from nsam.backends.torch.runtime.blocks import At, block, join, pieces, stage
from nsam.backends.torch.runtime.folds import Generic, Momentum, RankOne, Summed
from nsam.backends.torch.runtime.functions import (
    attention,
    carry,
    conv,
    dot,
    gate,
    gelu_slope,
    huber,
    inside,
    length,
    lp,
    maximum,
    merge,
    minimum,
    norm,
    normalize,
    normalize_pullback,
    pseudo_huber,
    root_mean_square,
    rope,
    silu_slope,
    split,
    sqrt,
    sqrt_slope,
    step_at,
    wide,
)
from nsam.backends.torch.runtime.system import (
    Memory,
    State,
    System,
    advance,
    blank,
    column,
    copied,
    cut,
    empty_memory,
    learned,
    new_sequence,
    normal,
    nothing,
    ones,
    rule_states,
    update,
    zeros,
)
from nsam.backends.torch.runtime.triangular import Decay, triangle

__all__ = [name for name in dir() if not name.startswith("_")]
