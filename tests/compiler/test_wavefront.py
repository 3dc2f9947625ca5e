"""What is said of repeats where a step is recorded: how their passes may overlap, or why they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nsam.compiler.explain import equations, explain
from nsam.compiler.passes import passes_without
from nsam.compiler.schedule import plan
from nsam.compiler.wavefront import block_tokens, segments_of
from nsam.dsl.checked import Repeat, Unit
from nsam.dsl.program import Program

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RULES = "nsam 1\nuse std.rules (gd, dgd)\n"


def shipped(name: str, system: str, **parameters: Any) -> Unit:
    return Program.load(EXAMPLES / name / f"{name}.nsam").instantiate(system, parameters)


def body_of(text: str) -> Unit:
    return Program.loads(f"{RULES}system s() {{\ninput x: [4]\nlet h = x\n{text}\noutput h\n}}").instantiate("s", {})


def said(unit: Unit) -> str:
    """The line of the explanation, unfolded."""
    text = " ".join(explain(unit).split())
    assert text.count("as one CUDA graph") == 1
    start = text.index("as one CUDA graph")
    return text[start : start + 260]


def test_hope_overlaps() -> None:
    found = said(shipped("hope", "hope", dim=16))
    wanted = "as one CUDA graph: the passes of repeat may overlap, each a segment behind the one before; segments of "
    assert found.startswith(wanted + "multiples of 64 tokens")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("repeat 1 {\nmemory f : linear(4 -> 4)\nh = f(h)\n}", "there is only one"),
        (
            "repeat 2 {\nmemory a : attention(heads = 2) { learn h -> h }\nh = a(h)\n}",
            "`a` is attention, whose state grows with the sequence",
        ),
        (
            "repeat 2 {\nmemory f : linear(4 -> 4) { minimize task; by dgd(lr = 0.1); every 2 steps }\nh = f(h)\n}",
            "the rule of `f.weight` needs the inputs of its layer",
        ),
    ],
)
def test_the_reason_is_said(text: str, why: str) -> None:
    assert said(body_of(text)).startswith(f"as one CUDA graph: the passes of repeat run one after the other: {why}")


def test_a_loss_that_moves_memories_keeps_passes_apart() -> None:
    found = said(shipped("end_to_end", "reader", dim=16))
    assert "run one after the other: the model's own loss moves memories, chunk by chunk through all layers" in found


def test_attention_of_a_called_system_counts() -> None:
    unit = shipped("attention", "hope_attention", dim=16)
    assert "`kept` is attention" in said(unit)


def test_equations_say_nothing_of_it() -> None:
    assert not any("CUDA" in line for line in equations(shipped("hope", "hope", dim=16)))


@pytest.mark.parametrize(
    ("clauses", "without", "tokens"),
    [
        ("by gd(lr = 0.1); every 64 tokens", "", 64),
        ("by gd(lr = 0.1); every 4 tokens", "", 32),  # several blocks are one call
        ("by gd(lr = 0.1); every 4 tokens", "segment", 4),
        ("by gd(lr = 0.1); every 4 tokens; reset every 96 tokens", "segment", 96),
        ("by gd(lr = 0.1); every 6 tokens", "segment", 6),
    ],
)
def test_segments_are_whole_calls(clauses: str, without: str, tokens: int) -> None:
    learn = (
        f"memory k, v, m : linear(4 -> 4)\nmemory f : linear(4 -> 4) {{ learn k(h) -> v(h); minimize l2; {clauses} }}"
    )
    passes = passes_without(without)
    repeat = next(step for step in body_of(f"repeat 2 {{\n{learn}\nh = f(m(h))\n}}").children)
    assert isinstance(repeat, Repeat)
    body = plan(repeat.body, passes)
    assert block_tokens(body) == tokens
    found = segments_of(body, lambda unit: plan(unit, passes), end_to_end=False)
    assert (found.tokens, found.timeless, found.undivided) == (tokens, (), None)
