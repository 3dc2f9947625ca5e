"""What a rule needs to know of its layer's inputs on the step clock, where they are all tokens of a step.

A matrix key is the batch of its rows. Of the step's, each row weighing one over the square root of their number, most
rules need the mean outer product E[x xᵀ] only: `outer(key, key)` is that matrix, `dot(key, key)` its trace E|x|². A
rule that uses `key` in another way, or `err`, needs those of each token. The use decides, never the rule's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

from nsam.dsl.checked import Apply, Expr, Read, Ref, Rule, RuleLet, RuleMemory, RuleState

ALONE = frozenset({"outer", "dot", "norm"})
"""Functions that need no more of a key than its outer product, where it is their only argument."""

Needs: TypeAlias = Literal["", "sums", "tokens"]
"""Nothing of a layer's inputs, the mean of their outer products, or input and error of each token."""


def needs_keys(rule: Rule) -> bool:
    """Whether `rule` needs to know the inputs of the layers that it moves, or the errors at their outputs."""
    return bool({"key", "err"} & rule.needs)


def step_needs(rule: Rule) -> Needs:
    """What `rule` needs of a layer's inputs on the step clock."""
    if not needs_keys(rule):
        return ""
    return "sums" if by_token(rule) is None else "tokens"


def wanted(rule: Rule) -> str:
    """What a message says that a rule with keys needs."""
    return "`key`, the input of a layer" if "key" in rule.needs else "`err`, the error at the output of a layer"


def by_token(rule: Rule) -> Ref | None:
    """Return the first use of `key` or `err` that asks for each token's, or None where there is none."""
    same = {"key"}
    for statement in rule.statements:
        if isinstance(statement, RuleLet) and isinstance(statement.value, Ref) and statement.value.name in same:
            same.add(statement.name)
            continue
        values: list[Expr | None] = []
        if isinstance(statement, RuleMemory):  # its objective and its rule have a key of their own
            values += [statement.context.key, statement.context.value, statement.initial]
            values += [value for _, value in statement.rule.arguments]
        else:
            values.append(statement.initial if isinstance(statement, RuleState) else statement.value)
        for value in values:
            found = None if value is None else next(_single(value, same), None)
            if found is not None:
                return found
    return None


def _single(value: Expr, same: set[str]) -> Iterator[Ref]:
    if isinstance(value, Ref) and (value.name in same or value.name == "err"):
        yield value
    elif isinstance(value, Read):
        yield from _single(value.argument, same)
    elif isinstance(value, Apply):
        bare = all(isinstance(argument, Ref) and argument.name in same for argument in value.arguments)
        if not (bare and value.function in ALONE):
            for argument in value.arguments:
                yield from _single(argument, same)
