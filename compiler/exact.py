"""Where a memory that moves every token has an exact parallel form.

If its keys, values and gates do not depend on its own state, and the gradient is affine in the state along the key, all
gradients of a block are known before the block is folded.
"""

from __future__ import annotations

from nsam.compiler.expressions import Builder, Node, postorder
from nsam.compiler.fast_memory import EXACT_BLOCK
from nsam.dsl import checked as c


def exact_candidates(unit: c.Unit) -> frozenset[str]:
    """Memories with period 1 whose keys, values and gates do not depend on their own state.

    Only of these can every gradient of a block be known before the block is folded. A memory whose gradients hold its
    own state constant is none of them: to the outer gradient, what it erases is no part of the recurrence.
    """
    held = {t.source for t in unit.transfers if t.kind == "direct" and t.source == t.target}
    feeds = {m.name: _fast_sources(unit, m) for m in unit.memories if m.fast}
    candidates = set()
    for memory in unit.memories:
        if not memory.fast or memory.frequency is None or memory.frequency.period != 1 or memory.frequency.summed:
            continue
        if (
            memory.name in held
            or memory.frequency.slowest is not None
            or memory.structure.kind != "linear"
            or memory.structure.bias
        ):
            continue
        if (
            memory.context is None
            or memory.context.window not in (None, 1)
            or memory.name in _closure(memory.name, feeds)
        ):
            continue
        candidates.add(memory.name)
    return frozenset(candidates)


def _closure(name: str, feeds: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = list(feeds[name])
    while todo:
        source = todo.pop()
        if source not in found:
            found.add(source)
            todo.extend(feeds.get(source, ()))
    return found


def _fast_sources(unit: c.Unit, memory: c.Memory) -> set[str]:
    """Fast memories whose state enters this memory's clauses, its own included."""
    bindings = {b.name: b.value for b in unit.bindings}
    fast = {m.name for m in unit.memories if m.fast}
    attention = {m.name: m for m in unit.memories if m.structure.kind == "attention"}
    children = {s.name: s for s in unit.children}
    todo, seen, found = list(c.memory_expressions(memory)), set[str](), set[str]()
    while todo:
        for node in c.walk(todo.pop()):
            if isinstance(node, c.Read | c.State):
                name = memory.name if node.memory == "self" else node.memory
                if name in fast:
                    found.add(name)
                if name in attention and name not in seen:
                    seen.add(name)
                    todo.extend(c.memory_expressions(attention[name]))
            elif isinstance(node, c.Ref) and node.name in bindings and node.name not in seen:
                seen.add(node.name)
                todo.append(bindings[node.name])
            elif isinstance(node, c.Output) and f"child {node.child}" not in seen:
                seen.add(f"child {node.child}")
                step = children[node.child]
                if isinstance(step, c.Call):
                    todo.extend(step.arguments)
                else:
                    todo.extend(e for _, e in (*step.carried, *step.captured))
    return found


def exact_block(memory: c.Memory) -> int:
    """How many tokens an exact memory folds at once: never beyond its reset."""
    return min(EXACT_BLOCK, int(memory.reset.period or EXACT_BLOCK)) if memory.reset.kind == "every" else EXACT_BLOCK


def depends_on(node: Node, source: Node) -> bool:
    """Whether `source` is below `node`."""
    return any(n is source for n in postorder([node]))


def affine_in(b: Builder, node: Node, y: Node) -> tuple[Node, Node] | None:
    """Write `node` as a·y + c with a scalar a and c free of y's weight, or return None."""
    weight = y.args[1]
    if node is y:
        return b.number(1), b.number(0)
    if not depends_on(node, weight):
        return b.number(0), node
    if node.op in ("add", "sub"):
        left, right = (affine_in(b, a, y) for a in node.args)
        if left is None or right is None:
            return None
        return b.apply(node.op, left[0], right[0]), b.apply(node.op, left[1], right[1])
    if node.op == "neg":
        inner = affine_in(b, node.args[0], y)
        return None if inner is None else (b.neg(inner[0]), b.neg(inner[1]))
    if node.op == "mul":
        for scale, other in (node.args, node.args[::-1]):
            inner = affine_in(b, other, y)
            if not depends_on(scale, weight) and inner is not None and scale.shape in ((), (1,)):
                return b.scaled(scale, inner[0]), b.scaled(scale, inner[1])
    return None
