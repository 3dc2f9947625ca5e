"""Which passes acted on a plan, what each of them did, and why the others did not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, pairwise

from nsam.compiler.arrange import arrange
from nsam.compiler.exact import exact_candidates
from nsam.compiler.explain_model import Line, Part
from nsam.compiler.explain_schedule import describe
from nsam.compiler.expressions import Node, postorder
from nsam.compiler.fast_memory import FastMemory, Fold, piece_of, reusable
from nsam.compiler.instances import made_later, where_native, why_library
from nsam.compiler.loops import plan_loops, uncompiled
from nsam.compiler.passes import PASSES
from nsam.compiler.places import SEQUENCE, Place
from nsam.compiler.schedule import UnitPlan
from nsam.compiler.stacks import why_none

TRIANGLE_BLOCK = 16
"""Rows of a triangle that the runtime inverts by powers; larger ones are joined from blocks of that size."""
KERNEL_ROWS = 64
"""The same for the kernel that inverts a triangle on a GPU."""

Told = tuple[bool, str]
"""Whether a pass acted, and what it did or why it did not; several things are separated by semicolons."""


def pass_parts(plan: UnitPlan) -> tuple[Part, ...]:
    """For each pass what it did here, why nothing, or that it is switched off. Without a loop there are none."""
    if not plan.levels:
        return ()
    return tuple(Part(each.name, (Line(_said(plan, each.name, each.without)),)) for each in PASSES)


def _said(plan: UnitPlan, name: str, plain: str) -> str:
    if name not in plan.passes:
        return f"switched off: {plain}"
    acted, text = _TOLD[name](plan)
    return text if acted else f"nothing: {text}"


def _chunk(plan: UnitPlan) -> Told:
    parts = []
    for algorithm, what in (("rank-one", "along keys"), ("momentum", "momentum kernels")):
        names = [n for m in plan.lowered.fast if m.block > 1 and not m.exact for n in _weights(m, algorithm)]
        if names:
            parts.append(f"{', '.join(names)} ({what})")
    if parts:
        return True, "; ".join(parts)
    if all(m.exact or m.period == 1 for m in plan.lowered.fast):
        return False, "every memory moves at every token, so no chunk is folded"
    reasons = dict.fromkeys(_why(m, f) for m in plan.lowered.fast for f in m.folds)
    return False, "; ".join(filter(None, reasons))


def _why(fast: FastMemory, fold: Fold) -> str:
    if fold.algorithm == "summed":
        return f"{fast.memory.name} is summed: one update a chunk, nothing to fold"
    return "; ".join(f"{fast.memory.name}: {reason}" for reason in fold.reasons)


def _weights(fast: FastMemory, algorithm: str) -> list[str]:
    return _listed(fast, [f.tensor for f in fast.folds if f.algorithm == algorithm])


def _listed(fast: FastMemory, tensors: list[str]) -> list[str]:
    """`mem.w1`, or the memory alone where it is about all of its weights."""
    if len(tensors) == len(fast.folds):
        return [fast.memory.name]
    return [f"{fast.memory.name}.{tensor}" for tensor in tensors]


def _exact(plan: UnitPlan) -> Told:
    exact = [m for m in plan.lowered.fast if m.exact]
    if exact:
        blocks = groupby(exact, key=lambda m: m.block)
        return True, "; ".join(f"{_names(group)}: {size} tokens at a time" for size, group in blocks)
    online = [m for m in plan.lowered.fast if m.period == 1]
    if not online:
        return False, "no memory moves at every token"
    known = exact_candidates(plan.unit)
    why = (
        "but its gradient is not known ahead" if any(m.memory.name in known for m in online) else "without such a form"
    )
    return False, f"{_names(online)} {'move' if len(online) > 1 else 'moves'} at every token, {why} (see `computed`)"


def _split(plan: UnitPlan) -> Told:
    split = [(m, piece) for m in plan.lowered.fast if (piece := next(filter(None, map(piece_of, _nodes(m))), None))]
    if split:
        return True, "; ".join(f"{m.memory.name}: {m.block} tokens in pieces of {piece}" for m, piece in split)
    if not any(f.algorithm in ("rank-one", "momentum") for m in plan.lowered.fast for f in m.folds):
        return False, "no chunk is folded by matrix products"
    return False, "every chunk is short enough to be folded at once"


def _nodes(fast: FastMemory) -> list[Node]:
    return [fold.node for fold in fast.folds]


def _names(memories: Iterable[FastMemory]) -> str:
    return ", ".join(m.memory.name for m in memories)


def _folds(plan: UnitPlan) -> list[Node]:
    return [f.node for m in plan.lowered.fast for f in m.folds]


def _share(plan: UnitPlan) -> Told:
    triangles = [(f, a) for f in _folds(plan) for a in f.args if a.op == "triangle"]
    decays = [(f, a) for f in _folds(plan) for a in f.args if a.op == "decay"]
    saved = []
    for used, word in ((triangles, "triangle"), (decays, "decay")):
        distinct = len({a.id for _, a in used})
        if distinct < len(used):
            saved.append(f"{distinct} {word}{'s' * (distinct > 1)} instead of {len(used)}, {_users(used)}")
    if saved:
        return True, "; ".join(saved)
    if len(decays) < 2:
        return False, "a single weight, or none, folds by decays and triangles"
    return False, "no two weights have equal gates"


def _users(used: list[tuple[Node, Node]]) -> str:
    """`one for a.w1, b.w1, one for a.w2, b.w2`: the weights of each part that several use."""
    groups: dict[int, list[str]] = {}
    for fold, part in used:
        groups.setdefault(part.id, []).append(f"{fold.attr('memory')}.{fold.attr('tensor')}")
    return ", ".join(f"one for {', '.join(dict.fromkeys(g))}" for g in groups.values() if len(g) > 1)


def _reuse(plan: UnitPlan) -> Told:
    found = []
    for level in plan.levels:
        here = {n.id for n in (*level.before, *level.after)}
        for fast in map(plan.fast, level.memories):
            made = {f.tensor: reusable(plan.lowered.builder, f.node) for f in fast.folds}
            found += _listed(fast, [t for t, node in made.items() if node is not None and node.id in here])
    if found:
        return True, f"layer outputs at the key, in the updates of {', '.join(found)}"
    return False, "no update erases along keys that its own forward pass went through"


def _stack(plan: UnitPlan) -> Told:
    found = arrange(plan).stacks.found
    if found:
        return True, "; ".join(f"{', '.join(stack.memories)} move as one" for stack in found)
    return False, why_none(plan)


def _rows(plan: UnitPlan) -> Told:
    arranged = arrange(plan)
    counts: dict[int, dict[str, list[str]]] = {}
    products = {p.whole.id: p for p in arranged.parts.values() if p.axis == "rows" and p.whole.op == "linear"}
    for part in products.values():
        state = part.whole.args[1]
        tensors = counts.setdefault(part.count, {}).setdefault(str(state.attr("memory")), [])
        tensors.append(str(state.attr("tensor")))
    together = {stack.name: stack.memories for stack in arranged.stacks.found}
    if counts:
        read = {
            n: [(m, t) for name, t in each.items() for m in together.get(name, (name,))] for n, each in counts.items()
        }
        lists = {n: [x for m, t in each for x in _listed(plan.fast(m), t)] for n, each in read.items()}
        return True, "; ".join(f"{', '.join(names)}: {count} inputs at once" for count, names in lists.items())
    return False, "no memory is read at several inputs that are known at the same time"


def _hoist(plan: UnitPlan) -> Told:
    found = plan.hoisted()
    parts = []
    for place, nodes in _by_place(plan, found):
        where = "for all tokens" if place.level == SEQUENCE else f"for {_tokens(plan, place.level)}"
        parts.append(f"{where}: {_work(plan, nodes)}")
    return (True, "; ".join(parts)) if parts else (False, "all that the loop uses depends on what moves in it")


def _tokens(plan: UnitPlan, level: int) -> str:
    cuts = plan.levels[level].cuts
    return f"each block of {cuts[0]}" if len(cuts) == 1 else "each block"


def _by_place(plan: UnitPlan, nodes: Iterable[Node]) -> Iterator[tuple[Place, list[Node]]]:
    groups: dict[Place, list[Node]] = {}
    for node in nodes:
        groups.setdefault(plan.places[node.id], []).append(node)
    yield from sorted(groups.items(), key=lambda item: item[0].rank(len(plan.levels)))


def _work(plan: UnitPlan, nodes: list[Node]) -> str:
    count = sum(n.op not in ("given", "shown") for n in nodes)
    made = [f"{n} {op}{'s' * (n > 1)}" for op in ("decay", "triangle") if (n := sum(m.op == op for m in nodes))]
    what = ", ".join(filter(None, [describe(plan, nodes), " and ".join(made) + " of each chunk" if made else ""]))
    return f"{count} operation{'s' * (count != 1)}" + (f" ({what})" if what else "")


def _sink(plan: UnitPlan) -> Told:
    roots = [*(n for _, n in plan.lowered.outputs), *plan.lowered.events]
    late = [
        n for n in postorder(roots) if plan.places[n.id] == Place(SEQUENCE, True) and n.op not in ("child", "output")
    ]
    if late:
        return True, f"for all tokens: {_work(plan, late)}"
    return False, "what the loop computes is the result, or an update needs it"


def _segment(plan: UnitPlan) -> Told:
    reason = uncompiled(plan)
    if reason is not None:
        return False, f"the loop runs as plain PyTorch: {reason}"
    loops = plan_loops(plan)
    segments = [loop.period for loop in loops if loop.level is None]
    block = next((inner.period for outer, inner in pairwise(loops) if outer.level is None and inner.level), None)
    found = [f"{size} tokens a call: {size // block} blocks of {block}" for size in segments if block and size > block]
    if found:
        return True, "; ".join(found)
    size = next(loop.compiled for loop in loops if loop.compiled is not None)
    return False, f"one call covers {size} tokens already"


def _inverse(plan: UnitPlan) -> Told:
    sizes: dict[int, dict[int, None]] = {}
    for fast in plan.lowered.fast:
        for fold in fast.folds:
            for triangle in _triangles(fold.node):
                sizes.setdefault(piece_of(fold.node) or fast.block, {})[triangle.id] = None
    parts = []
    for size, found in sizes.items():
        how = "by powers" if size <= TRIANGLE_BLOCK else f"from blocks of {TRIANGLE_BLOCK}"
        parts.append(f"{len(found)} triangle{'s' * (len(found) != 1)} of {size} × {size}, {how}")
    parts += [f"on a GPU with Triton one kernel for up to {KERNEL_ROWS} rows"] * bool(parts)
    return (True, "; ".join(parts)) if parts else (False, "no update erases along its keys, so there is no triangle")


def _triangles(fold: Node) -> list[Node]:
    """The triangles that a fold inverts; one with momentum and erasure makes its own."""
    found = [a for a in fold.args if a.op == "triangle"]
    if fold.op == "momentum" and len(fold.args) > 1 + 2 * int(str(fold.attr("pairs"))) + 3:
        found.append(fold)
    return found


def _recompute(plan: UnitPlan) -> Told:
    reason = uncompiled(plan)
    if reason is not None:
        return False, f"the loop runs as plain PyTorch: {reason}"
    return True, "activations, norms, gates and decays of a block"


def _native(plan: UnitPlan) -> Told:
    reason = why_library(plan)
    if reason is not None:
        return False, reason
    tables = ", its decays and triangles made there, not before the loop" if made_later(plan) else ""
    return True, f"a block's products and what lies between them{tables}, {where_native(plan)}"


_TOLD: dict[str, Callable[[UnitPlan], Told]] = {
    "chunk": _chunk,
    "split": _split,
    "exact": _exact,
    "share": _share,
    "reuse": _reuse,
    "stack": _stack,
    "rows": _rows,
    "hoist": _hoist,
    "sink": _sink,
    "segment": _segment,
    "inverse": _inverse,
    "recompute": _recompute,
    "native": _native,
}
