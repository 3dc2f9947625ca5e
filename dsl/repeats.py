"""`repeat N { … }`: a unit for its body, the values that it carries on and those that it sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsam.dsl import syntax
from nsam.dsl.checked import Expr, Input, Output, Repeat, Unit
from nsam.dsl.constants import Value
from nsam.dsl.diagnostics import Label
from nsam.dsl.findings import Skip
from nsam.dsl.names import assigned_names, declared_names, free_names
from nsam.dsl.sizes import at_least
from nsam.dsl.spans import Span
from nsam.dsl.types import at_least_per, same_shape, shape_text

if TYPE_CHECKING:
    from nsam.dsl.bodies import Body

MOST_PASSES = 100_000


def build_repeat(body: Body, position: int, node: syntax.Repeat) -> dict[tuple[str, int], Expr]:
    """Add the repeat at `position` to the body's steps; return the new values of the names that it reassigns."""
    count = _count(body, node)
    assigned = assigned_names(node.body)
    carried = {name: _value(body, name, position) for name in assigned if name in body.versions}
    seen = [name for name in free_names(node.body) if name in body.versions and name not in carried]
    captured = {name: _value(body, name, position) for name in seen}
    name = body.calls.names[id(node), ""]
    outputs = [identifier for key, identifier in assigned.items() if key in carried]
    if not outputs and not _explained(body, node):
        body.error(
            "N0247",
            "this repeat changes nothing",
            node.span,
            "no name of the system is reassigned in it",
            help_text="reassign a value declared before it: `h = h + …`",
        )
    unit = _fixed_point(body, node, name, carried, captured, outputs)
    if not outputs:
        raise Skip
    body.current.append(Repeat(name, count, unit, tuple(carried.items()), tuple(captured.items()), node.span))
    types = dict(unit.outputs)
    return {(key, position): Output(types[key].type, node.span, name, key) for key in carried}


def _explained(body: Body, node: syntax.Repeat) -> bool:
    """Whether another finding says why nothing is carried on: a name unknown outside, or declared anew inside."""
    own = declared_names(node.body)
    return any(name not in body.versions for name in assigned_names(node.body)) or any(
        name in body.versions for name in own
    )


def _value(body: Body, name: str, position: int) -> Expr:
    value = body.value(name, position)
    if value is None:
        raise Skip
    return value


def _count(body: Body, node: syntax.Repeat) -> Value:
    count = body.evaluator.integer(node.count, "the number of passes")
    if at_least(count, 1) is False:
        raise body.findings.error("N0211", f"a repeat of {count} passes", node.count.span, "at least 1 is needed")
    if isinstance(count, int) and count > MOST_PASSES:
        raise body.findings.error("N0240", f"{count} passes", node.count.span, f"the most is {MOST_PASSES}")
    return count  # type: ignore[no-any-return]


def _fixed_point(
    body: Body,
    node: syntax.Repeat,
    name: str,
    carried: dict[str, Expr],
    captured: dict[str, Expr],
    outputs: list[syntax.Identifier],
) -> Unit:
    """Return the body's unit, its carried inputs typed so that the outputs of one pass fit the next.

    A carried value that starts constant and becomes one a token is one a token from the start.
    """
    types = {key: value.type for key, value in carried.items()}
    while True:
        inputs = [Input(key, types[key], value.span) for key, value in carried.items()]
        inputs += [Input(key, value.type, value.span) for key, value in captured.items()]
        unit = body.inside_repeat(node, name).unit(inputs, outputs)
        widened = dict(types)
        for identifier, (key, value) in zip(outputs, unit.outputs, strict=True):
            _check_carried(body, identifier, types[key].shape, types[key].vocab, value, carried[key].span)
            widened[key] = at_least_per(types[key], value.type.per)
        if widened == types:
            return unit
        types = widened


def _check_carried(
    body: Body, name: syntax.Identifier, shape: tuple[object, ...], vocab: object, value: Expr, start: Span
) -> None:
    if same_shape(shape, value.type.shape) and vocab == value.type.vocab:
        return
    before = "token" if vocab is not None else f"[{', '.join(map(str, shape))}]"
    raise body.findings.error(
        "N0214",
        f"`{name.id}` comes into the pass as {before} and leaves it as {shape_text(value.type)}",
        value.span,
        f"this is {shape_text(value.type)}",
        secondary=[Label(start, f"`{name.id}` starts as {before}")],
    )
