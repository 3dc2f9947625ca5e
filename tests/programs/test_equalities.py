"""Programs that say the same in different words compute the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nsam
from nsam.backends.torch.build import build
from nsam.dsl.program import Program

HEAD = "nsam 1\nuse std.rules (gd, dgd, muon, momentum)\n"


def program(body: str, parameters: str = "dim: int") -> Program:
    return nsam.loads(f"{HEAD}system s({parameters}) {{\n  input x: [dim]\n{body}\n}}\n")


def memory(clauses: str, structure: str = "linear(dim -> dim)") -> str:
    return f"""  memory q, k, v : linear(dim -> dim)
  memory rate, keep : linear(dim -> 1)
  let a = sigmoid(4 + keep(x))
  let b = sigmoid(rate(x)) / 2
  memory m : {structure} {{ {clauses} }}
  output m(q(x))"""


def same(pair: Any, gradients: Any, one: Program, other: Program, time: int = 13, **parameters: object) -> float:
    """Largest difference of values and gradients between two programs on the same weights and inputs."""
    left, right = pair(one, "s", **parameters), pair(other, "s", **parameters)
    right.compiled.load_state_dict(left.compiled.state_dict())
    inputs = left.inputs(2, time)
    found, wanted = gradients(left.compiled, inputs), gradients(right.compiled, inputs)
    assert found.keys() == wanted.keys()
    assert float(wanted["m.weight" if "m.weight" in wanted else "output"].abs().max()) > 0
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)


KEYS = "learn normalize(k(x)) -> v(x)"
PAIRS = {
    "dot and dgd, l2 and gd: the delta rule": (
        f"{KEYS}; minimize dot; by dgd(lr = b); every 1 token; reads running; init learned",
        f"{KEYS}; minimize l2; by gd(lr = b); every 1 token; reads running; init learned",
    ),
    "l2 twice is its expression": (
        f"{KEYS}; minimize l2; by gd(lr = b, retain = a); every 4 tokens; init learned",
        f"{KEYS}; minimize 0.5 * sum((self(key) - value)^2); by gd(lr = b, retain = a); every 4 tokens; init learned",
    ),
    "an Omega window of one is no window": (
        f"{KEYS} over last 1 tokens; minimize l2; by gd(lr = b, retain = a); every 4 tokens; init learned",
        f"{KEYS}; minimize l2; by gd(lr = b, retain = a); every 4 tokens; init learned",
    ),
    "a bound of infinity is l2": (
        f"{KEYS}; minimize pseudo_huber(inf); by gd(lr = b); every 4 tokens; init learned",
        f"{KEYS}; minimize l2; by gd(lr = b); every 4 tokens; init learned",
    ),
    "l_2 is l2": (
        f"{KEYS}; minimize lp(2); by gd(lr = b); every 4 tokens; init learned",
        f"{KEYS}; minimize l2; by gd(lr = b); every 4 tokens; init learned",
    ),
    "momentum without memory is gd": (
        f"{KEYS}; minimize l2; by momentum(lr = b, beta = 0, retain = a); every 4 tokens; init learned",
        f"{KEYS}; minimize l2; by gd(lr = b, retain = a); every 4 tokens; init learned",
    ),
    "dgd that erases nothing is gd": (
        f"{KEYS}; minimize l2; by dgd(lr = b, retain = a, erase = 0); every 4 tokens; init learned",
        f"{KEYS}; minimize l2; by gd(lr = b, retain = a); every 4 tokens; init learned",
    ),
    "a chunk's sum is its fold, without retention": (
        f"{KEYS}; minimize l2; by gd(lr = 0.1); every 4 tokens summed; init learned",
        f"{KEYS}; minimize l2; by gd(lr = 0.1); every 4 tokens; init learned",
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_two_ways_to_say_it(case: str, pair: Any, gradients: Any) -> None:
    one, other = (program(memory(clauses)) for clauses in PAIRS[case])
    assert same(pair, gradients, one, other, dim=4) < 1e-11


@pytest.mark.parametrize("case", [name for name in PAIRS if "delta rule" not in name])
def test_two_ways_to_say_it_for_a_network(case: str, pair: Any, gradients: Any) -> None:
    one, other = (program(memory(clauses, "mlp(dim -> 6 -> dim, residual)")) for clauses in PAIRS[case])
    assert same(pair, gradients, one, other, dim=4) < 1e-11


def test_the_gated_delta_rule_is_dot_and_dgd_that_erases_what_it_writes(example: Any, pair: Any) -> None:
    """M <- a M (I - b k k') + b v k', token by token."""
    both = pair(example("zoo"), "gated_deltanet", dim=4)
    (x,) = both.inputs(1, 12)
    w = both.weights
    m, wanted = torch.zeros(4, 4, dtype=x.dtype), []
    for token in x[0]:
        q, k = (torch.nn.functional.normalize(w[f"{n}.weight"] @ token, dim=0) for n in "qk")
        a, b = torch.sigmoid(6 + w["gate.weight"] @ token), torch.sigmoid(w["beta.weight"] @ token)
        m = a * m @ (torch.eye(4, dtype=x.dtype) - b * torch.outer(k, k)) + b * torch.outer(w["v.weight"] @ token, k)
        wanted.append(m @ q)
    found, _ = both.compiled(x)
    assert float((found[0] - torch.stack(wanted)).detach().abs().max()) < 1e-12


def test_dot_and_gd_are_linear_attention(example: Any, pair: Any) -> None:
    both = pair(example("zoo"), "linear_attention", dim=4)
    (x,) = both.inputs(1, 12)
    q, k, v = (x[0] @ both.weights[f"{n}.weight"].T for n in "qkv")
    found, _ = both.compiled(x)
    assert float((found[0] - (q @ k.T).tril() @ v).detach().abs().max()) < 1e-12


def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, steps: int) -> None:
    for i in range(steps):
        optimizer.zero_grad()
        y, _ = module(x[i])
        y.square().sum().backward()
        optimizer.step()


def test_a_continuum_with_one_period_is_a_stack_of_networks(example: Any, pair: Any) -> None:
    """Eq. 70 with all frequencies equal: values, and the weights after five steps."""
    stack = program(
        "  memory level[p in [1, 1]] : mlp(dim -> 2*dim -> dim, act = gelu, residual)\n  output chain(level, x)"
    )
    left = pair(example("continuum"), "sequential", dim=3, periods=[1, 1])
    right = pair(stack, "s", dim=3)
    right.compiled.load_state_dict(left.compiled.state_dict())
    x = torch.stack([left.inputs(2, 4)[0] for _ in range(5)])
    assert torch.equal(left.compiled(x[0])[0], right.compiled(x[0])[0])
    train(left.compiled, nsam.optimizer("std.rules", "gd", left.compiled, lr=0.01), x, 5)
    train(right.compiled, torch.optim.SGD(right.compiled.parameters(), lr=0.01), x, 5)
    for name, weight in left.weights.items():
        assert float((weight - right.weights[name]).detach().abs().max()) < 1e-14, name


FROZEN = """
system static(dim: int, every_n: float) {
  input x: [dim]
  memory q, o : linear(dim -> dim)
  memory taps_q, taps_k, taps_v : conv(dim, width = 4)
  memory rate_of, keep_of : linear(dim -> 4)
  memory k, v, eta, alpha, mem : mlp(dim -> 4*dim -> dim, act = silu, residual, heads = 4)CLAUSES
  let key   = normalize(k(taps_k(x)), 4)
  let value = normalize(v(taps_v(x)), 4)
  let rate  = sigmoid(rate_of(eta(x))) / 4
  let keep  = sigmoid(10 + keep_of(alpha(x)))
  output o(mem(normalize(q(taps_q(x)), 4)))
}
"""
CLAUSES = (
    " { learn key -> self(value); minimize l2; by dgd(lr = rate, retain = keep); every every_n tokens; init learned }"
)


def test_hope_at_frequency_zero_is_its_static_network() -> None:
    """`every inf tokens`: nothing moves inside the sequence, and the memories are ordinary networks."""
    learning = nsam.loads(HEAD + FROZEN.replace("CLAUSES", CLAUSES))
    static = nsam.loads(HEAD + FROZEN.replace("CLAUSES", ""))
    frozen = build(learning.instantiate("static", {"dim": 8, "every_n": float("inf")}), compiled=False).double()
    moving = build(learning.instantiate("static", {"dim": 8, "every_n": 4}), compiled=False).double()
    network = build(static.instantiate("static", {"dim": 8, "every_n": 1}), compiled=False).double()
    frozen.load_state_dict(network.state_dict())
    moving.load_state_dict(network.state_dict())
    x = torch.randn(2, 11, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = network(x)[0]
        assert float((frozen(x)[0] - wanted).abs().max()) < 1e-13
        assert float((moving(x)[0] - wanted)[:, :4].abs().max()) < 1e-13
        assert float((moving(x)[0] - wanted)[:, 4:].abs().max()) > 1e-6
