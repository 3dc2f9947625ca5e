"""Explains what moves between steps: the rules of a training level, and of memories with one of their own there."""

from __future__ import annotations

from collections.abc import Iterator

from nsam.compiler.explain_model import LevelExplanation, Line, Part
from nsam.compiler.explain_rules import Symbols, arguments_of, plan_lines, start_texts
from nsam.compiler.rule_lowering import Lowering
from nsam.compiler.rule_passes import clean
from nsam.dsl import checked as c
from nsam.dsl.rule_keys import step_needs

STEPS = Symbols(state="W")
LAYER = "x: the inputs of the layer; E: the mean over the tokens of a step, added up as gradients are"
TOKENS = (
    "x, g: the input of the layer at a token, and the gradient of its own loss at the output",
    "W and states take the mean over the tokens of a step; means add up as gradients do",
    "kept of each token until the step, for each read of W [out, in]: in + 1 + out numbers",
)
"""What a rule that needs each token's input and error says, and what it costs."""


def explain_level(train: c.Train) -> LevelExplanation:
    """The rules of a training level, each for the parameters that have none of their own."""
    clock = "every step" if train.every == 1 else f"every {train.every} steps, by the sum of their gradients"
    parts = tuple(Part(role, tuple(step_lines(use))) for use, role in train.rules)
    return LevelExplanation(train.name, f"moves {clock}", parts)


def step_lines(use: c.RuleUse) -> Iterator[Line]:
    """A rule between steps as straight-line code, numbers put in; W is one matrix, ∇ its gradient.

    A rule that needs each token's input and error is shown for one token.
    """
    fixed: dict[str, c.Expr] = {name: value for name, value in use.arguments if isinstance(value, c.Constant)}
    needs = step_needs(use.rule)
    plan = clean(Lowering(use.rule, steps=needs != "tokens").lower(fixed))
    yield Line(f"by {use.rule.name}")
    yield from (Line(line) for line in plan_lines(plan, STEPS, arguments_of(use)))
    yield from (Line(f"where {text}") for text in start_texts(plan, STEPS, arguments_of(use)))
    yield from (Line(line) for line in {"": (), "sums": (LAYER,), "tokens": TOKENS}[needs])
