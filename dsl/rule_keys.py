"""What a rule may know of its `key` on the step clock, where the inputs of a layer are all tokens of a step.

A matrix key is the batch of its rows. Of the step's, each row weighing one over the square root of their number, only
the mean outer product E[x xᵀ] is kept: `outer(key, key)` is that matrix, `dot(key, key)` its trace E|x|².
"""

from __future__ import annotations

from collections.abc import Iterator

from nsam.dsl.checked import Apply, Expr, Read, Ref, Rule, RuleLet, RuleMemory, RuleState

ALONE = frozenset({"outer", "dot", "norm"})
"""Functions that need no more of a key than its outer product, where it is their only argument."""


def needs_keys(rule: Rule) -> bool:
    """Whether `rule` needs the inputs of the layers that it moves."""
    return "key" in rule.needs


def beyond_steps(rule: Rule) -> Ref | None:
    """Return the first use of `key` or `err` that a step cannot serve, or None where there is none."""
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
            found = None if value is None else next(_beyond(value, same), None)
            if found is not None:
                return found
    return None


def _beyond(value: Expr, same: set[str]) -> Iterator[Ref]:
    if isinstance(value, Ref) and (value.name in same or value.name == "err"):
        yield value
    elif isinstance(value, Read):
        yield from _beyond(value.argument, same)
    elif isinstance(value, Apply):
        bare = all(isinstance(argument, Ref) and argument.name in same for argument in value.arguments)
        if not (bare and value.function in ALONE):
            for argument in value.arguments:
                yield from _beyond(argument, same)


def step_problem(rule: Rule, use: Ref) -> tuple[str, str]:
    """Return what is wrong with this use of `key` or `err` on the step clock, and a way out."""
    if use.name == "err":
        said = "needs `err`, and a step has only the sum of gradients over its tokens"
    else:
        said = "uses `key` in more than `outer(key, key)` and `dot(key, key)`, and a step knows nothing else of it"
    return (
        f"rule `{rule.name}` {said}",
        "choose a rule of the gradient alone, such as gd, muon or adamw, or one with `key` in `outer(key, key)` and "
        "`dot(key, key)` only, such as dgd",
    )
