"""A torch optimizer whose update is a learning rule of the language."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from nsam.backends.torch.optim_batches import Layout, Signature, signature
from nsam.backends.torch.optim_groups import OuterRule, require_whole, rule_for, unnamed
from nsam.backends.torch.optim_keys import StepKeys
from nsam.backends.torch.optim_steps import COUNT, Steps
from nsam.dsl.diagnostics import fail

RULE, EVERY, CLOCK = "nsam.rule", "nsam.every", "nsam.steps"
"""Keys of a parameter group: its rule's name, its period in steps, steps so far. The dot keeps them apart from the
rule's own parameters."""
SUM = "nsam.gradient"
"""Key of a parameter's state: the gradients of the period so far, summed (eq. 71); zeros where none came yet."""
SUMMED = "nsam.summed"
"""Key of a parameter's state: how many gradients are in the sum, an int. A state without it was saved by a version that
kept a sum only where there was one."""
KEYS = "nsam.keys"
"""Key of a parameter's state: the same of E[x xᵀ], x the inputs of its layer, for rules that use `key`; the rows of all
tokens of the period where a rule needs each token's."""


@dataclass
class _Batch:
    """Parameters of one group that move together, and their states as one batch each."""

    parameters: tuple[Tensor, ...]
    layout: Layout
    states: tuple[Tensor, ...]
    parts: list[list[Tensor]]
    """Of each state, each parameter's part as `optimizer.state` has it."""


class RuleOptimizer(torch.optim.Optimizer):
    """An optimizer made of learning rules.

    Each parameter group has one rule; the rule's parameters are entries of the group (`group["lr"]`) and are read at
    every step. A group with a period p (`group["nsam.every"]`) sums its gradients and moves at every p-th step
    (eq. 71); with period inf it never moves. `state[p]` holds the rule's states and memories by their names, shaped
    like p. `keys` tells of the inputs of layers, for rules that use them; `products` is the precision of the matrix
    products that orthogonalise, where it is not that of the weights.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        rules: Sequence[OuterRule],
        *,
        compiled: bool = False,
        keys: StepKeys | None = None,
        products: torch.dtype | None = None,
    ) -> None:
        self.rules = tuple(rules)
        self.compiled = compiled
        self.products = products
        self.keys = keys
        self._forget()
        super().__init__(list(groups), {})

    def _forget(self) -> None:
        """Drop what can be made again: emitted functions and batches."""
        self._steps: dict[str, Steps] = {}
        self._batches: dict[Signature, _Batch] = {}

    def __getstate__(self) -> dict[str, Any]:
        own = {"rules": self.rules, "compiled": self.compiled, "keys": self.keys, "products": self.products}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    # --- groups ----------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters: {"params": …}, values for the rule's parameters, and optionally `nsam.rule`, `nsam.every`.

        Without a rule, matrices (two axes or more) and others go to the rules that the optimizer has for them; the
        group is split where these differ.
        """
        given = param_group["params"]
        parameters = [given] if isinstance(given, Tensor) else list(given)
        for parameter in parameters:
            require_whole(parameter)
        if RULE in param_group or not parameters:  # one without parameters: the share of a process of what is sharded
            shared = next((rule for rule in self.rules if rule.role != "named"), self.rules[0])
            rule = self.rule(param_group.get(RULE, shared.label))
            self._add_group(param_group | {"params": parameters}, rule)
            return
        chosen_by: dict[str, list[Any]] = {rule.label: [] for rule in self.rules}
        for parameter in parameters:
            tensor = unnamed(parameter)
            if not isinstance(tensor, Tensor):
                raise TypeError(f"an optimizer moves tensors, found {type(tensor).__name__}")
            chosen_by[rule_for(self.rules, tensor.ndim >= 2).label].append(parameter)
        for rule in self.rules:
            if chosen := chosen_by[rule.label]:
                self._add_group(param_group | {"params": chosen}, rule)

    def _add_group(self, group: dict[str, Any], rule: OuterRule) -> None:
        clock = self.param_groups[0][CLOCK] if self.param_groups else 0
        super().add_param_group({**rule.values, RULE: rule.label, EVERY: 1, CLOCK: clock, **group})

    def rule(self, label: str) -> OuterRule:
        """Return the rule called `label`; ValueError when the optimizer has none."""
        for rule in self.rules:
            if rule.label == label:
                return rule
        raise ValueError(f"this optimizer has no rule {label!r}; it has {', '.join(rule.label for rule in self.rules)}")

    def steps(self, label: str) -> Steps:
        """Return the functions of the rule called `label`."""
        if label not in self._steps:
            self._steps[label] = Steps(self.rule(label).plan, self.compiled, self.products)
        return self._steps[label]

    # --- steps -----------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; `closure`, if given, computes the loss again and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._overflowed():
            return loss
        grams = {} if self.keys is None else self.keys.now()
        for group in self.param_groups:
            group[CLOCK] += 1
            if not math.isinf(group[EVERY]):
                self._step_group(group, grams)
                continue
            for p in group["params"]:
                if p.grad is not None:  # torch.distributed.checkpoint wants a state of whatever has a gradient
                    self.state[p].setdefault(SUMMED, 0)
        if self.keys is not None:
            self.keys.clear()
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler leaves it to `step` to undo the scale: it knows of gradients, not of errors of tokens.

        It then sets `grad_scale` and `found_inf` for the time of the step.
        """
        return self.keys is not None and bool(self.keys.by_token)

    def _overflowed(self) -> bool:
        """Undo a GradScaler's scale; whether there are gradients that are not finite, and no step is to be taken."""
        found: Any = getattr(self, "found_inf", None)
        if found is None or self.keys is None:
            return False
        scale: Tensor | None = getattr(self, "grad_scale", None)
        if scale is None:
            raise fail(
                "N0226",
                "`scaler.unscale_(optimizer)` does not reach the errors of tokens that a rule here uses",
                help="leave `unscale_` out, `scaler.step(optimizer)` does it; to clip gradients train without a "
                "GradScaler: bfloat16 needs none",
            )
        if float(found):
            self.keys.clear()
            return True
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            p.grad.div_(scale.to(p.grad.device))
        self.keys.unscale(scale)
        return False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and what was summed up of layers' inputs."""
        super().zero_grad(set_to_none)
        if self.keys is not None:
            self.keys.clear()

    def _step_group(self, group: dict[str, Any], grams: Mapping[Tensor, Tensor]) -> None:
        found = self._gradients(group)
        steps = self.steps(group[RULE])
        keys = self._keys(group, self._grams(found, grams), rows=steps.by_token) if steps.keyed else {}
        scalars = steps.scalars(group)
        gradients = found if group[EVERY] == 1 else self._summed(group, found, steps, scalars)
        parts: dict[tuple[Signature, int], list[Tensor]] = {}
        for p in gradients:
            count = self.state[p].get(COUNT, 0) + 1
            kind = signature(p, steps.elementwise)  # rows of tokens are too many to be copied into one batch
            parts.setdefault(((*kind, id(p)) if steps.by_token else kind, count), []).append(p)
        for (kind, count), parameters in parts.items():
            key = (*kind, id(parameters[0]))
            batch = self._batch(key, tuple(parameters), steps, scalars, count)
            given = [gradients[p] for p in parameters], [keys[p] for p in parameters if p in keys]
            self._step_batch(batch, *given, steps, scalars, count)
            for p in parameters if group[EVERY] > 1 else ():
                self.state[p] |= {SUM: torch.zeros_like(gradients.pop(p)), SUMMED: 0}

    def _gradients(self, group: dict[str, Any]) -> dict[Tensor, Tensor]:
        """Return the gradients that this step brought; what has no entries does not move."""
        found = {p: p.grad for p in group["params"] if p.grad is not None and p.numel()}
        if any(grad.is_sparse for grad in found.values()):
            raise RuntimeError("learning rules do not take sparse gradients")
        if any(p.is_complex() for p in found):
            raise RuntimeError("learning rules do not take complex parameters: give them torch.view_as_real(…) of them")
        return found

    def _grams(self, gradients: Iterable[Tensor], grams: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Return what this step brought of the inputs of the layers whose weights have gradients."""
        for p in gradients:
            if p not in grams:
                raise RuntimeError("no inputs of layers are known here") if self.keys is None else self.keys.missing(p)
        return {p: grams[p] for p in gradients}

    def _summed(
        self, group: dict[str, Any], found: dict[Tensor, Tensor], steps: Steps, scalars: Mapping[str, Any]
    ) -> dict[Tensor, Tensor]:
        """Add the gradients to the sums of their period; return the sums to apply now, none between boundaries.

        A parameter has all of its states from its first gradient on, and the sum whatever the phase: what saves states
        by a pattern of them (torch.distributed.checkpoint) makes that by one step.
        """
        for p, value in found.items():
            state = self.state[p]
            if COUNT not in state:
                self._start(p, steps, scalars)
            before = state.get(SUMMED, int(SUM in state))
            state |= {SUM: state[SUM] + value if before else value.clone(), SUMMED: before + 1}
        if group[CLOCK] % group[EVERY]:
            return {}
        states = {p: self.state[p] for p in group["params"] if SUM in self.state[p]}
        return {p: state[SUM] for p, state in states.items() if state.get(SUMMED, 1)}

    def _keys(self, group: dict[str, Any], found: dict[Tensor, Tensor], *, rows: bool) -> dict[Tensor, Tensor]:
        """Return what to apply now; between boundaries, add it up (`rows` one after the other) and return nothing."""
        if group[EVERY] == 1:
            return found
        for p, value in found.items():
            state = self.state[p]
            if KEYS not in state:
                state[KEYS] = value.clone()
            else:
                state[KEYS] = torch.cat((state[KEYS], value), -2) if rows else state[KEYS] + value
        if group[CLOCK] % group[EVERY]:
            return {}
        return {p: self.state[p].pop(KEYS) for p in group["params"] if KEYS in self.state[p]}

    def _batch(
        self, key: Signature, parameters: tuple[Tensor, ...], steps: Steps, scalars: Mapping[str, Any], count: int
    ) -> _Batch:
        """Return the batch of these parameters, its states gathered unless they still are."""
        known = self._batches.get(key)
        if known is not None and count > 1 and _same(known.parameters, parameters) and self._kept(known, steps):
            return known
        layout = Layout.of(parameters, steps.elementwise)
        for p in parameters:
            if COUNT not in self.state[p]:
                self._start(p, steps, scalars)
        parts = [[self.state[p][name] for p in parameters] for name in steps.names]
        states = tuple(map(layout.gather, parts))
        moved = set(map(id, parameters))
        self._batches = {
            other: batch for other, batch in self._batches.items() if moved.isdisjoint(map(id, batch.parameters))
        }
        self._batches[key] = _Batch(parameters, layout, states, parts)
        return self._batches[key]

    def _kept(self, batch: _Batch, steps: Steps) -> bool:
        """Whether `optimizer.state` has what was put there: someone may have put something else in its place."""
        return all(
            self.state[p].get(name) is part
            for name, parts in zip(steps.names, batch.parts, strict=True)
            for p, part in zip(batch.parameters, parts, strict=True)
        )

    def _start(self, p: Tensor, steps: Steps, scalars: Mapping[str, Any]) -> None:
        self.state[p].update(self._initial(p, steps, scalars))
        self.state[p][COUNT] = 0

    def _initial(self, p: Tensor, steps: Steps, scalars: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the states of `p` before its first update, by name."""
        alone = Layout.of([p], steps.elementwise)
        values = steps.initial(alone.gather([p]), scalars)
        return {name: alone.scatter(value)[0] for name, value in zip(steps.names, values, strict=True)}

    def _step_batch(
        self,
        batch: _Batch,
        gradients: list[Tensor],
        grams: list[Tensor],
        steps: Steps,
        scalars: Mapping[str, Any],
        count: int,
    ) -> None:
        layout, parameters = batch.layout, batch.parameters
        before = layout.gather(parameters)
        grad = layout.gather(gradients)
        gram = Layout.of(grams, False).gather(grams).to(before.dtype) if grams else None
        after, states = steps(before, batch.states, grad, scalars, count, gram)
        states = tuple(_owned(state, before, grad) for state in states)
        torch._foreach_copy_(list(parameters), layout.scatter(after))
        here = [self.state[p] for p in parameters]
        for i, (name, old, new) in enumerate(zip(steps.names, batch.states, states, strict=True)):
            if new is not old:
                batch.parts[i] = list(layout.scatter(new))
                for state, part in zip(here, batch.parts[i], strict=True):
                    state[name] = part
        for state in here:
            state[COUNT] = count
        batch.states = states

    def state_bytes(self) -> int:
        """Bytes of the states of what moves, also before the first step, and of the sums of unfinished periods."""
        found = 0
        for group in self.param_groups:
            steps = self.steps(group[RULE])
            scalars = steps.scalars(group)
            for p in group["params"]:
                if p.numel() and not math.isinf(group[EVERY]):
                    states = [*self._initial(p, steps, scalars).values(), *([p] if group[EVERY] > 1 else [])]
                    found += sum(x.numel() * x.element_size() for x in states)
        return found

    # --- saving ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state as torch does; no two of its tensors share memory."""
        found = super().state_dict()
        found["state"] = {
            index: {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
            for index, state in found["state"].items()
        }
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state; ValueError when its groups have other rules, or those have other states."""
        # A hook of our own, the last one: those of the user may give a saved state other names first.
        check = self.register_load_state_dict_pre_hook(RuleOptimizer._require_fitting)  # type: ignore[arg-type]
        try:
            super().load_state_dict(state_dict)
        finally:
            check.remove()
        self._forget()

    def _require_fitting(self, state_dict: dict[str, Any]) -> None:
        """Check that a saved state is one of these rules."""
        saved = [group.get(RULE) for group in state_dict["param_groups"]]
        mine = [group[RULE] for group in self.param_groups]
        if saved != mine:
            raise ValueError(f"the saved optimizer has the rules {saved}, this one has {mine}")
        for group, there in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for p, number in zip(group["params"], there["params"], strict=False):  # torch looks at how many they are
                self._require_states(p, group, state_dict["state"].get(number) or {})

    def _require_states(self, p: Tensor, group: dict[str, Any], saved: Mapping[str, Any]) -> None:
        """Check that saved states of `p`, if there are any, are those of its rule."""
        steps = self.steps(group[RULE])
        if COUNT not in saved:
            return
        for name, state in self._initial(p, steps, steps.scalars(group)).items():
            if name not in saved:
                raise ValueError(f"the saved optimizer has no state `{name}` of the rule {group[RULE]}")
            if saved[name].shape != state.shape:
                sizes = f"{list(saved[name].shape)} there and {list(state.shape)} here"
                raise ValueError(f"a state `{name}` of the rule {group[RULE]} is {sizes}")


def _owned(state: Tensor, *lent: Tensor) -> Tensor:
    """Return a state that is not the memory of a parameter or a gradient, which change in place."""
    storage = state.untyped_storage().data_ptr()
    return state.clone() if any(storage == tensor.untyped_storage().data_ptr() for tensor in lent) else state


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))
