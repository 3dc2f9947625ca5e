"""Values that are used twice and twice again: what asks about them asks each once, not each path to it."""

from __future__ import annotations

from nsam.compiler.cost import cost
from nsam.compiler.explain import explain
from nsam.compiler.expressions import Builder, Node, steady
from nsam.compiler.signs import below_one, positive
from nsam.dsl.program import Program

DOUBLINGS = 60


def doubled(builder: Builder, node: Node) -> Node:
    for _ in range(DOUBLINGS):
        node = builder.apply("mul", node, node)
    return node


def test_signs_of_gates() -> None:
    b = Builder()
    x = b.make("input", (), (1,), "flat", name="x")
    gate = b.apply("sigmoid", x)
    assert positive(doubled(b, gate))
    assert below_one(doubled(b, gate))
    assert positive(b.apply("sub", b.number(1), doubled(b, gate)))
    assert positive(doubled(b, b.apply("exp", x)))
    assert not below_one(doubled(b, b.apply("exp", x)))
    assert not positive(doubled(b, x))


def test_values_made_of_states() -> None:
    b = Builder()
    state = b.make("state", (), (3,), "state", memory="v", tensor="weight")
    row = b.make("row", (state,), (3,), "heads")
    x = b.make("input", (), (3,), "heads", name="x")
    assert steady(doubled(b, row))
    assert not steady(b.apply("add", doubled(b, row), x))
    assert not steady(b.number(2))


def test_the_cost_of_residual_memories_behind_each_other() -> None:
    text = """nsam 1
use std.rules (gd)
system s(dim: int = 4, periods: list[int] = [1]) {
  input x: [dim]
  memory l[p in periods] : mlp(dim -> dim -> dim, residual) {
    learn x -> x; minimize l2; by gd(lr = 0.1); every p tokens
  }
  output chain(l, x)
}
"""
    program = Program.loads(text)
    one, two, many = (cost(program.instantiate("s", {"periods": [4] * n}), 8) for n in (1, 2, 24))
    assert many.parameters == 24 * one.parameters
    assert many.flops - one.flops == 23 * (two.flops - one.flops)


def test_names_of_a_rule_that_stand_for_each_other() -> None:
    lets = "".join(f"  let a{i + 1} = a{i} + a{i}\n" for i in range(DOUBLINGS))
    text = f"""nsam 1
rule gd(lr) {{ self <- self - lr * grad }}
rule r(lr) {{
  let a0 = grad
{lets}  memory h : like(self) {{ learn a{DOUBLINGS}; minimize dot; by gd(lr = 1); every 2 updates }}
  self <- self - lr * h
}}
system s(dim: int = 3) {{
  input x: [dim]
  memory m : linear(dim -> dim) {{ learn x -> x; minimize l2; by r(lr = 0.1); every 4 tokens }}
  output m(x)
}}
"""
    assert "eq. 33–34" in explain(Program.loads(text).instantiate("s"))
