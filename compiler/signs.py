"""What is known about the sign of a gate, so that decays may be summed as logarithms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from nsam.compiler.expressions import Node

_POSITIVE = frozenset({"sigmoid", "exp", "softplus"})
_PASS = frozenset({"gate", "split", "merge", "given", "detach", "index"})

Sign: TypeAlias = "Callable[[Node], list[Claim] | None]"
Claim: TypeAlias = "tuple[Node, Sign]"


def positive(node: Node) -> bool:
    """Whether `node` is certainly above 0 (in exact arithmetic)."""
    return _holds(node, _above_zero)


def below_one(node: Node) -> bool:
    """Whether `node` is certainly below 1."""
    return _holds(node, _below_one)


def _holds(node: Node, sign: Sign) -> bool:
    """Whether a claim holds with all that it rests on; each is asked for once, though many paths may lead to it."""
    todo: list[Claim] = [(node, sign)]
    seen: set[Claim] = set()
    while todo:
        claim = todo.pop()
        if claim in seen:
            continue
        seen.add(claim)
        about, known = claim
        rests_on = known(about)
        if rests_on is None:
            return False
        todo += rests_on
    return True


def _above_zero(node: Node) -> list[Claim] | None:
    """The claims on which it rests that `node` is above 0; None where that is not known."""
    if node.op in _POSITIVE or (node.op == "number" and node.value > 0):
        return []
    if node.op in _PASS:
        return [(node.args[0], _above_zero)]
    if node.op in ("add", "mul", "div", "max"):
        return [(a, _above_zero) for a in node.args]
    if node.op == "sub" and node.args[0].op == "number" and node.args[0].value >= 1:
        return [(node.args[1], _below_one)]
    return None


def _below_one(node: Node) -> list[Claim] | None:
    """The same for a value below 1."""
    if node.op == "sigmoid" or (node.op == "number" and node.value < 1):
        return []
    if node.op in _PASS:
        return [(node.args[0], _below_one)]
    if node.op == "mul":
        return [(a, sign) for a in node.args for sign in (_above_zero, _below_one)]
    if node.op == "div" and node.args[1].op == "number" and node.args[1].value >= 1:
        return [(node.args[0], _below_one)]
    return None
