"""Whether a block's work is done instance by instance: one sequence's head after the other, in one kernel of our own.

What such a kernel computes stays in a core's cache from one operation to the next, and a block is one call instead of
hundreds. The largest products are faster in the library; large ones too where there are fewer instances than cores,
because a library shares one product among all cores, and a kernel gives each core instances of its own.
"""

from __future__ import annotations

from math import ceil, prod

from nsam.compiler.loops import uncompiled
from nsam.compiler.lower import state_shape
from nsam.compiler.passes import switched_off
from nsam.compiler.places import SEQUENCE
from nsam.compiler.schedule import UnitPlan

FEWEST_PRODUCTS = 2
"""Products of matrices below which a kernel would not be worth its call."""
LARGE_PRODUCT = 1 << 24
"""Floating-point operations of one product, above which the library may be faster."""
LARGEST_MATRIX = 1 << 18
"""Numbers in the right-hand matrix of a large product, above which the library is faster: it leaves the cache."""
FEWEST_BUSY = 0.75
"""The part of all cores, on average over a block, that instances have to keep busy where products are that large."""


def why_library(plan: UnitPlan) -> str | None:
    """Why blocks are left to the kernels of torch.compile; None where they are not (on CPU, in one precision)."""
    return _unsuited(plan) if "native" in plan.passes else switched_off("native")


def _unsuited(plan: UnitPlan) -> str | None:
    """Why native kernels would gain nothing."""
    if (reason := uncompiled(plan)) is not None:
        return f"the loop runs as plain PyTorch: {reason}"
    if not any(fold.algorithm != "summed" for fast in plan.lowered.fast for fold in fast.folds):
        return "no update is folded, so a block has few products"
    flops, size, state = _largest_product(plan)
    if flops > LARGE_PRODUCT and size > LARGEST_MATRIX:
        return f"a product with {state} takes {flops / 1e6:.0f} MFLOP, faster in the library"
    return None


def _largest_product(plan: UnitPlan) -> tuple[int, int, str]:
    """Operations of the largest product of a chunk with a state, numbers of the largest state, whose product it is."""
    sizes = [
        (prod(state_shape(fast.memory, tensor)), fast.block, f"{fast.memory.name}.{tensor}")
        for fast in plan.lowered.fast
        for tensor in fast.memory.structure.tensors()
    ]
    flops, state = max((2 * tokens * size, name) for size, tokens, name in sizes)
    return flops, max(size for size, _, _ in sizes), state


def where_native(plan: UnitPlan) -> str:
    """Which calls have their blocks done in native kernels."""
    if _largest_product(plan)[0] > LARGE_PRODUCT:
        return f"on CPU, where batch × heads keep {FEWEST_BUSY:.0%} of the threads busy"
    return "on CPU, where batch × heads is 2 or more"


def made_later(plan: UnitPlan) -> frozenset[int]:
    """Decays and triangles, by id, for which there is time before all loops, but which native kernels make themselves.

    Such a kernel has what they are made of in its cache. To have them made before, by other kernels, and to read them
    from memory takes longer. The plan has to allow for it also where the pass is off: that is asked when it runs.
    Decays that a triangle reads in a loop around the kernel's (its keys are made there) have to be there by then.
    """
    if _unsuited(plan) is not None:
        return frozenset()
    ahead = plan.ahead
    made = {a.id for a in plan.fold_tables if a.id in ahead and plan.places[a.id].level != SEQUENCE}
    read = {a.id for table in plan.fold_tables if table.id in made for a in table.args}
    return frozenset(i for i in ahead if plan.places[i].level == SEQUENCE and i not in read)


def library_is_faster(flops: int, matrix: int, instances: int, cores: int, *, halves: bool = False) -> bool:
    """Whether a block is left to the library: by its largest product, and numbers in its largest right-hand matrix.

    `halves`: large products are of bfloat16, for which the processor has instructions. `cores` are those of when it is
    compiled; torch's cache does not ask again.
    """
    busy = instances / (cores * ceil(instances / cores))
    return flops > LARGE_PRODUCT and (halves or matrix > LARGEST_MATRIX or busy < FEWEST_BUSY)
