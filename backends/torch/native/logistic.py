"""One sigmoid for all that need it.

silu comes from torch as z / (1 + exp(−z)), its derivative with the sigmoid of z, and a chunk's own tokens with that of
a part of z: one function, of the same numbers, computed up to three times.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten


def share_sigmoids(graph: Graph) -> None:
    """Compute the sigmoid of a tensor once, where others of the same tensor or of its parts are needed too.

    Not for the sake of a small part: that is computed as fast as the whole is stored.
    """
    work = next(node for node in graph.nodes if node.op != "placeholder")
    for z in list(graph.nodes):
        negatives = [user for user in z.users if user.target is aten.neg.default]
        quotients = [found for negative in negatives for found in _quotients(negative)]
        whole = [user for user in z.users if user.target is aten.sigmoid.default]
        parts = [
            (part, user)
            for part in z.users
            if part.target is aten.slice.Tensor and part.args[0] is z
            for user in part.users
            if user.target is aten.sigmoid.default
        ]
        stored = whole or (quotients and sum(_size(user) for _, user in parts) >= _size(z))
        if not stored or len(quotients) + len(whole) + len(parts) < 2:
            continue
        with graph.inserting_before(work) if z.op == "placeholder" else graph.inserting_after(z):
            sigmoid = graph.call_function(aten.sigmoid.default, (z,))
        sigmoid.meta["val"] = (whole or negatives)[0].meta["val"]
        for quotient in quotients:
            _replace(graph, quotient, aten.mul.Tensor, (quotient.args[0], sigmoid))
        for node in whole:
            node.replace_all_uses_with(sigmoid)
        for part, node in parts:
            _replace(graph, node, aten.slice.Tensor, (sigmoid, *part.args[1:]))
    graph.eliminate_dead_code()


def _quotients(negative: Node) -> list[Node]:
    """What is divided by 1 + exp(−z), from −z on."""
    found = []
    for power in negative.users:
        for one in power.users if power.target is aten.exp.default else ():
            if one.target in (aten.add.Tensor, aten.add.Scalar) and one.args == (power, 1) and not one.kwargs:
                found += [user for user in one.users if user.target is aten.div.Tensor and user.args[1] is one]
    return found


def _size(node: Node) -> int:
    return math.prod(node.meta["val"].shape)


def _replace(graph: Graph, node: Node, target: Any, args: tuple[Any, ...]) -> None:
    with graph.inserting_before(node):
        new = graph.call_function(target, args)
    new.meta.update(node.meta)
    node.replace_all_uses_with(new)
