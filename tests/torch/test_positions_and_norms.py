"""Learnt positions, the base of rotary ones, the ε of norms and the approximate gelu, in both backends."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import nsam
from nsam.dsl.diagnostics import ProgramError
from nsam.dsl.program import Program

TEXT = """nsam 1
use std.rules (gd)
system s(dim: int = 8, base: int = 500) {
  input tokens: token(11)
  memory embed  : table(11, dim)
  memory places : table(16, dim)
  memory n      : layernorm(dim, eps = 1e-2)
  memory r      : rmsnorm(dim, eps = 0.1)
  memory k, v   : linear(dim -> dim)
  let x = r(embed(tokens) + places(position(tokens, 16)))
  memory kept : attention(heads = 2) { learn rope(k(x), 2, base = base) -> v(x) }
  memory m : mlp(dim -> 2*dim -> dim, act = gelu_tanh, bias, residual) {
    learn k(x) -> gelu_tanh(v(x)); minimize l2; by gd(lr = 0.1); every 4 tokens; init learned
  }
  output m(n(kept(rope(x, 2, base))))
}
"""


@pytest.fixture(scope="module")
def program() -> Program:
    torch.set_num_threads(1)
    return nsam.loads(TEXT)


def one(statement: str, inputs: str = "x: [4]") -> Program:
    return nsam.loads(f"nsam 1\nsystem s() {{\n  input {inputs}\n  {statement}\n}}\n")


def run(program: Program, *inputs: torch.Tensor, **weights: torch.Tensor) -> torch.Tensor:
    """Run both backends with these weights and return what they agree on."""
    outputs = []
    for backend in ("torch", "reference"):
        module = nsam.compile(program, "s", backend=backend, compiled=False).double()  # type: ignore[arg-type]
        module.load_state_dict({name.replace("_", "."): value for name, value in weights.items()})
        outputs.append(module(*inputs)[0].detach())
    assert torch.allclose(*outputs, atol=1e-13, rtol=0)
    return outputs[0]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def test_all_of_them_verify(program: Program) -> None:
    report = nsam.verify(program, "s")
    assert report.ok, [row for row in report.rows if row.result == "failed"]


def test_norms_use_their_own_epsilon() -> None:
    x, gain, bias = random(2, 3, 4) * 0.1, random(4), random(4)
    found = run(one("memory n : layernorm(4, eps = 0.5)\n  output n(x)"), x, n_weight=gain, n_bias=bias)
    assert torch.allclose(found, F.layer_norm(x, (4,), gain, bias, 0.5))
    found = run(one("memory n : rmsnorm(4, eps = 0.5)\n  output n(x)"), x, n_weight=gain)
    assert torch.allclose(found, F.rms_norm(x, (4,), gain, 0.5))
    found = run(one("memory n : rmsnorm(4)\n  output n(x)"), x, n_weight=gain)
    assert torch.allclose(found, F.rms_norm(x, (4,), gain, 1e-6))


def test_approximate_gelu() -> None:
    x = random(2, 3, 4) * 3
    assert torch.allclose(run(one("output gelu_tanh(x)"), x), F.gelu(x, approximate="tanh"))
    w = {"m_w1": random(5, 4), "m_w2": random(4, 5)}
    found = run(one("memory m : mlp(4 -> 5 -> 4, act = gelu_tanh)\n  output m(x)"), x, **w)
    assert torch.allclose(found, F.gelu(x @ w["m_w1"].T, approximate="tanh") @ w["m_w2"].T)


def test_rope_turns_by_its_base() -> None:
    x = random(1, 5, 4)
    turns = torch.polar(
        torch.ones(5, 2, dtype=torch.float64),
        torch.arange(5, dtype=torch.float64)[:, None] * torch.tensor([1.0, 7**-0.5], dtype=torch.float64),
    )
    y = torch.complex(x[0, :, :2], x[0, :, 2:]) * turns
    assert torch.allclose(run(one("output rope(x, base = 7)"), x)[0], torch.cat([y.real, y.imag], -1))


def test_positions_are_rows_of_a_table() -> None:
    text = "memory places : table(6, 3)\n  output places(position(tokens, 6))"
    tokens, rows = torch.tensor([[1, 0, 1], [0, 0, 1]]), random(6, 3)
    found = run(one(text, "tokens: token(2)"), tokens, places_weight=rows)
    assert torch.equal(found, rows[:3].expand(2, 3, 3))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_positions_go_on_across_calls_and_end(program: Program, backend: str) -> None:
    module = nsam.compile(program, "s", backend=backend, compiled=False).double()  # type: ignore[arg-type]
    tokens = torch.arange(16).view(1, 16) % 11
    whole, _ = module(tokens)
    first, state = module(tokens[:, :7])
    rest, state = module(tokens[:, 7:], state)
    assert torch.allclose(torch.cat([first, rest], 1), whole)
    with pytest.raises(ValueError, match="17 tokens and this system has positions for 16"):
        module(tokens[:, :1], state)
    again, _ = module(tokens[:, :1], nsam.new_sequence(state))
    assert torch.allclose(again, whole[:, :1])


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("memory n : rmsnorm(4, eps = 0)\n  output n(x)", "N0211"),
        ("memory n : layernorm(4, eps = -1e-5)\n  output n(x)", "N0211"),
        ("memory k : linear(4 -> 4, eps = 1e-5)\n  output k(x)", "N0219"),
        ("output rope(x, base = 0)", "N0211"),
        ("memory t : table(8, 4)\n  output t(position(x, 9))", "N0214"),
        ("output x + position(x, 4)", "N0216"),
        ("memory c : vector(4)\n  memory t : table(8, 4)\n  output x + t(position(c, 8))", "N0245"),
        ("memory t : table(8, 4)\n  output t(position(x))", "N0203"),
    ],
)
def test_what_does_not_fit_is_said(statement: str, code: str) -> None:
    with pytest.raises(ProgramError) as error:
        one(statement)
    assert [d.code for d in error.value.diagnostics] == [code]


def test_rules_differentiate_the_approximate_gelu() -> None:
    program = nsam.loads(
        "nsam 1\nuse std.rules (gd)\n"
        "rule r(lr) {\n  memory m : like(self) { learn grad; minimize sum(gelu_tanh(self)) - dot(self, value);"
        " by gd(lr = lr); every 1 update; reads running }\n  self <- self + m\n}\n"
    )
    weight = torch.nn.Parameter(random(3, 2))
    before = weight.detach().clone()
    optimizer = nsam.optimizer(program, "r", [weight], lr=0.5)
    for _ in range(2):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    first = -0.5 * torch.full_like(before, 0.5)
    z = first.clone().requires_grad_()
    F.gelu(z, approximate="tanh").sum().backward()
    assert z.grad is not None
    assert torch.allclose(weight.detach() - before, first + first - 0.5 * z.grad)
