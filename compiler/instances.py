"""Whether a block's work is done instance by instance: one sequence's head after the other, in one kernel of our own.

What such a kernel computes stays in a core's cache from one operation to the next, and a block is one call instead of
hundreds. Large products are as fast in the library, and gain nothing.
"""

from __future__ import annotations

from math import prod

from nsam.compiler.fast_memory import FastMemory, piece_of
from nsam.compiler.loops import uncompiled
from nsam.compiler.lower import state_shape
from nsam.compiler.passes import switched_off
from nsam.compiler.places import SEQUENCE
from nsam.compiler.schedule import UnitPlan

FEWEST_PRODUCTS = 2
"""Products of matrices below which a kernel would not be worth its call."""
LARGEST_PRODUCT = 1 << 24
"""Floating-point operations of one product, from which the library's kernels are no slower."""


def why_library(plan: UnitPlan) -> str | None:
    """Why blocks are left to the kernels of torch.compile; None where they are not (on CPU, in one precision)."""
    return _unsuited(plan) if "native" in plan.passes else switched_off("native")


def _unsuited(plan: UnitPlan) -> str | None:
    """Why native kernels would gain nothing."""
    if (reason := uncompiled(plan)) is not None:
        return f"the loop runs as plain PyTorch: {reason}"
    if not any(fold.algorithm != "summed" for fast in plan.lowered.fast for fold in fast.folds):
        return "no update is folded, so a block has few products"
    for fast in plan.lowered.fast:
        for tensor in fast.memory.structure.tensors():
            flops = 2 * (piece_of_any(fast) or fast.block) * prod(state_shape(fast.memory, tensor))
            if flops > LARGEST_PRODUCT:
                return (
                    f"a product with {fast.memory.name}.{tensor} takes {flops / 1e6:.0f} MFLOP, as fast in the library"
                )
    return None


def made_later(plan: UnitPlan) -> frozenset[int]:
    """Decays and triangles, by id, for which there is time before all loops, but which native kernels make themselves.

    Such a kernel has what they are made of in its cache. To have them made before, by other kernels, and to read them
    from memory takes longer. The plan has to allow for it also where the pass is off: that is asked when it runs.
    """
    if _unsuited(plan) is not None:
        return frozenset()
    return frozenset(i for i in plan.ahead if plan.places[i].level == SEQUENCE)


def piece_of_any(fast: FastMemory) -> int | None:
    """Tokens of a piece, where a long chunk is folded in pieces."""
    return next(filter(None, (piece_of(fold.node) for fold in fast.folds)), None)
