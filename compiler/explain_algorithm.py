"""Which algorithm each weight of a fast memory got, and where it is a slow one: why, and what would change that."""

from __future__ import annotations

from nsam.compiler.exact import depends_on, exact_candidates
from nsam.compiler.explain_model import Line
from nsam.compiler.explain_problem import state_of, tensor_symbol
from nsam.compiler.explain_rules import Update
from nsam.compiler.fast_memory import FastMemory, Fold, piece_of
from nsam.compiler.lower import Lowered
from nsam.compiler.passes import switched_off
from nsam.dsl import checked as c

FASTER_CHUNK = 16
"""The chunk that advice proposes."""


def algorithm_lines(lowered: Lowered, fast: FastMemory, update: Update, transposed: bool) -> list[Line]:
    """Say how the update is computed."""
    groups: dict[tuple[str, tuple[str, ...]], list[Fold]] = {}
    for fold in fast.folds:
        groups.setdefault((fold.algorithm, fold.reasons), []).append(fold)
    lines: list[Line] = []
    for (algorithm, reasons), folds in groups.items():
        symbols = ", ".join(tensor_symbol(fast.memory.structure, f.tensor) for f in folds)
        lines.append(Line(f"{symbols}: {_method(algorithm, fast, update)}"))
        if algorithm == "generic":
            lines += [Line(f"why: {reason}") for reason in reasons]
            if reasons == (switched_off("chunk"),):
                continue
            lines += [Line(f"{'or' if i else 'faster'}: {advice}") for i, advice in enumerate(_advice(fast, update))]
    if fast.period == 1 and _asked_for(lowered, fast):
        lines.append(Line(f"why: {switched_off('exact')}"))
    elif fast.period == 1 and not fast.exact and all(f.algorithm != "generic" for f in fast.folds):
        lines += [Line(f"why: {reason}") for reason in online_reasons(lowered.unit, fast, update, transposed)]
        lines.append(
            Line(
                f"faster: `every {FASTER_CHUNK} tokens`: the gradients of a chunk at once, at its first state (eq. 90)"
            )
        )
    return lines


def _asked_for(lowered: Lowered, fast: FastMemory) -> bool:
    """Whether only the pass that is switched off keeps a memory from an exact parallel form, as far as is known."""
    return "exact" not in lowered.passes and fast.memory.name in exact_candidates(lowered.unit)


def _method(algorithm: str, fast: FastMemory, update: Update) -> str:
    n = fast.block
    if fast.exact:
        solve = "one triangular solve a block" if erases(fast, update) else "decayed sums, no solve"
        return f"exact parallel form of the online recurrence, {n} tokens at a time: {solve}, the rest matrix products"
    if algorithm == "summed":
        return f"one sum of outer products over {n} tokens (a matrix product), then the rule once"
    if algorithm == "generic":
        return "generic fold: the gradients of a chunk at once, the rule token by token"
    if n == 1:
        return "token by token: every gradient needs the state after the token before"
    piece = next(filter(None, (piece_of(fold.node) for fold in fast.folds)), None)
    unit, n = ("chunk", n) if piece is None else (f"piece of {piece} tokens", piece)
    if algorithm == "momentum":
        size = f"a {n} × {n} matrix" if piece is None else f"for each {unit} a {n} × {n} matrix"
        return f"momentum kernels: {size} of scalar weights for trace and state, the rest matrix products"
    if update.erases:
        return f"chunk algebra: one triangular solve of {n} × {n} a {unit} and head, the rest matrix products"
    return f"chunk algebra: decayed sums over {n} tokens, matrix products only"


def erases(fast: FastMemory, update: Update) -> bool:
    """Whether the exact form decays the state along the input: by the rule, or because the error reads the state."""
    states = [state_of(fast, f) for f in fast.folds]
    return update.erases or any(depends_on(p.left, s) for f in fast.folds for p in f.gradient.products for s in states)


def online_reasons(unit: c.Unit, fast: FastMemory, update: Update, transposed: bool) -> list[str]:
    """Why a memory that moves every token has no exact parallel form."""
    memory = fast.memory
    structure = memory.structure
    if fast.slowest is not None:
        return ["every token decides by the state before it whether the memory moves"]
    if structure.kind != "linear" or structure.bias:
        what = "one with a bias" if structure.kind == "linear" else f"a {structure.kind}"
        return [f"only a linear memory without a bias has an exact parallel form; this is {what}"]
    if fast.window > 1:
        return [f"`over last {fast.window} tokens` writes each token {fast.window} times, at different states"]
    if memory.name not in exact_candidates(unit):
        return ["its keys, values or gates come out of its own state, so no later gradient is known in advance"]
    if update.trace:
        return ["the rule keeps a momentum beside the state, and the gradient depends on the state"]
    if transposed:
        return [
            "∂L/∂M holds the state on the side of the input (Mᵀ v), so the direction of each write is not known ahead"
        ]
    return ["∂L/∂ŷ is not a known multiple of ŷ plus something known, as it is for dot and l2; only those unroll"]


def _advice(fast: FastMemory, update: Update) -> list[str]:
    """What would give a weight of this memory a faster algorithm, in terms of the program's clauses."""
    rule = fast.memory.rule
    assert rule is not None
    found = []
    if fast.window > 1 and update.affine:
        found.append(f"without `over last {fast.window} tokens` the chunk algebra applies")
    elif not update.affine:
        found.append(
            "a rule of the form `self <- self @ (a * identity - b * outer(key, key)) - c * grad`, a, b, c scalars, or "
            "with one linear momentum (`memory trace : like(self) { learn grad; minimize dot; by gd(…) }`)"
        )
    else:
        found.append("one trace of gradients alone beside a state that only decays has momentum kernels")
    varying = [n for n, value in rule.arguments if not isinstance(value, c.Constant)]
    n = max(fast.period, FASTER_CHUNK)
    if varying or rule.rule.needs & {"key", "err"}:
        stands = "`, `".join(varying) if varying else "key"
        found.append(
            f"give it constant arguments and `every {n} tokens summed` (not possible while it uses `{stands}`)"
        )
    else:
        found.append(f"`every {n} tokens summed`: the rule runs once a chunk, on the sum of its gradients (eq. 71)")
    return found
