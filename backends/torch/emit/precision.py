"""Which values are computed in float32 whatever the precision of the matrices: those that become gates.

A retention of 0.9999 is 1 in bfloat16, and a memory would never forget. So everything elementwise between the
projection that makes a gate and the fold that uses it is float32: one number a token and head.
"""

from __future__ import annotations

from collections.abc import Iterable

from nsam.compiler.fast_memory import FastMemory

_MATRIX = frozenset({"linear", "linear_t", "fold_read", "fold_read_t"})


def wide_products(memories: Iterable[FastMemory]) -> frozenset[int]:
    """The products whose results are widened: those of a number a head that rules' arguments are made of."""
    found: set[int] = set()
    for memory in memories:
        todo = [(node, memory.heads) for _, node in memory.arguments]
        seen: set[int] = set()
        while todo:
            node, heads = todo.pop()
            if node.id in seen:
                continue
            seen.add(node.id)
            if node.op not in _MATRIX:
                todo += [(a, heads) for a in node.args if a.layout not in ("weight", "fold")]
            elif node.shape in ((), (1,), (heads,)):
                found.add(node.id)
    return frozenset(found)
