"""Warnings of parameters that never learn agree with the gradients that the reference computes.

`reached` goes by structure alone. For families of small programs each parameter's gradient is computed, in float64, and
is zero exactly where the walk says so: no parameter is forgotten, and there is no false alarm.
"""

import pytest
import torch
from torch import Tensor

from nsam.backends.reference.module import ReferenceModule
from nsam.compiler.checks import check_unit, has_parameter
from nsam.compiler.gradients import reached
from nsam.dsl.checked import Unit
from nsam.dsl.diagnostics import Diagnostic, Report
from nsam.dsl.program import Program

RULES = """
rule signs(lr) { self <- self - lr * sign(grad) }
rule errors(lr) { self <- 0.9 * self - lr * outer(err, sign(key)) }
rule keys(lr) { self <- 0.9 * self - lr * outer(sign(err), key) }
rule counts(lr) { self <- self - lr * sign(grad) * (1 + grad^0) - rows(grad) * lr / 9 }
rule trace(lr) {
  memory slow : like(self) { learn grad; minimize lp(1); by gd(lr = 0.5); every 1 update; reads running }
  self <- self - lr * slow
}
rule weighed(lr, weight) {
  memory slow : like(self) {
    learn grad; minimize weight * sum(self^2) / 2 - dot(self, value); by gd(lr = 0.5); every 1 update; reads running
  }
  self <- self - lr * slow
}
rule looks(lr) {
  memory net : linear(cols(self) -> cols(self)) {
    learn key -> key; minimize l2; by gd(lr = 0.5); every 1 update; init identity
  }
  self <- 0.9 * self - lr * outer(sign(err), net(key))
}
"""
OBJECTIVES = (
    "dot",
    "l2",
    "lp(1)",
    "lp(1.5)",
    "huber(0.7)",
    "pseudo_huber(1)",
    "sum(abs(self(key) - value))",
    "sum((self(key) - value)^1 * sign(self(key)))",
    "dot(self(key), self(key)) + sum(sign(value) * self(key))",
    "sum(max(self(key), value)) + sum(relu(self(key) + value))",
    "sum(clip(self(key), value - 1, value + 1))",
    "norm(self(key) - value)",
    "sum(self(key))",
    "sum(sign(key) * self(sign(key)))",
    "sum(self(key) * value^0) + sum(value^2)",
    "log(sum(exp(self(key))))",
    "sum(self(key) / (1 + value^2))",
    "sum(value / (2 + self(key)^2))",
)
USES = (
    "gd(lr = 0.1)",
    "dgd(lr = 0.1, erase = 0.1)",
    "signs(lr = 0.1)",
    "errors(lr = 0.1)",
    "keys(lr = 0.1)",
    "counts(lr = sigmoid(index(g(x), 0)))",
    "trace(lr = sigmoid(index(g(x), 0)))",
    "weighed(lr = 0.1, weight = sigmoid(index(g(x), 0)))",
    "looks(lr = 0.1)",
)
STRUCTURES = ("linear(4 -> 4)", "mlp(4 -> 4 -> 4, act = relu)", "mlp(4 -> 4 -> 4, act = tanh, gated)")
HEAD = f"nsam 1\nuse std.rules (gd, dgd)\n{RULES}\nsystem s() {{\n  input x: [4]\n"


def unit(body: str) -> Unit:
    return Program.loads(f"{HEAD}{body}\n}}\n").instantiate("s", {})


def without_gradient(checked: Unit) -> set[str]:
    """The memories with a parameter that the output depends on and that gets no gradient; the walk knows them all."""
    found = reached(checked)
    read = found.used & {m.name for m in checked.memories if has_parameter(m)}
    torch.manual_seed(0)
    module = ReferenceModule(checked)
    y = module(torch.randn(1, 5, 4, dtype=torch.float64))[0]
    assert isinstance(y, Tensor)
    (y * torch.randn_like(y)).sum().backward()
    gradients = ((name.split(".")[0], p.grad) for name, p in module.named_parameters())
    learns = {name for name, gradient in gradients if gradient is not None and bool(gradient.any())}
    assert read - learns == read - found.live
    return read - learns


def warnings(checked: Unit) -> list[Diagnostic]:
    report = Report()
    check_unit(checked, report=report)
    return report.diagnostics


@pytest.mark.parametrize(
    ("structure", "use"),
    [*((STRUCTURES[0], use) for use in USES), *((s, u) for s in STRUCTURES[1:] for u in (USES[0], USES[3]))],
)
def test_every_objective_under_a_rule(structure: str, use: str) -> None:
    lines, outputs = [], []
    for i, objective in enumerate(OBJECTIVES):
        if "self(key" in objective or "self" not in objective or use.startswith(("gd", "signs")):
            clauses = f"learn k{i}(x) -> v{i}(x); minimize {objective}; by {use.replace('g(', f'g{i}(')}; every 1 token"
            lines += [f"memory k{i}, v{i}, g{i} : linear(4 -> 4)", f"memory m{i} : {structure} {{ {clauses} }}"]
            outputs.append(f"m{i}(x)")
    without_gradient(unit("\n".join((*lines, f"output {' + '.join(outputs)}"))))


LEARNS = "minimize l2; by gd(lr = 0.1); every 1 token"


@pytest.mark.parametrize(
    ("body", "lost"),
    [
        (f"memory m : linear(4 -> 4) {{ learn k(x) -> self(v(x)); {LEARNS} }}; output m(x)", ""),
        (f"memory m : linear(4 -> 4) {{ learn k(x) -> self(v(x)); {LEARNS} }}; CUT; output m(x)", "v"),
        (f"memory m : linear(4 -> 4) {{ learn k(x) -> self(v(x)) + v(x); {LEARNS} }}; CUT; output m(x)", ""),
        (f"memory m : linear(4 -> 4) {{ learn self(k(x)) -> self(v(x)); {LEARNS} }}; CUT; output m(x) + v(x)", "k"),
        (f"memory m : linear(4 -> 4) {{ learn k(x) -> m(v(x)); {LEARNS} }}; CUT; output m(x)", "v"),
        (f"memory m : linear(4 -> 4) {{ learn k(x) -> u; {LEARNS} }}; CUT; let u = m(v(x)); output m(x)", "v"),
        (f"memory m : linear(4 -> 4) {{ learn k(x) -> self(h(u)); {LEARNS} }}; CUT; let u = v(x); output m(u)", "h"),
        (
            "memory m : linear(4 -> 4) {"
            " learn k(x) -> x; minimize l2; by gd(lr = sigmoid(index(self(v(x)), 0))); every 1 token };"
            " CUT; output m(x)",
            "v",
        ),
        ("memory t : table(9, 4); output t(position(k(x), 9)) + v(x)", "k"),
        ("output k(x)^0 + v(x)^1", "k"),
    ],
)
def test_cuts_and_functions_without_slope(body: str, lost: str) -> None:
    body = body.replace("CUT", "transfer m -> m : direct")
    checked = unit(f"memory k, v, h : linear(4 -> 4)\n{body}")
    assert without_gradient(checked) == set(lost)
    told = [d for d in warnings(checked) if d.code in ("N0306", "N0307")]
    assert [d.message.split()[0] for d in told] == [f"`{name}`" for name in lost]


def test_an_objective_whose_gradient_does_not_move_with_the_value_is_named() -> None:
    clauses = "learn k(x) -> v(x); minimize lp(%s); by gd(lr = 0.1); every 1 token"
    body = f"memory k, v : linear(4 -> 4)\nmemory m : linear(4 -> 4) {{ {clauses} }}\noutput m(x)"
    (found,) = warnings(unit(body % 1))
    assert (found.code, found.primary is not None and found.primary.span.text) == ("N0307", "minimize lp(1)")
    assert "`v` gets no gradient: its only way to the output is the value of `m`" in found.message
    assert warnings(unit(body % 1.5)) == []
