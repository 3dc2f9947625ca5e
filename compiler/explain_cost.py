"""The cost of a unit as a table, or as JSON: operations, parameters, state, activations, by memory."""

from __future__ import annotations

import json
from dataclasses import asdict

from nsam.compiler.cost import CHUNK, TRAINING, VALUES, Cost
from nsam.compiler.describe import cut

LONGEST = 52
"""Characters of a path that are shown, so that a row is one line of a usual terminal."""
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def cost_text(cost: Cost) -> str:
    """Return the table. Operations are those of matrix products in the forward pass, a token; state is a sequence's."""
    rows = [("memory", "copies", "flop/token", "share", "parameters", "state bytes", "kept/token")]
    total = cost.flops or 1.0
    for m in cost.memories:
        flops = m.flops * m.copies
        share = f"{100 * flops / total:.1f} %" if flops else ""
        sizes = (f"{m.parameters:,}", f"{m.state_bytes:,}", f"{m.activation_bytes / cost.tokens:,.0f}")
        rows.append((cut(m.path, LONGEST), str(m.copies), amount(m.flops / cost.tokens), share, *sizes))
    kept = cost.activation_bytes / cost.tokens
    sizes = (f"{cost.parameters:,}", f"{cost.state_bytes:,}", f"{kept:,.0f}")
    rows.append(("all copies", "", amount(cost.flops / cost.tokens), "", *sizes))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    training = amount(3 * cost.flops / cost.tokens)
    lines += [
        "",
        f"sequences of {cost.tokens:,} tokens, float32; matrix products only, n multiply-adds are 2 n operations",
    ]
    if TRAINING not in cost.uncounted:
        lines.append(f"training, forward and backward: about three times as much, {training} flop a token")
    step = amount(cost.activation_bytes)
    lines += [
        f"kept: bytes that a compiled step of training keeps for its backward pass, {kept:,.0f} a token and {step}B a",
        "sequence, times the batch; `--memory` trades them against time (predicted, the loss not included)",
        f"{VALUES}: what no memory has for its own, keys and gates for example",
    ]
    if any(m.path.endswith("triangle") for m in cost.memories):
        lines.append("triangle: Gram matrices and their inverses, shared by the weights with equal keys and gates")
    if any(m.path == CHUNK for m in cost.memories):
        lines.append(
            f"{CHUNK}: the latest chunk's inputs and targets and the state at its start, kept for its gradient"
        )
    lines += [f"not counted: {what}" for what in cost.uncounted]
    return "\n".join(line.rstrip() for line in lines)


def cost_json(cost: Cost) -> str:
    """Return the counts as JSON: those of `Cost` and `MemoryCost`, of one sequence of `tokens` tokens, with totals.

    A memory's are those of one of its `copies`; the totals are of all.
    """
    totals = {
        "flops": cost.flops,
        "parameters": cost.parameters,
        "state_bytes": cost.state_bytes,
        "activation_bytes": cost.activation_bytes,
    }
    found = asdict(cost)
    return json.dumps({"tokens": found.pop("tokens"), **totals, **found}, indent=2, ensure_ascii=False)


def amount(count: float) -> str:
    """`2.12 M`, `384`."""
    for size, prefix in _PREFIXES:
        if count >= size:
            return f"{count / size:.3g} {prefix}"
    return f"{count:.3g}"
