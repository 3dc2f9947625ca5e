"""Where memories start: resets at shared boundaries, from boundary and running states; values that no token moves."""

from __future__ import annotations

from typing import Any

import pytest

import nsam

LEARN = "learn k(x) -> v(x); minimize l2; by gd(lr = 0.1)"


def memory(name: str, every: int, more: str, structure: str = "linear(dim -> dim)") -> str:
    return f"memory {name} : {structure} {{ {LEARN}; every {every} tokens; {more} }}"


SLOW = memory("slow", 8, "init learned")
CASES = {
    "two": [SLOW, memory("m", 4, "reset every 8 tokens; init slow")],
    "exact": [SLOW, memory("m", 1, "reset every 8 tokens; init slow")],
    "exact, running": [SLOW, memory("m", 1, "reads running; reset every 8 tokens; init slow")],
    "exact, odd": [SLOW, memory("m", 1, "reads running; reset every 3 tokens; init slow")],
    "exact, long": [memory("m", 1, "reads running; reset every 40 tokens; init zeros")],
    "three": [SLOW, memory("b", 4, "reset every 8 tokens; init slow"), memory("m", 2, "reset every 4 tokens; init b")],
    "three, exact": [
        SLOW,
        memory("b", 4, "reset every 8 tokens; init slow"),
        memory("m", 1, "reset every 4 tokens; init b"),
    ],
    "no divisor": [
        SLOW,
        memory("b", 3, "reset every 6 tokens; init slow"),
        memory("m", 2, "reset every 6 tokens; init b"),
    ],
    "from running": [memory("slow", 8, "reads running"), memory("m", 2, "reset every 4 tokens; init slow")],
    "from running, often": [
        memory("b", 4, "reads running; reset every 8 tokens"),
        memory("m", 2, "reset every 2 tokens; init b; reads running"),
    ],
    "from exact": [memory("b", 1, "init zeros"), memory("m", 1, "reset every 4 tokens; init b")],
    "from exact, reset": [memory("b", 1, "reset every 6 tokens"), memory("m", 1, "reset every 3 tokens; init b")],
    "from never": [memory("b", 3, "reset never"), memory("m", 2, "reset every 2 tokens; init b")],
}


@pytest.mark.parametrize("case", CASES)
def test_starts(case: str, pair: Any) -> None:
    text = [
        "nsam 1",
        "use std.rules (gd)",
        "system s(dim: int) {",
        "input x: [dim]",
        "memory k, v : linear(dim -> dim)",
    ]
    program = nsam.loads("\n".join([*text, *CASES[case], "output m(x)", "}"]))
    assert pair(program, "s", dim=3).apart(85 if "long" in case else 19) < 1e-9


STEADY = {
    "a vector's boundary state": (
        "memory a : vector(dim) { learn v(x); minimize l2; by gd(lr = 0.1); every 4 tokens }", "x * a + sigmoid(a)"
    ),
    "a vector in a faster loop": (
        "memory a : vector(dim) { learn v(x); minimize l2; by gd(lr = 0.1); every 8 tokens }\n"
        "memory b : linear(dim -> dim, bias) { learn k(x) -> a; minimize l2; by gd(lr = 0.1); every 2 tokens }",
        "b(sigmoid(a)) + b(x) * exp(a)",
    ),
    "biases": (memory("b", 4, "reads boundary", "mlp(dim -> 6 -> dim, bias, residual)"), "b(x)"),
    "biases by heads": (memory("b", 4, "reads running", "mlp(dim -> 6 -> dim, bias, residual, heads = 3)"), "b(x)"),
    "gates": (memory("b", 4, "reads boundary", "mlp(dim -> 6 -> dim, gated, bias)"), "b(x)"),
    "a window and biases": (
        "memory b : mlp(dim -> 6 -> dim, bias) {"
        " learn k(x) -> v(x) over last 3 tokens; minimize l2; by gd(lr = 0.1); every 2 tokens }",
        "b(x)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STEADY)
def test_values_that_no_token_moves(case: str, pair: Any) -> None:
    declared, output = STEADY[case]
    text = [
        "nsam 1",
        "use std.rules (gd)",
        "system s(dim: int) {",
        "input x: [dim]",
        "memory k, v : linear(dim -> dim)",
    ]
    program = nsam.loads("\n".join([*text, declared, f"output {output}", "}"]))
    assert pair(program, "s", dim=3).apart(11) < 1e-9
