"""How torch.compile is asked to work on the generated functions."""

from __future__ import annotations

from typing import Any

import torch

from nsam.backends.torch.runtime.later import submit_later, wait_later

RECOMPILE_LIMIT = 64
"""Variants of one function: lengths that start at different offsets, with and without gradients or observation."""
EARLY = "force_non_lazy_backward_lowering"
DONATED = "collect_bw_donated_buffer_idxs"
LACKED = (EARLY, DONATED)
"""What a version of torch may lack, and then it is not set: EARLY began with 2.10; before it the backward graph is
lowered when the first backward pass asks for it, and is the same. DONATED is a function of torch's, in all versions
from 2.9 to 2.14, that no version promises. All else is in every version from 2.9 on, and compiled code without it would
be another: an error, nothing to be left out in silence."""
CACHEABLE = {f"torch.amp.autocast_mode.{name}": "1" for name in ("_enter_autocast", "_exit_autocast")}
PLAIN: dict[str, Any] = {"pattern_matcher": False}
"""Options of torch.compile for a CPU. Of torch's rewritings by patterns none serves these graphs there, and looking for
them takes a tenth of the time until the first step."""
LOST = ("_unsafe_view_ViewMeta", "resize__ViewMeta")
"""Views of which torch's cache keeps sizes that are gone by then: it crashes, or the next start reads others."""


def views_to_replay(output: Any) -> Any:
    """How an output looks at what it is a view of, for torch's cache; None where torch cannot keep that.

    It then goes by sizes and strides. (PyTorch issues 177442 and 185630; 2.13 still has the fault.)
    """
    from torch._functorch._aot_autograd.functional_utils import ViewMetaSequence

    found = ViewMetaSequence(output)
    return None if any(type(view).__name__ in LOST for view in found.sequence) else found


def nothing_donated(*_: Any) -> list[int]:
    """Which of the tensors that are kept for a backward graph it may write over: none.

    torch's own setting for it, `donated_buffer`, is asked again when the backward pass runs, outside of these settings.
    """
    return []


class CompilerSettings:
    """Settings around every call of a compiled function.

    Traced graphs are kept on disk also where they hold the triangle's own backward (an autograd function, whose two
    graphs are part of the cache's key) or a part without autocast (its arguments are part of the key), which torch
    leaves out by default. With them a second start of the same program neither partitions nor compiles anything:
    8 s instead of 20 s until the first step of hope_bytes on 2 cores.

    With `recompute` elementwise results are computed again in the backward pass, where their operands lie in the cache,
    rather than kept: half of the memory of a block of Hope, and half of what has to be fetched.

    Nothing that is kept for the backward pass is given to it as room for its results: torch would then refuse a second
    backward pass through the same call (`retain_graph=True`), and a step's peak of memory is the same to the byte.

    Views that torch's cache cannot keep are left out of it (`views_to_replay`).

    On a CPU the backward graph is lowered together with the forward one, and no graph waits for its kernels before they
    run (`wait_later`): g++ works meanwhile. What a version of torch lacks of all this is named in `LACKED`.

    A call that compiles nothing pays for them too, and a small model on a GPU waits for the host: so they are set one
    by one, where they differ, in a third of the time that torch's own `patch` takes.
    """

    __slots__ = ("before", "cuda", "recompute")

    def __init__(self, recompute: bool = False, cuda: bool = False) -> None:
        self.recompute, self.cuda = recompute, cuda
        self.before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        dynamo: Any = torch._dynamo.config  # asked for first: torch loads its compiler, and then has the others
        functorch: Any = torch._functorch.config
        from torch._functorch._aot_autograd import collect_metadata_analysis as analysis
        from torch._functorch._aot_autograd import graph_compile
        from torch._inductor.async_compile import AsyncCompile

        for config, name, value in (
            (dynamo, "recompile_limit", RECOMPILE_LIMIT),
            (dynamo, "accumulated_recompile_limit", 4096),
            (functorch, "autograd_cache_allow_custom_autograd_functions", True),
            (functorch, "aggressive_recomputation", self.recompute),
            (analysis, "ViewMetaSequence", views_to_replay),
            (graph_compile, DONATED, nothing_donated),
            (torch._inductor.config, "unsafe_marked_cacheable_functions", CACHEABLE),
            *(() if self.cuda else ((functorch, EARLY, True), (AsyncCompile, "wait", wait_later()))),
            *(() if self.cuda else ((AsyncCompile, "submit", submit_later()),)),
        ):
            old = getattr(config, name, value) if name in LACKED else getattr(config, name)
            if old != value:  # what is lacked is taken for set
                self.before.append((config, name, old))
                setattr(config, name, value)

    def __exit__(self, *error: object) -> None:
        for config, name, old in self.before:
            setattr(config, name, old)
        self.before.clear()
