"""Lowered rules: derived inner gradients against automatic differentiation, and the shape of the code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nsam.backends.torch.rule_source import emit_step, load
from nsam.compiler.rule_algebra import Algebra, call, constant, functions, ref
from nsam.compiler.rule_derive import READ, READ_TRANSPOSED, NotDifferentiable, inner_gradient
from nsam.compiler.rule_plan import Assign, PlanState, RulePlan, number
from nsam.dsl.checked import Apply

KEY, VALUE, STATE = ref("grad"), ref("value"), ref("T")
OUTPUT = call(READ, KEY)
ERROR = call("sub", OUTPUT, VALUE)


def square(x: Any) -> Any:
    return call("pow", x, constant(2))


def half_square(x: Any) -> Any:
    return call("mul", constant(0.5), call("sum", square(x)))


def power(p: float) -> Any:
    return call("div", call("sum", call("pow", call("abs", ERROR), constant(p))), constant(p))


def pseudo_huber(delta: float) -> Any:
    inside = call("div", call("sum", square(ERROR)), constant(delta**2))
    root = call("sqrt", call("add", constant(1), inside))
    return call("mul", constant(delta**2), call("sub", root, constant(1)))


def huber(delta: float) -> Any:
    """Half the clipped error squared, plus delta times what was clipped off."""
    size = call("abs", ERROR)
    inner = call("min", size, constant(delta))
    outer = call("mul", constant(delta), call("sub", size, inner))
    return call("sum", call("add", call("mul", constant(0.5), square(inner)), outer))


OJA = call(
    "add",
    call("neg", call("dot", OUTPUT, VALUE)),
    call("mul", constant(0.5), call("sum", square(call(READ_TRANSPOSED, VALUE)))),
)
OBJECTIVES = {
    "dot": call("neg", call("dot", OUTPUT, VALUE)),
    "l2": half_square(ERROR),
    "lp(3)": power(3),
    "lp(1.5)": power(1.5),
    "huber": huber(0.5),
    "pseudo_huber": pseudo_huber(0.7),
    "oja": OJA,
    "norm": call("norm", ERROR),
    "mean": call("mean", call("exp", call("mul", constant(0.3), OUTPUT))),
    "max": call("sum", call("max", OUTPUT, VALUE)),
    "clip": call("sum", square(call("clip", OUTPUT, constant(-1.5), constant(1.5)))),
    "quotient": call("div", call("dot", OUTPUT, VALUE), call("add", constant(2), call("sum", square(OUTPUT)))),
    "twice": half_square(call(READ_TRANSPOSED, OUTPUT)),
    "state": call("add", call("dot", OUTPUT, VALUE), half_square(STATE)),
    "outer": half_square(call("matmul", OUTPUT, call("transpose", VALUE))),
    **{
        name: call("dot", call(name, OUTPUT), VALUE)
        for name in ("tanh", "sigmoid", "silu", "gelu", "relu", "softplus", "sin", "cos")
    },
    "log": call("sum", call("log", call("add", constant(1), square(OUTPUT)))),
}


def torch_value(expr: Any, given: Any) -> Any:
    """Evaluate an objective in torch, reads of T included; independent of the emitted code."""
    if not isinstance(expr, Apply):
        return given[expr.name] if hasattr(expr, "name") else torch.tensor(float(expr.value), dtype=torch.float64)
    a = [torch_value(argument, given) for argument in expr.arguments]
    meanings = {
        READ: lambda x: x @ given["T"].mT,
        READ_TRANSPOSED: lambda x: x @ given["T"],
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "div": torch.div,
        "neg": torch.neg,
        "pow": torch.pow,
        "max": torch.maximum,
        "min": torch.minimum,
        "dot": lambda x, y: (x * y).sum(),
        "matmul": torch.matmul,
        "transpose": lambda x: x.mT,
        "clip": torch.clamp,
        "norm": torch.linalg.norm,
    }
    meaning = meanings.get(expr.function) or getattr(torch, expr.function, None)
    return (meaning or getattr(torch.nn.functional, expr.function))(*a)


def evaluate(expr: Any, **given: Any) -> Any:
    """Evaluate a derived expression through the emitted code."""
    kinds = {}
    states = tuple(name for name in given if name != "grad")
    plan = RulePlan(
        "derived",
        (),
        tuple(PlanState(name, constant(0)) for name in states),
        (Assign("self'", expr),),
        (("self", "self'"), *((name, name) for name in states)),
        frozenset({"grad"}),
        kinds,
    )
    step = load(emit_step(plan), "step")
    return step(given["T"], tuple(given[name] for name in states), given["grad"], None, None, count=1)[0]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("rows", [1, 3])
def test_derived_gradient_is_autograds(name: str, rows: int) -> None:
    generator = torch.Generator().manual_seed(8)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    given = {"T": draw(5, 4).requires_grad_(), "grad": draw(rows, 4), "value": draw(rows, 5)}
    (expected,) = torch.autograd.grad(torch_value(OBJECTIVES[name], given), given["T"])
    derived = inner_gradient(OBJECTIVES[name], "T", KEY, Algebra())
    found = evaluate(derived.state, **{k: v.detach() for k, v in given.items()})
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert expected.abs().max() > 0


def test_error_at_the_output() -> None:
    derived = inner_gradient(OBJECTIVES["l2"], "T", KEY, Algebra())
    assert derived.output == call("sub", call("matmul", KEY, call("transpose", STATE)), VALUE)


def test_value_less_objectives() -> None:
    """`learn grad`: dot sums the gradients, l2 tracks them (its key is 1)."""
    algebra = Algebra()
    dot = inner_gradient(call("neg", call("dot", STATE, VALUE)), "T", None, algebra)
    assert dot.state == call("neg", VALUE)
    l2 = inner_gradient(half_square(call("sub", STATE, VALUE)), "T", None, algebra)
    assert l2.state == call("sub", STATE, VALUE)


def test_a_function_without_derivative_is_named() -> None:
    with pytest.raises(NotDifferentiable, match="softmax"):
        inner_gradient(call("sum", call("softmax", OUTPUT)), "T", KEY, Algebra())


@pytest.fixture
def algebra() -> Any:
    return Algebra({"a": "scalar", "b": "scalar"})


def test_no_product_with_the_identity(algebra: Algebra) -> None:
    size = call("cols", ref("self"))
    decay = call(
        "sub", call("mul", ref("a"), call("identity", size, size)), call("mul", ref("b"), call("outer", KEY, KEY))
    )
    found = algebra.simplify(call("matmul", ref("self"), decay))
    assert "identity" not in set(functions(found))
    read = call("matmul", ref("self"), call("transpose", KEY))
    assert found == call("sub", call("mul", ref("a"), ref("self")), call("mul", ref("b"), call("matmul", read, KEY)))


@pytest.mark.parametrize(
    ("written", "simple"),
    [
        (call("mul", constant(1), ref("x")), ref("x")),
        (call("mul", ref("x"), constant(0)), constant(0)),
        (call("sub", ref("x"), call("mul", ref("a"), call("neg", ref("y")))), None),
        (call("transpose", call("transpose", ref("x"))), ref("x")),
        (call("pow", ref("x"), constant(1)), ref("x")),
        (call("neg", call("sub", ref("x"), ref("y"))), call("sub", ref("y"), ref("x"))),
        (call("mul", constant(2), call("mul", constant(3), ref("x"))), call("mul", constant(6), ref("x"))),
        (call("matmul", constant(0), ref("x")), constant(0)),
    ],
)
def test_simplifications(written: Any, simple: Any, algebra: Algebra) -> None:
    expected = call("add", ref("x"), call("mul", ref("a"), ref("y"))) if simple is None else simple
    assert algebra.simplify(written) == expected


def test_number_folds_constants_only() -> None:
    assert number(call("div", constant(1), constant(4))) == 0.25
    with pytest.raises(ValueError, match="constant"):
        number(ref("x"))
