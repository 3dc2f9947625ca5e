"""The pass over torch's graphs, before they are cut into forward and backward, that keeps what kernels made."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph
from torch.utils.checkpoint import CheckpointPolicy

from nsam.backends.torch.on_chip import operators  # noqa: F401 (registers the operators)


class KeptInverses(CustomGraphPass):
    """Has the inverse of a triangle kept for the backward pass, which uses it.

    Where elementwise results are computed again there, torch takes an operator that it does not know for one of them.
    """

    def __call__(self, graph: Graph) -> None:
        """Mark the nodes."""
        for node in graph.find_nodes(op="call_function", target=torch.ops.nsam.unit_lower_inverse.default):
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

    def uuid(self) -> Any:
        """What a cached graph depends on: this file."""
        return get_hash_for_files((__file__,))


@functools.cache
def kept_inverses() -> KeptInverses:
    """The one pass of this process."""
    return KeptInverses()
