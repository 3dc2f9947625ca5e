"""A memory explained that moves by the model's own loss (`minimize task` on the token clock)."""

from __future__ import annotations

from dataclasses import replace

from nsam.compiler import explain_equations as eq
from nsam.compiler import explain_text as tx
from nsam.compiler.describe import structure_text
from nsam.compiler.end_to_end import EndToEnd
from nsam.compiler.explain_memory import counted, free, start_lines, structure_lines
from nsam.compiler.explain_model import Line, MemoryExplanation, Part
from nsam.compiler.explain_problem import tensor_symbol
from nsam.compiler.explain_rules import Symbols, named_in, update
from nsam.compiler.explain_text import Text

CHUNKS = (
    Line("in Python the model takes targets and runs chunk by chunk through all layers; the gradient is autograd's"),
    Line("plain PyTorch, not through torch.compile, which has no second derivative (the outer gradient needs one)"),
)


def explain_end_to_end(found: EndToEnd) -> MemoryExplanation:
    """Explain one memory."""
    memory, n = found.memory, found.period
    assert memory.rule is not None
    assert memory.frequency is not None
    tensors = [tensor_symbol(memory.structure, tensor) for tensor in memory.structure.tensors()]
    symbol = tensors[0] if len(tensors) == 1 else "W"
    named = named_in(memory.rule)
    symbols = Symbols(
        symbol,
        Text("x"),
        Text("∇"),
        "ₛ",
        f"ₛ₊{tx.subscript(n)}",
        False,
        count=free("n", named),
        taken=named | {*tensors},
    )
    rule = update(memory.rule, replace(symbols, counted=counted(memory, symbols)))
    equation = eq.update_equation(memory.rule, rule, memory.objective, False)
    lines = [Line(text, equation if i == rule.main else "") for i, text in enumerate(rule.lines)]
    total = f"∂Lₛ/∂{symbol}" if n == 1 else f"Σᵢ ∂Lᵢ/∂{symbol}, i = s, …, s+{n - 1}"
    lines.append(Line(f"∇ = {total}, {'' if n == 1 else 'each '}at the state that the token read", "eq. 71"))
    if len(tensors) > 1:
        lines.append(Line(f"for W = {', '.join(tensors)}, each with its ∇"))
    lines += [Line(f"where {text}") for text in rule.where]
    every = "token" if n == 1 else f"{n} tokens"
    parts = (
        Part("structure", structure_lines(memory.structure)),
        Part(
            "context",
            (Line("the chunk's tokens and their targets; the target of the last one comes with the next chunk"),),
        ),
        Part("objective", (Line("Lₜ = −log softmax(yₜ)[targetₜ], y the output of the whole model"),)),
        Part("gradient", (Line("through all that the chunk computes, the states at its start held"),)),
        Part("update", tuple(lines)),
        Part(
            "moves",
            (
                Line(
                    f"every {every}, at s, after token s; the loss of token s counts in the chunk that follows",
                    "eq. 71",
                ),
                Line(f"a read at t shows {symbol}ₛ, s the last boundary before t"),
            ),
        ),
        Part("starts", tuple(start_lines(memory))),
        Part("computed", CHUNKS),
    )
    return MemoryExplanation((memory.name,), structure_text(memory.structure), parts)
