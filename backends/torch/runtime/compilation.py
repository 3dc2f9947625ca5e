"""How torch.compile is asked to work on the generated functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

RECOMPILE_LIMIT = 64
"""Variants of one function: lengths that start at different offsets, with and without gradients or observation."""
CACHEABLE = {f"torch.amp.autocast_mode.{name}": "1" for name in ("_enter_autocast", "_exit_autocast")}


@contextmanager
def compiler_settings(recompute: bool = False) -> Iterator[None]:
    """Settings around every call of a compiled function.

    Traced graphs are kept on disk also where they hold the triangle's own backward (an autograd function, whose two
    graphs are part of the cache's key) or a part without autocast (its arguments are part of the key), which torch
    leaves out by default. With them a second start of the same program neither partitions nor compiles anything:
    8 s instead of 20 s until the first step of hope_bytes on 2 cores.

    With `recompute` elementwise results are computed again in the backward pass, where their operands lie in the cache,
    rather than kept: half of the memory of a block of Hope, and half of what has to be fetched.
    """
    with (
        torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT, accumulated_recompile_limit=4096),
        torch._functorch.config.patch(
            autograd_cache_allow_custom_autograd_functions=True, aggressive_recomputation=recompute
        ),
        torch._inductor.config.patch(unsafe_marked_cacheable_functions=CACHEABLE),
    ):
        yield
