"""Passes over rule plans: dead assignments, temporaries used once, and work kept with slow states."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from nsam.compiler.rule_algebra import Algebra, call, constant, functions, names, ref, substitute
from nsam.compiler.rule_plan import COUNT, GRAM, INPUTS, Assign, PlanState, RulePlan
from nsam.dsl.checked import Apply, Expr, Ref

EXPENSIVE = frozenset({"orthogonalize", "matmul"})


def clean(plan: RulePlan) -> RulePlan:
    """Propagate copies, inline temporaries of one use, drop what nothing reads."""
    plan = _copies(plan)
    plan = _inlined(plan)
    return _used(plan)


def straighten(plan: RulePlan) -> RulePlan:
    """Clean up one update's assignments; states, inputs and parameters stay those of the whole rule."""
    plan = _inlined(_copies(plan))
    return replace(plan, body=_live(plan, {last for _, last in plan.results}))


def _renamed(plan: RulePlan, found: dict[str, Expr]) -> RulePlan:
    """Replace names by expressions in every value; names in `otherwise` and results only by names."""

    def value(expr: Expr) -> Expr:
        if not any(name in found for name in names(expr)):
            return expr
        return plan.algebra.replaced(expr, lambda e: found.get(e.name) if isinstance(e, Ref) else None)

    def name(old: str) -> str:
        new = found.get(old)
        return new.name if isinstance(new, Ref) else old

    body = tuple(
        replace(a, value=value(a.value), otherwise=None if a.otherwise is None else name(a.otherwise))
        for a in plan.body
        if a.target not in found
    )
    return replace(plan, body=body, results=tuple((state, name(last)) for state, last in plan.results))


def _copies(plan: RulePlan) -> RulePlan:
    found: dict[str, Expr] = {}
    for a in plan.body:
        if a.otherwise is None and isinstance(a.value, Ref):
            found[a.target] = found.get(a.value.name, a.value)
    return _renamed(plan, found) if found else plan


def _inlined(plan: RulePlan) -> RulePlan:
    """Inline the compiler's own temporaries (their names have a dot) where they are used once, or are cheap scalars."""
    uses = Counter(name for a in plan.body for name in names(a.value))
    kept = {last for _, last in plan.results} | {a.otherwise for a in plan.body}
    found: dict[str, Expr] = {}
    for a in plan.body:
        temporary = "." in a.target and not a.target.endswith("'")
        if (
            temporary
            and a.otherwise is None
            and a.target not in kept
            and (uses[a.target] <= 1 or plan.algebra.kind(a.value) == "number")
        ):
            found[a.target] = plan.algebra.replaced(
                a.value, lambda e: found.get(e.name) if isinstance(e, Ref) else None
            )
    return _renamed(plan, found) if found else plan


def _used(plan: RulePlan) -> RulePlan:
    """Drop assignments, states, inputs and parameters that do not reach a result."""
    plan = replace(plan, body=_live(plan, {last for _, last in plan.results}))
    while True:
        dead = _dead_states(plan)
        if not dead:
            break
        states = tuple(s for s in plan.states if s.name not in dead)
        results = tuple((state, last) for state, last in plan.results if state not in dead)
        plan = replace(plan, states=states, results=results)
        plan = replace(plan, body=_live(plan, {last for _, last in results}))
    used = {name for a in plan.body for name in names(a.value)} | {last for _, last in plan.results}
    initial = {name for s in plan.states for name in names(s.initial)}
    parameters = tuple(name for name in plan.parameters if name in used | initial)
    inputs = frozenset(name for name in (*INPUTS, GRAM) if name in used)
    return replace(plan, parameters=parameters, inputs=inputs, needs_count=COUNT in used)


def _live(plan: RulePlan, wanted: set[str]) -> tuple[Assign, ...]:
    kept: list[Assign] = []
    for a in reversed(_ordered(plan)):
        if a.target in wanted:
            kept.append(a)
            wanted |= set(names(a.value)) | ({a.otherwise} if a.otherwise else set())
    return tuple(reversed(kept))


def _ordered(plan: RulePlan) -> tuple[Assign, ...]:
    """Order the assignments by their needs, staying at one stride as long as possible (few, long branches)."""
    waiting = list(plan.body)
    targets = {a.target for a in waiting}
    done: list[Assign] = []
    known: set[str] = set()
    stride = 1
    while waiting:
        ready = [a for a in waiting if all(n in known or n not in targets for n in _needs(a))]
        assert ready, f"internal error: the plan of rule {plan.name} has a cycle; please report it"
        chosen = next((a for a in ready if a.stride == stride), ready[0])
        stride = chosen.stride
        waiting.remove(chosen)
        known.add(chosen.target)
        done.append(chosen)
    return tuple(done)


def _needs(a: Assign) -> set[str]:
    return set(names(a.value)) | ({a.otherwise} if a.otherwise else set())


def _dead_states(plan: RulePlan) -> set[str]:
    """States that only their own next value reads."""
    dead: set[str] = set()
    for s in plan.states:
        others = {value for state, value in plan.results if state != s.name}
        body = _live(plan, set(others))
        read = {name for a in body for name in _needs(a)} | others
        needed = any(s.name in names(t.initial) for t in plan.states)
        if s.name not in read and not needed:
            dead.add(s.name)
    return dead


def cache_slow(plan: RulePlan) -> RulePlan:
    """Keep expensive work that depends on one slow state alone as a state of its own, redone when that state moves."""
    slow = _slow_versions(plan)
    cached: dict[tuple[str, Expr], str] = {}
    algebra = plan.algebra

    def find(expr: Expr) -> Expr | None:
        wide = set(names(expr))
        if len(wide) != 1 or not isinstance(expr, Apply) or not EXPENSIVE & set(functions(expr)):
            return None
        (name,) = wide
        if name not in slow:
            return None
        state, new = slow[name]
        key = (state, _rename(expr, name, state, algebra))
        label = f"{state}.{expr.function}"
        taken = sum(other.startswith(label) for other in cached.values())
        cache = cached.setdefault(key, f"{label}{taken + 1}" if taken else label)
        return ref(f"{cache}'" if new else cache)

    body = [a if a.stride > 1 else replace(a, value=substitute(a.value, find, call)) for a in plan.body]
    states, results = list(plan.states), list(plan.results)
    strides = {a.target: a.stride for a in plan.body}
    last = dict(plan.results)
    for (state, expr), cache in cached.items():
        states.append(PlanState(cache, expr, derived=True))
        value = _rename(expr, state, last[state], algebra)
        body.append(Assign(f"{cache}'", value, strides[last[state]], cache))
        results.append((cache, f"{cache}'"))
    return replace(plan, body=tuple(body), states=tuple(states), results=tuple(results))


def _slow_versions(plan: RulePlan) -> dict[str, tuple[str, bool]]:
    """Return the names that hold a state with a period above 1: name to (state, whether it is the new value)."""
    by_target = {a.target: a for a in plan.body}
    found: dict[str, tuple[str, bool]] = {}
    for state, last in plan.results:
        a = by_target.get(last)
        if state != "self" and a is not None and a.stride > 1 and a.otherwise == state:
            found[state] = (state, False)
            found[last] = (state, True)
    return found


def _rename(expr: Expr, old: str, new: str, algebra: Algebra) -> Expr:
    return substitute(expr, lambda e: ref(new) if e == ref(old) else None, call)


def batched(plan: RulePlan) -> list[Assign | tuple[Assign, ...]]:
    """Order a plan without conditions so that independent orthogonalisations meet in one tuple, done in one call.

    The plan must come from `RulePlan.at`. Every orthogonalisation becomes an assignment of its own.
    """
    waiting = _separated(plan)
    targets = {a.target for a in waiting}
    known: set[str] = set()
    done: list[Assign | tuple[Assign, ...]] = []
    while waiting:
        ready = [a for a in waiting if all(n in known or n not in targets for n in names(a.value))]
        plain = [a for a in ready if not _is_orthogonalize(a.value)]
        group = tuple(plain[:1]) or tuple(a for a in ready if _iterations(a) == _iterations(ready[0]))
        for a in group:
            waiting.remove(a)
            known.add(a.target)
        done.append(group[0] if len(group) == 1 else group)
    return done


def _is_orthogonalize(expr: Expr) -> bool:
    return isinstance(expr, Apply) and expr.function == "orthogonalize"


def _iterations(a: Assign) -> Expr:
    assert isinstance(a.value, Apply)
    return a.value.arguments[1] if len(a.value.arguments) > 1 else constant(5)


def _separated(plan: RulePlan) -> list[Assign]:
    made: list[Assign] = []
    seen: dict[Expr, str] = {}

    def find(expr: Expr, top: str | None = None) -> Expr | None:
        if not _is_orthogonalize(expr):
            return None
        assert isinstance(expr, Apply)
        inner = call("orthogonalize", *(substitute(argument, find, call) for argument in expr.arguments))
        if inner not in seen:
            seen[inner] = top or f"orthogonal{len(seen) + 1 if seen else ''}."
            made.append(Assign(seen[inner], inner))
        return ref(seen[inner])

    for a in plan.body:
        if _is_orthogonalize(a.value):
            value = find(a.value, a.target)
            if value != ref(a.target):
                made.append(Assign(a.target, value or a.value))
        else:
            made.append(Assign(a.target, substitute(a.value, find, call)))
    return made
