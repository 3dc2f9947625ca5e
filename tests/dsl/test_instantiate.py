"""Instantiated units: paths, shapes and expressions of the shipped programs; rules; training levels; sizes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsam.dsl import checked as c
from nsam.dsl.diagnostics import ProgramError
from nsam.dsl.program import Program, standard_rule
from nsam.dsl.sizes import Poly, at_least, divides, equal, quotient

ROOT = Path(__file__).parents[2]
HOPE = ROOT / "examples/hope/hope.nsam"
ZOO = ROOT / "examples/zoo/zoo.nsam"


@pytest.fixture(scope="module")
def hope() -> Program:
    return Program.load(HOPE)


@pytest.fixture(scope="module")
def zoo() -> Program:
    return Program.load(ZOO)


def text(expr: c.Expr | None) -> str:
    """Return an expression in short prefix form."""
    match expr:
        case c.Constant():
            return str(expr.value)
        case c.Ref():
            return expr.name
        case c.State():
            return f"state:{expr.memory}"
        case c.Output():
            return f"{expr.child}.{expr.name}"
        case c.Read():
            return f"{expr.memory}{'.T' if expr.transposed else ''}({text(expr.argument)})"
        case c.Apply():
            options = [f"{name}={value}" for name, value in expr.options]
            return f"{expr.function}({', '.join([*map(text, expr.arguments), *options])})"
    return "-"


def paths(unit: c.Unit) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a unit by its path, with its shape; the body of a repeat as pass 0."""
    found = {
        f"{memory.name}.{name}": shape for memory in unit.memories for name, shape in memory.structure.tensors().items()
    }
    for child in unit.children:
        inner, prefix = (child.unit, child.name) if isinstance(child, c.Call) else (child.body, f"{child.name}.0")
        found |= {f"{prefix}.{name}": shape for name, shape in paths(inner).items()}
    return found


def test_hope_paths_and_shapes(hope: Program) -> None:
    found = paths(hope.instantiate("hope", {"dim": 8, "vocab": 16}))
    assert found["embed.weight"] == (16, 8)
    assert found["repeat.0.titans.mem.w1"] == (4, 8, 2)
    assert found["repeat.0.titans.mem.w2"] == (4, 2, 8)
    assert found["repeat.0.titans.taps_q.weight"] == (8, 4)
    assert found["repeat.0.titans.rate_of.weight"] == (4, 8)
    assert found["repeat.0.cms.level.2.w1"] == (32, 8)
    assert found["repeat.0.n1.weight"] == (8,)
    assert len(found) == 2 + 2 + 3 * 2 + 2 + 3 + 2 + 5 * 2


def test_hope_repeat_carries_h(hope: Program) -> None:
    unit = hope.instantiate("hope", {"dim": 8})
    assert [step.name for step in unit.steps] == ["h", "repeat"]
    repeat = unit.steps[1]
    assert isinstance(repeat, c.Repeat)
    assert (repeat.count, repeat.body.name) == (2, "hope.repeat")
    assert [(name, text(value)) for name, value in repeat.carried] == [("h", "h")]
    assert repeat.captured == ()
    assert [(item.name, item.type.shape) for item in repeat.body.inputs] == [("h", (8,))]
    assert [(b.name, b.source, text(b.value)) for b in repeat.body.bindings] == [
        ("h_2", "h", "add(h, titans.output)"),
        ("h_3", "h", "add(h_2, cms.output)"),
    ]
    assert [(name, text(value)) for name, value in repeat.body.outputs] == [("h", "h_3")]
    assert text(unit.outputs[0][1]) == "embed.T(nf(repeat.h))"
    assert unit.outputs[0][1].type == c.ValueType((256,), "token")


def test_titans(hope: Program) -> None:
    unit = hope.instantiate("titans", {"dim": 8})
    assert [(b.name, text(b.value)) for b in unit.bindings] == [
        ("key", "normalize(k(taps_k(x)), heads=4)"),
        ("value", "normalize(v(taps_v(x)), heads=4)"),
        ("rate", "div(sigmoid(rate_of(eta(x))), 4)"),
        ("keep", "sigmoid(add(10, keep_of(alpha(x))))"),
    ]
    mem = unit.memory("mem")
    assert mem.context is not None
    assert mem.rule is not None
    assert mem.objective is not None
    assert (text(mem.context.key), text(mem.context.value)) == ("key", "self(value)")
    assert text(mem.objective.expression) == "pseudo_huber(sub(self(key), value), delta=1.0)"
    assert [(name, text(value)) for name, value in mem.rule.arguments] == [("lr", "rate"), ("retain", "keep")]
    assert mem.rule.rule.needs == {"key", "grad"}
    assert (mem.frequency and mem.frequency.period, mem.reads, mem.reset.kind) == (16, "boundary", "sequence")
    assert mem.structure == c.Structure("mlp", (8, 32, 8), 4, "silu", residual=True)
    assert unit.memory("k").frequency != mem.frequency
    assert unit.memory("keep_of").initial == c.Initial("learned", 0.02)
    assert text(unit.outputs[0][1]) == "o(mem(normalize(q(taps_q(x)), heads=4)))"


def test_infinite_bound_is_l2(hope: Program) -> None:
    objective = hope.instantiate("titans", {"dim": 8, "bound": float("inf")}).memory("mem").objective
    assert objective is not None
    assert text(objective.expression) == "mul(0.5, sum(pow(sub(self(key), value), 2)))"


def test_cms_is_a_chain_on_the_step_clock(hope: Program) -> None:
    unit = hope.instantiate("cms", {"dim": 8, "periods": [1, 5]})
    assert text(unit.outputs[0][1]) == "level.1(level.0(x))"
    frequencies = [memory.frequency for memory in unit.memories]
    assert [(f.period, f.unit, f.summed) for f in frequencies if f] == [(1, "step", True), (5, "step", True)]
    assert all(memory.objective == c.Objective("task", None, memory.objective.span) for memory in unit.memories)


EXPECTED = {
    "linear_attention": ("m(q(x))", "neg(dot(self(key), value))"),
    "oja": ("m(q(x))", "add(neg(dot(self(key), value)), mul(0.5, sum(pow(self.T(value), 2))))"),
    "miras_lp": ("m(q(x))", "lp(sub(self(key), value), p=3.0)"),
    "atlas": ("m(q(x))", "mul(0.5, sum(pow(sub(self(key), value), 2)))"),
    "detached": ("m(q(x))", "mul(0.5, sum(pow(sub(self(key), value), 2)))"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_zoo_objectives(zoo: Program, name: str) -> None:
    unit = zoo.instantiate(name, {"dim": 8})
    output, objective = EXPECTED[name]
    found = unit.memory("m").objective
    assert found is not None
    assert (text(unit.outputs[0][1]), text(found.expression)) == (output, objective)


def test_every_zoo_system_returns_a_vector_a_token(zoo: Program) -> None:
    assert len(zoo.systems) == 18
    for name in zoo.systems:
        unit = zoo.instantiate(name, {"dim": 8})
        assert unit.outputs[0][1].type == c.ValueType((8,), "token"), name


def test_zoo_particulars(zoo: Program) -> None:
    gated = zoo.instantiate("gated_deltanet", {"dim": 8})
    assert [step.name for step in gated.steps] == ["a", "b"]
    rule = gated.memory("m").rule
    assert rule is not None
    assert [(n, text(v)) for n, v in rule.arguments] == [("lr", "b"), ("retain", "a"), ("erase", "mul(a, b)")]
    window = zoo.instantiate("atlas", {"dim": 8}).memory("m").context
    assert window is not None
    assert window.window == 8
    nested = zoo.instantiate("nested_cms", {"dim": 8})
    assert nested.memory("fast").initial == c.Initial("memory", memory="slow")
    assert nested.memory("fast").reset == c.Reset("every", 64)
    assert text(nested.outputs[0][1]) == "fast(slow(x))"
    hyper = zoo.instantiate("hyper", {"dim": 8})
    initial = hyper.memory("fast").initial
    assert (initial.kind, text(initial.expression)) == ("expression", "writer(c)")
    assert [(t.source, t.target, t.kind) for t in hyper.transfers] == [("writer", "fast", "generate")]
    detached = zoo.instantiate("detached", {"dim": 8})
    assert [(t.source, t.target, t.kind) for t in detached.transfers] == [("k", "m", "direct"), ("v", "m", "direct")]
    attention = zoo.instantiate("transformer_block", {"dim": 8}).memory("attn")
    assert attention.context is not None
    assert (text(attention.context.key), attention.reads) == ("rope(k(n1(x)), heads=4)", "running")


def test_mix_binds_its_weights_once(zoo: Program) -> None:
    unit = zoo.instantiate("independent_cms", {"dim": 8})
    assert [(b.name, text(b.value)) for b in unit.bindings] == [("weights", "softmax(state:weight)")]
    parts = [f"mul(index(weights, i={i}), level.{i}(x))" for i in range(3)]
    assert text(unit.outputs[0][1]) == f"add(add({parts[0]}, {parts[1]}), {parts[2]})"
    assert unit.memory("weight").structure.sizes == (3,)


def test_second_use_of_a_system_has_its_own_name() -> None:
    program = Program.loads(
        "nsam 1\nsystem a(dim: int) {\n input x: [dim]\n memory m : linear(dim -> dim)\n output m(x)\n}\n"
        "system b(dim: int) {\n input x: [dim]\n let z = a(y, dim)\n let y = a(x, dim)\n let h = z\n"
        " repeat 2 {\n h = a(h, dim = dim)\n }\n repeat 3 {\n h = h + y\n }\n output h\n}\n"
    )
    unit = program.instantiate("b", {"dim": 4})
    assert [step.name for step in unit.steps] == ["a_2", "y", "a", "z", "h", "repeat", "repeat_2"]
    second = unit.steps[-1]
    assert isinstance(second, c.Repeat)
    assert [(name, text(value)) for name, value in second.carried] == [("h", "repeat.h")]
    assert [(name, text(value)) for name, value in second.captured] == [("y", "y")]
    assert text(unit.outputs[0][1]) == "repeat_2.h"
    first, again = (step for step in unit.children if isinstance(step, c.Call))
    assert first.unit is again.unit


def test_carried_constant_becomes_a_token_value() -> None:
    program = Program.loads(
        "nsam 1\nsystem b(dim: int) {\n input x: [dim]\n memory v : vector(dim)\n let h = v\n"
        " repeat 2 {\n h = h + x\n }\n output h\n}\n"
    )
    unit = program.instantiate("b", {"dim": 4})
    repeat = unit.children[0]
    assert isinstance(repeat, c.Repeat)
    assert [item.type.per for item in repeat.body.inputs] == ["token", "token"]


def test_symbolic_unit_has_open_sizes_and_defaults(hope: Program) -> None:
    unit = hope.symbolic("titans")
    assert str(unit.memory("q").structure.sizes) == "(dim, dim)"
    assert unit.memory("mem").frequency is not None
    assert unit.memory("mem").frequency.period == 16


# --- rules and training --------------------------------------------------------------------------


def test_standard_rule_folds_what_must_be_known() -> None:
    use = standard_rule("m3", {"lr": 0.004, "period": 3})
    slow = next(s for s in use.rule.statements if isinstance(s, c.RuleMemory) and s.name == "slow")
    assert (slow.period, slow.summed, slow.reads, slow.structure.kind) == (3, True, "boundary", "like")
    assert text(slow.objective.expression) == "neg(dot(self(1), value))"
    assert dict(use.arguments)["lr"].value == 0.004
    assert dict(use.arguments)["beta1"].value == 0.95
    let = next(s for s in use.rule.statements if isinstance(s, c.RuleLet))
    assert text(let.value).startswith(
        "div(add(orthogonalize(state:fast, iterations=5), mul(mix, orthogonalize(state:slow"
    )
    assert use.rule.needs == {"grad"}


def test_every_standard_rule_can_be_had() -> None:
    program = Program.load(ROOT / "dsl/std/rules.nsam")
    for name in program.rules:
        use = standard_rule(name, {"lr": 0.1})
        assert tuple(key for key, _ in use.arguments) == use.rule.parameters


def test_rule_types_tell_numbers_from_matrices() -> None:
    rule = standard_rule("safe_dgd", {"lr": 0.1}).rule
    step, update = rule.statements
    assert isinstance(step, c.RuleLet)
    assert isinstance(update, c.RuleUpdate)
    assert step.value.type.shape == ()
    assert len(update.value.type.shape) == 2
    assert text(update.value) == (
        "sub(matmul(self, sub(mul(retain, identity()), mul(step, outer(key, key)))), mul(step, grad))"
    )


def test_delta_momentum_learns_keys() -> None:
    trace = standard_rule("delta_momentum", {"lr": 0.1}).rule.statements[0]
    assert isinstance(trace, c.RuleMemory)
    assert text(trace.context.key) == "grad"
    assert text(trace.objective.expression) == "mul(0.5, sum(pow(sub(self(key), value), 2)))"
    assert [(name, text(value)) for name, value in trace.rule.arguments] == [("lr", "lr"), ("retain", "beta")]


def test_train(hope: Program) -> None:
    train = hope.train()
    assert (train.name, train.every, train.steps, train.data) == (
        "hope_bytes",
        1,
        150,
        ("text", {"context": 512, "batch": 8}),
    )
    assert text(train.objective) == "cross_entropy(model.output, next(tokens))"
    assert [(use.rule.name, targets) for use, targets in train.rules] == [("m3", "matrices"), ("adamw", "others")]
    assert train.model.parameters["dim"] == 128


def test_train_overrides(hope: Program) -> None:
    train = hope.train("hope_bytes", {"steps": 7, "dim": 64, "m3.lr": 0.1, "batch": 2, "data.context": 32})
    assert (train.steps, train.model.parameters["dim"]) == (7, 64)
    assert train.data == ("text", {"context": 32, "batch": 2})
    assert dict(train.rules[0][0].arguments)["lr"].value == 0.1
    assert dict(train.rules[1][0].arguments)["lr"].value == 2e-3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"lr": 0.1}, "write one of `m3.lr`, `adamw.lr`"),
        ({"stps": 1}, "did you mean `steps`?"),
        ({"batch": 2.6}, "for instance `data.batch=3`"),
        ({"foo": 3}, "there is: steps, every, vocab, dim, layers, context, batch, m3.lr, adamw.lr"),
        ({"steps": 0}, ""),
        ({"dim": 0.5}, "for instance `dim=64`"),
        ({"batch": "many"}, "for instance `data.batch=64`"),
    ],
)
def test_wrong_overrides(hope: Program, overrides: dict[str, object], said: str) -> None:
    with pytest.raises(ProgramError) as caught:
        hope.train(None, overrides)
    (found,) = caught.value.diagnostics
    assert found.code == "N0250"
    assert said in (found.help or "")


# --- scale ---------------------------------------------------------------------------------------


def test_depth_costs_nothing(hope: Program) -> None:
    started = time.process_time()
    unit = hope.instantiate("hope", {"dim": 8, "layers": 48})
    assert time.process_time() - started < 0.2
    assert unit.children[0].count == 48


@pytest.mark.parametrize("parameters", [{"dim": 10**12}, {"layers": 10**9}, {"vocab": 2**31 + 1}])
def test_absurd_parameters_fail_fast(hope: Program, parameters: dict[str, object]) -> None:
    started = time.process_time()
    with pytest.raises(ProgramError):
        hope.instantiate("hope", parameters)
    assert time.process_time() - started < 0.5


# --- sizes ---------------------------------------------------------------------------------------

A, B = Poly.variable("a"), Poly.variable("b")
small = st.integers(-3, 3)


@given(small, small, small, small, st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_polynomials_calculate(p: int, q: int, r: int, s: int, a: int, b: int) -> None:
    def at(size: c.Size) -> int:
        if isinstance(size, int):
            return size
        values = {"a": a, "b": b}
        total = 0
        for monomial, coefficient in size.terms:
            for (name, _), power in monomial:
                coefficient *= values[name] ** power
            total += coefficient
        return total

    left, right = p * A + q * B + r, A * B - s * A
    assert at(left + right) == at(left) + at(right)
    assert at(left - right) == at(left) - at(right)
    assert at(left * right) == at(left) * at(right)
    assert (left + right) - right == left
    exact = quotient(left * A, A)
    assert exact == left
    decided = equal(left, right)
    assert decided is None or decided == (at(left) == at(right))
    assert at_least(left, 1) in (None, at(left) >= 1)


def test_a_reset_of_what_never_moves_cuts_no_period_of_its_rule() -> None:
    program = Program.loads(
        "nsam 1\nuse std.rules (m3)\nsystem s(dim: int) {\n  input x: [dim]\n  memory m : linear(dim -> dim) {\n"
        "    learn x -> x; minimize l2; by m3(lr = 0.1); every inf tokens summed; reset every 6 tokens\n  }\n"
        "  output m(x)\n}\n"
    )
    frequency = program.instantiate("s", {"dim": 4}).memory("m").frequency
    assert frequency is not None
    assert frequency.period == float("inf")


def test_undecided_questions() -> None:
    assert equal(A, B) is None
    assert equal(2 * A, A) is False
    assert divides(4, 8 * A) is True
    assert divides(4, A) is None
    assert divides(B, A * B + B) is True
    assert str(4 * A - B) in ("4*a - b", "-b + 4*a")
    assert (A + B) // B != A
    assert (A * B) // B == A
    assert A - A == 0
    assert isinstance(A * 0, int)
