"""Walking and changing syntax trees without knowing what their nodes mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from typing import Any, TypeVar

from nsam.dsl import syntax as s

N = TypeVar("N", bound=s.Node | s.File)


@cache
def _parts(kind: type) -> tuple[str, ...]:
    """The fields of a kind of node that may hold nodes."""
    return tuple(f.name for f in fields(kind) if not f.name.endswith("span") and f.name != "comments")


def children(node: Any) -> Iterator[tuple[str, int | None, Any]]:
    """Each node right below, with its field and its place in it (None where the field is the node)."""
    for name in _parts(type(node)):
        value = getattr(node, name)
        if isinstance(value, s.Node):
            yield name, None, value
        elif isinstance(value, tuple):
            yield from ((name, i, item) for i, item in enumerate(value) if isinstance(item, s.Node))


def put(node: N, name: str, index: int | None, child: Any) -> N:
    """The node with one child exchanged."""
    if index is None:
        return replace(node, **{name: child})
    value = getattr(node, name)
    return replace(node, **{name: (*value[:index], child, *value[index + 1 :])})


def walk(node: Any) -> Iterator[Any]:
    """The node and all below it, from the top."""
    yield node
    for _, _, child in children(node):
        yield from walk(child)


def rewrite(node: N, change: Callable[[Any], Any]) -> N:
    """The node with `change` done to every node in it, from the bottom."""
    for name, index, child in children(node):
        new = rewrite(child, change)
        if new is not child:
            node = put(node, name, index, new)
    result: N = change(node)
    return result


def variants(node: N, local: Callable[[Any], Iterator[Any]]) -> Iterator[N]:
    """The node with one of the changes that `local` proposes made somewhere in it, the outermost first."""
    yield from local(node)
    for name, index, child in children(node):
        for new in variants(child, local):
            yield put(node, name, index, new)
