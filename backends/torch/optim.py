"""Optimizers from learning rules: which rule and which period each parameter of a model gets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nsam.backends.torch.optim_groups import OuterRule, Role, rule_for
from nsam.backends.torch.optim_keys import StepKeys, require_served, without_module
from nsam.backends.torch.optim_models import Place, told
from nsam.backends.torch.optim_rules import EVERY, RULE, RuleOptimizer
from nsam.compiler.rule_plan import lower_rule, number
from nsam.dsl.checked import RuleUse
from nsam.dsl.diagnostics import ProgramError, fail

Parameters: TypeAlias = "torch.nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]"
PRODUCTS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""Precisions in which matrices can be orthogonalised."""
_OWN_KEYS = frozenset({"params", "param_names", "initial_lr", "compiled", "sharded", "products"})


def optimizer(
    rules: RuleUse | Sequence[tuple[RuleUse, Role]],
    parameters: Parameters,
    *,
    compiled: bool = False,
    products: torch.dtype | None = None,
    every: int = 1,
) -> RuleOptimizer:
    """Return the optimizer that `by …` declares, for the parameters of a model.

    `rules`: one rule for everything, or pairs of a rule and "matrices", "others" or "all". `parameters`: a module,
    tensors, named tensors, or torch's parameter groups. For a compiled module, `module.nsam_matrices` (names) says
    what the matrices are, `module.nsam_periods` (name to steps, inf for frozen) when each parameter moves, and
    `module.nsam_rules` (name to RuleUse) which have a rule of their own, also where it is a part of the module that is
    given, or wrapped in it (DistributedDataParallel, torch.compile), and where a memory of it is given alone; elsewhere
    matrices are the tensors with two axes or more, and all move at every step. A rule that uses `key` or `err` needs a
    module, compiled with `keys`.
    `compiled` sends each rule's step through torch.compile; `products` is the precision of the matrix products that
    orthogonalise, that of the weights unless it is given. With `every` the optimizer is stepped once in so many of the
    steps that `module.nsam_periods` counts. ProgramError when a rule cannot serve here, a parameter would move between
    two steps of the optimizer, or `products` is no precision; TypeError and ValueError, as torch raises them, when
    there are no parameters.
    """
    if products is not None and products not in PRODUCTS:
        names = ", ".join(str(known) for known in PRODUCTS)
        raise fail("N0402", f"products cannot be computed in {products!r}", help=f"one of {names}")
    pairs: Sequence[tuple[RuleUse, Role]] = [(rules, "all")] if isinstance(rules, RuleUse) else rules
    if isinstance(parameters, torch.nn.Module):
        return _for_module(pairs, parameters, compiled, products, every)
    if isinstance(parameters, Tensor):  # its rows would pass for parameters
        raise TypeError(
            "an optimizer moves the tensors of a list or of a module, found one tensor: give it as [tensor]"
        )
    outer = _labelled([outer_rule(use, role) for use, role in pairs])
    for (use, _), rule in zip(pairs, outer, strict=True):
        if rule.keyed:
            raise without_module(rule, use)
    listed = list(parameters)
    if listed and isinstance(listed[0], dict):
        given = [group for group in listed if isinstance(group, dict)]
        return RuleOptimizer(given, outer, compiled=compiled, products=products)
    tensors = [item[1] if isinstance(item, tuple) else item for item in listed]
    groups = [{"params": tensors}] if tensors else []
    return RuleOptimizer(groups, outer, compiled=compiled, products=products)


def outer_rule(use: RuleUse, role: Role = "all") -> OuterRule:
    """Lower one `by` clause for a parameter group; ProgramError when one of its arguments is not a number."""
    plan = lower_rule(use.rule, steps=True)
    taken = sorted(_OWN_KEYS & set(plan.parameters))
    if taken:
        raise fail("N0480", f"a rule used as an optimizer cannot have a parameter called `{taken[0]}`", use.span)
    values: dict[str, float] = {}
    for name, argument in use.arguments:
        if name in plan.parameters:
            try:
                values[name] = number(argument)
            except ValueError:
                raise fail("N0480", f"argument `{name}` of an optimizer is not a number", argument.span) from None
    return OuterRule(use.rule.name, plan, values, role)


def _labelled(rules: Sequence[OuterRule]) -> list[OuterRule]:
    """Give rules of one name different labels: m3, m3_2."""
    seen: Counter[str] = Counter()
    found = []
    for rule in rules:
        seen[rule.label] += 1
        number_ = seen[rule.label]
        found.append(rule if number_ == 1 else replace(rule, label=f"{rule.label}_{number_}"))
    return found


def _for_module(
    pairs: Sequence[tuple[RuleUse, Role]],
    module: torch.nn.Module,
    compiled: bool,
    products: torch.dtype | None,
    every: int,
) -> RuleOptimizer:
    """Group a module's parameters by rule and period, in the order in which they first appear."""
    known = list(told(module))
    special: list[RuleUse] = []
    for one in known:
        if one.rule is not None and one.rule not in special:
            special.append(one.rule)
    shared = [outer_rule(use, role) for use, role in pairs]
    uses = [*(use for use, _ in pairs), *special]
    outer = _labelled([*shared, *(outer_rule(use, "named") for use in special)])
    keyed: dict[Tensor, tuple[Place, ...]] = {}
    by_token: set[Tensor] = set()
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for one in known:
        if one.rule is None:
            rule = rule_for(outer, one.matrix, one.name)
        else:
            rule = outer[len(shared) + special.index(one.rule)]
        period = every if one.period is None else one.period
        if period % every and not math.isinf(period):
            raise _between_moves(one.name, int(period), every)
        key = (rule.label, period if math.isinf(period) else int(period) // every)
        groups.setdefault(key, {"params": [], RULE: key[0], EVERY: key[1]})["params"].append(one.parameter)
        if rule.keyed and not math.isinf(key[1]):
            for place in one.places:
                require_served(rule, uses[outer.index(rule)], *place)
            keyed[one.parameter] = one.places
            by_token |= {one.parameter} if rule.by_token else set()
    keys = StepKeys(keyed, frozenset(by_token)) if keyed else None
    return RuleOptimizer(groups.values(), outer, compiled=compiled, keys=keys, products=products)


def _between_moves(name: str, period: int, every: int) -> ProgramError:
    """Return the refusal of a period that the optimizer's own does not divide."""
    return fail(
        "N0311",
        f"parameter `{name}` moves every {period} step{'s' * (period > 1)}, and its optimizer every {every}",
        help=f"let the one be a multiple of the other: every {-(-period // every) * every} steps",
    )
