"""Explanations: the equations printed are those that were derived; slow algorithms are given their reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nsam.compiler.explain import WIDTH, explain, explain_json
from nsam.dsl.program import Program

ROOT = Path(__file__).parents[2]
ODD = """nsam 1
use std.rules (gd, dgd, momentum, adamw)
rule squashed(lr) {
  state m = zeros
  m <- 0.9 * m + tanh(grad)
  self <- self - lr * m
}
"""


def body(memory: str, structure: str = "linear(dim -> dim)", more: str = "") -> list[str]:
    """The explanation of one memory `m`, spaces squeezed."""
    text = (
        f"{ODD}system s(dim: int = 4) {{ input x: [dim]; {more} memory m : {structure} {{ {memory} }}; output m(x) }}\n"
    )
    return lines(Program.loads(text), "s")


def lines(program: Program, system: str, **parameters: Any) -> list[str]:
    return [" ".join(line.split()) for line in explain(program.instantiate(system, parameters)).splitlines()]


def has(found: list[str], text: str) -> bool:
    return any(text in line for line in found)


def test_a_deep_memory_is_differentiated_layer_by_layer() -> None:
    found = lines(Program.load(ROOT / "examples/hope/hope.nsam"), "titans", dim=8, chunk=16)
    for text in (
        "memories k, v, eta, alpha : mlp(8 -> 32 -> 8, act = silu, residual, heads = 4)",
        "M(x) = x + W₂ silu(W₁ x)",
        "L = √(1 + ‖ŷ − v̂‖²) − 1",
        "ŷ = k + W₂ x₂",
        "∂L/∂ŷ = g₂ = e / √(1 + ‖e‖²)",
        "g₁ = (W₂ᵀ g₂) ⊙ silu′(z₁)",
        "∂L/∂W₁ = g₁ kᵀ",
        "∂L/∂W₂ = g₂ x₂ᵀ",
        "Wₜ = Wₜ₋₁ (αₜ I − ηₜ x xᵀ) − ηₜ g xᵀ eq. 57, 88",
        "where ηₜ = rate / (1 + rate ‖x‖²)",
        "where αₜ = keep",
        "every 64 tokens; s = 64 ⌊(t−1)/64⌋ is the last boundary before t eq. 90",
        "loop over blocks of 64 tokens: update k, v, eta, alpha",
        "loop over blocks of 16 tokens: update mem",
        "whole sequence, before the loop: reads of taps_q, q, taps_k, taps_v",
        "whole sequence, after the loop: reads of o",
    ):
        assert has(found, text), text


@pytest.mark.parametrize(
    ("system", "texts"),
    [
        ("gated_deltanet", ("Mₜ = Mₜ₋₁ (αₜ I − ηₜ k kᵀ) + wₜ v kᵀ", "where ηₜ = a b", "exact parallel form")),
        ("oja", ("L = −⟨ŷ, v⟩ + ½ ‖Mᵀ v‖²", "∂L/∂M = v (Mᵀ v)ᵀ − v kᵀ", "eq. 66–67", "why: ∂L/∂M holds the state")),
        ("titans_memory", ("Sₜ = θₜ Sₜ₋₁ + ηₜ g xᵀ", "Wₜ = αₜ Wₜ₋₁ − Sₜ eq. 33–34", "momentum kernels")),
        ("atlas", ("i = t−7, …, t eq. 68", "NS₅(∇ + 0.95 traceₛ₊₁₆)", "i = s+1, …, s+16 eq. 71", "then the rule")),
        ("nested_cms", ("what `slow` has learnt by then", "and every 64 tokens", "eq. 28, 72", "reset fast")),
        ("transformer_block", ("softmaxᵢ(⟨q, kᵢ⟩ / √d) vᵢ", "eq. 62–63", "no memory moves inside the sequence")),
        ("detached", ("that is Mₜ = Mₜ₋₁ (I − 0.2 k kᵀ) + 0.1 v kᵀ", "k → m: direct, no outer gradient crosses")),
        ("hyper", ("= writer(c)", "writer → fast: generate")),
        ("independent_cms", ("moves every 8 steps by the sum of the task's gradients eq. 70–71",)),
    ],
)
def test_published_memories(system: str, texts: tuple[str, ...]) -> None:
    zoo = Program.load(ROOT / "examples/zoo/zoo.nsam")
    found = lines(zoo, system, dim=8)
    for text in texts:
        assert has(found, text), text


def test_a_system_whose_parts_move_says_so() -> None:
    program = Program.load(ROOT / "examples/hope/hope.nsam")
    text = explain(program.train("hope_bytes").model)
    assert "no memory of its own moves inside the sequence; those of its parts do, see below" in text
    found = json.dumps(explain_json(program.train("hope_bytes").model))
    assert "no memory of its own moves inside the sequence" in found


def test_periods_whose_pattern_never_repeats_are_told_in_no_time() -> None:
    program = Program.loads(
        "nsam 1\nuse std.rules (gd)\nsystem s(dim: int, periods: list[int]) {\n  input x: [dim]\n"
        "  memory m[p in periods] : linear(dim -> dim) { learn x -> x; minimize l2; by gd(lr = 0.1); every p tokens }\n"
        "  output chain(m, x)\n}\n"
    )
    primes = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31)
    text = " ".join(explain(program.instantiate("s", {"dim": 4, "periods": primes})).split())
    assert "cut the 200,560,490,130 tokens after which their pattern repeats into more than the 16 pieces" in text
    assert "more than the 16 pieces" not in explain(program.instantiate("s", {"dim": 4, "periods": (2, 3)}))


def test_every_line_fits_and_names_do_not_matter() -> None:
    for file in sorted((ROOT / "examples").rglob("*.nsam")):
        program = Program.load(file)
        for name in program.systems:
            missing = {p.name: 8 for p in program.parameters(name) if p.default is None}
            text = explain(program.instantiate(name, missing))
            assert max(map(len, text.splitlines())) <= WIDTH, name
            assert "None" not in text, name


def test_infinite_bound_is_the_squared_error() -> None:
    found = body("learn x -> x; minimize pseudo_huber(inf); by gd(lr = 0.1); every 4 tokens")
    assert has(found, "L = ½ ‖ŷ − k‖²")
    assert has(found, "Mₜ = Mₜ₋₁ − 0.1 e kᵀ")


def test_gates_biases_and_custom_objectives() -> None:
    deep = "mlp(dim -> 8 -> dim, act = relu, gated, bias)"
    found = body("learn x -> x; minimize 2 * sum(tanh(self(key) - value)); by gd(lr = 1); every 3 tokens", deep)
    for text in ("c₁ = U₁ k", "z₁ = W₁ k + b₁", "relu′(c₁)", "∂L/∂U₁ = h₁ kᵀ", "∂L/∂b₂ = g₂", "2 sum(tanh(ŷ − k))"):
        assert has(found, text), text


def test_a_rule_outside_the_fast_patterns_is_told_why() -> None:
    found = body("learn x -> x; minimize l2; by squashed(lr = 0.1); every 4 tokens")
    assert has(found, "mₜ = 0.9 mₜ₋₁ + tanh(∇)")
    assert has(found, "generic fold")
    assert has(found, "why: `state m = zeros` keeps a state")
    assert has(found, "`every 16 tokens summed`")


def test_equal_coefficients_share_a_letter_and_others_do_not() -> None:
    rule = "rule r(a, b, c) {\n  self <- self @ (0.9 * identity - a * outer(key, key)) - b * self - c * grad\n}\n"
    text = (
        f"nsam 1\n{rule}"
        + """system s(dim: int = 4) {
  input x: [dim]
  memory p, q : linear(dim -> 1)
  memory m : linear(dim -> dim) { learn x -> x; minimize dot; by r(a = p(x), b = 0.1, c = q(x)); every 4 tokens }
  memory n : linear(dim -> dim) { learn x -> x; minimize dot; by r(a = p(x), b = 0.1, c = p(x)); every 4 tokens }
  output m(x) + n(x)
}
"""
    )
    found = lines(Program.loads(text), "s")
    assert has(found, "Mₜ = Mₜ₋₁ (0.8 I − ηₜ k kᵀ) + wₜ k kᵀ")
    assert has(found, "Mₜ = Mₜ₋₁ (0.8 I − ηₜ k kᵀ) + ηₜ k kᵀ")
    assert found.count("where ηₜ = p(x)") == 2


def test_erasing_inside_the_momentum() -> None:
    deep = Program.load(ROOT / "examples/deep_memories/deep_memories.nsam")
    assert has(lines(deep, "titans_erase_inside", dim=8), "Sₜ = ηₜ Wₜ₋₁ x xᵀ + θₜ Sₜ₋₁ + ηₜ g xᵀ")


def test_a_window_is_told_as_the_obstacle() -> None:
    found = body("learn x -> x over last 3 tokens; minimize l2; by gd(lr = 0.1); every 4 tokens")
    assert has(found, "why: every token writes the last 3 tokens again")
    assert has(found, "without `over last 3 tokens` the chunk algebra applies")


@pytest.mark.parametrize(
    ("memory", "structure", "reason"),
    [
        (
            "learn x -> x; minimize l2; by gd(lr = 0.1); every 1 token",
            "mlp(dim -> 8 -> dim, act = silu)",
            "this is a mlp",
        ),
        ("learn x -> self(x); minimize l2; by gd(lr = 0.1); every 1 token", "linear(dim -> dim)", "own state"),
        ("learn x -> x; minimize l2; by momentum(lr = 0.1); every 1 token", "linear(dim -> dim)", "keeps a momentum"),
        (
            "learn x -> x; minimize huber(1); by gd(lr = 0.1); every 1 token",
            "linear(dim -> dim)",
            "not a known multiple",
        ),
    ],
)
def test_online_memories_without_a_parallel_form_say_why(memory: str, structure: str, reason: str) -> None:
    found = " ".join(body(memory, structure))
    assert "token by token: every gradient needs the state after the token before" in found
    assert reason in found


def test_memories_that_differ_share_one_text_only_where_they_agree() -> None:
    second = "memory o : linear(dim -> dim) { learn x -> x; minimize l2; by gd(lr = 0.2); every 4 tokens };"
    found = body("learn o(x) -> x; minimize l2; by gd(lr = 0.1); every 4 tokens", more=second)
    assert has(found, "k = o(x)")
    assert has(found, "Mₜ = Mₜ₋₁ − 0.2 e kᵀ")
    assert has(found, "Mₜ = Mₜ₋₁ − 0.1 e kᵀ")


def test_periods_that_do_not_divide_share_a_loop() -> None:
    second = "memory o : linear(dim -> dim) { learn x -> x; minimize l2; by gd(lr = 0.2); every 5 tokens };"
    found = body("learn o(x) -> x; minimize l2; by gd(lr = 0.1); every 7 tokens", more=second)
    assert has(found, "multiples of 5 and 7")


def test_each_system_is_explained_once() -> None:
    text = explain(Program.load(ROOT / "examples/hope/hope.nsam").instantiate("hope", {"dim": 16, "layers": 3}))
    heads = [
        line.split("(")[0] for line, rule in zip(text.splitlines(), text.splitlines()[1:], strict=False) if "──" in rule
    ]
    assert heads == ["hope", "hope.repeat", "titans", "cms"]


def test_json_has_the_same_content() -> None:
    unit = Program.load(ROOT / "examples/zoo/zoo.nsam").instantiate("oja", {"dim": 8})
    (found,) = json.loads(explain_json(unit))
    (memory,) = found["memories"]
    parts = {part["label"]: part["lines"] for part in memory["parts"]}
    assert memory["names"] == ["m"]
    assert parts["objective"] == [{"text": "L = −⟨ŷ, v⟩ + ½ ‖Mᵀ v‖²", "equation": "eq. 66–67"}]
    assert found["slow"][0]["numbers"] == 64


def test_the_page_of_equations_is_up_to_date() -> None:
    from nsam.cli.equations import page

    shown = (ROOT / "docs/equations.md").read_text(encoding="utf-8")
    assert shown == page(ROOT / "examples"), "run: python -m nsam.cli.equations examples > docs/equations.md"
