"""What is known about the sign of a gate, so that decays may be summed as logarithms."""

from __future__ import annotations

from nsam.compiler.expressions import Node

_POSITIVE = frozenset({"sigmoid", "exp", "softplus"})
_PASS = frozenset({"gate", "split", "merge", "given", "detach", "index"})


def positive(node: Node) -> bool:
    """Whether `node` is certainly above 0 (in exact arithmetic)."""
    if node.op == "number":
        return node.value > 0
    if node.op in _POSITIVE:
        return True
    if node.op in _PASS:
        return positive(node.args[0])
    if node.op in ("add", "mul", "div", "max"):
        return all(positive(a) for a in node.args)
    if node.op == "sub":
        return node.args[0].op == "number" and node.args[0].value >= 1 and below_one(node.args[1])
    return False


def below_one(node: Node) -> bool:
    """Whether `node` is certainly below 1."""
    if node.op == "number":
        return node.value < 1
    if node.op == "sigmoid":
        return True
    if node.op in _PASS:
        return below_one(node.args[0])
    if node.op == "mul":
        return all(positive(a) and below_one(a) for a in node.args)
    if node.op == "div":
        return below_one(node.args[0]) and node.args[1].op == "number" and node.args[1].value >= 1
    return False
