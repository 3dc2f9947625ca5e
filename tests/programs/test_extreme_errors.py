"""Errors of exactly 0, and very large ones: values and gradients stay those of the definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import nsam
from nsam.backends.torch import runtime as rt

ZERO = """nsam 1
use std.rules (gd)
use std.optimizers (generalized_lp)
system s() {
  input k: [4]
  input v: [4]
  memory m : linear(4 -> 4) { learn k -> v; minimize OBJECTIVE; by RULE; every 1 token; init zeros }
  output m(k)
}
"""


def slopes(program: nsam.Program, backend: str) -> tuple[Tensor, Tensor]:
    """Answers, and gradients of the values, where the first value is the zero that the memory answers."""
    module = nsam.compile(program, "s", compiled=False, backend=backend).double()
    torch.manual_seed(0)
    k, v = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    v[:, 0] = 0
    v.requires_grad_()
    answer, _ = module(k, v)
    (found,) = torch.autograd.grad(answer.square().sum(), v)
    return answer.detach(), found


@pytest.mark.parametrize(
    ("objective", "rule"),
    [
        ("lp(1.5)", "gd(lr = 0.1)"),
        ("sum(abs(self(key) - value)^1.5)", "gd(lr = 0.1)"),
        ("sum((self(key) - value)^2)^0.5", "gd(lr = 0.1)"),
        ("l2", "generalized_lp(lr = 0.1, p = 1.5)"),
    ],
)
def test_powers_have_no_infinite_slopes_at_zero(objective: str, rule: str) -> None:
    program = nsam.loads(ZERO.replace("OBJECTIVE", objective).replace("RULE", rule))
    mine, theirs = slopes(program, "torch"), slopes(program, "reference")
    for found, wanted in zip(mine, theirs, strict=True):
        assert wanted.isfinite().all()
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert mine[1][0, 0].abs().max() == 0


@pytest.mark.parametrize("delta", [0.5, 5e3, 1e8, 1e200, float("inf")])
def test_pseudo_huber_of_a_large_bound_keeps_its_digits(delta: float) -> None:
    e = torch.tensor([[0.3, -0.2, 0.1]])
    square = 0.14 / delta / delta
    wanted = 0.07 if square < 1e-6 else delta * delta * ((1 + square) ** 0.5 - 1)
    assert rt.pseudo_huber(e, delta).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_slope_of_gelu_tanh_is_0_or_1_far_out(dtype: torch.dtype) -> None:
    x = torch.tensor([-3e38, -300.0, -8.0, 8.0, 300.0, 3e38]).clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
    x = x.to(dtype).requires_grad_()
    found = rt.gelu_tanh_slope(x)
    torch.testing.assert_close(found.detach(), torch.tensor([0, 0, 0, 1, 1, 1], dtype=dtype))
    assert torch.autograd.grad(found.sum(), x)[0].isfinite().all()


SQUARES: dict[str, Callable[[Tensor], Tensor]] = {
    "dot": lambda x: rt.dot(x, x),
    "norm": rt.norm,
    "normalize": rt.normalize,
    "normalize_pullback": lambda x: rt.normalize_pullback(x, x.flip(-1)),
    "root_mean_square": rt.root_mean_square,
    "power": lambda x: rt.power(x, 2).sum(-1, keepdim=True),
    "lp": lambda x: rt.lp(x, 2),
    "huber": lambda x: rt.huber(x, 1e9),
    "pseudo_huber": lambda x: rt.pseudo_huber(x, 1.0),
}


@pytest.mark.parametrize("name", SQUARES)
@pytest.mark.parametrize(("size", "entry"), [(256, 20.0), (4, 300.0), (4, 1e-4)])
def test_squares_have_room_in_float16(name: str, size: int, entry: float) -> None:
    """They end at 65504 there, and at 6e-8."""
    narrow = torch.linspace(0.5 * entry, entry, size).to(torch.float16).requires_grad_()
    exact = narrow.detach().double().requires_grad_()
    found, wanted = SQUARES[name](narrow), SQUARES[name](exact)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-7)
    if name != "normalize_pullback":
        slopes = (torch.autograd.grad(y.sum(), x)[0].double() for y, x in ((found, narrow), (wanted, exact)))
        torch.testing.assert_close(*slopes, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_other_precisions_are_squared_as_they_are(dtype: torch.dtype) -> None:
    x = torch.ones(3, dtype=dtype)
    assert rt.dot(x, x).dtype == rt.power(x, 2).dtype == rt.huber(x, 1.0).dtype == dtype


@pytest.mark.parametrize(
    ("key", "objective", "rule"),
    [
        ("normalize(k)", "l2", "gd(lr = 0.5)"),
        ("k", "l2", "safe_dgd(lr = 0.1)"),
        ("normalize(k)", "pseudo_huber(1)", "momentum(lr = 0.5)"),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_long_keys_and_values_are_learnt_in_float16(key: str, objective: str, rule: str, autocast: bool) -> None:
    text = ZERO.replace("(gd)", "(gd, safe_dgd, momentum)").replace("learn k", f"learn {key}")
    text = text.replace("OBJECTIVE", objective).replace("RULE", rule).replace("m(k)", "m(normalize(k))")
    module = nsam.compile(nsam.loads(text.replace("every 1 token", "every 4 tokens")), "s", compiled=False)
    draw = torch.Generator().manual_seed(0)
    k, v = 300 * torch.randn(2, 1, 12, 4, dtype=torch.float64, generator=draw).half()
    wanted, _ = module.double()(k.double(), v.double())
    given = (x.float() if autocast else x for x in (k, v))
    with torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
        found, _ = module.to(torch.float32 if autocast else torch.float16)(*given)
    assert (found.double() - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("rule", ["muon(lr = 0.1)", "m3(lr = 0.1)", "m3_algorithm1(lr = 0.1)", "deep_muon(lr = 0.1)"])
def test_a_gradient_of_zero_has_no_direction_to_learn_through(rule: str) -> None:
    """A token of padding: divided by the floor, what is orthogonalised would bring 10⁷ times as much, each time."""
    text = ZERO.replace("use std.rules (gd)", "use std.rules (muon, m3, m3_algorithm1)")
    text = text.replace("generalized_lp", "deep_muon").replace("OBJECTIVE", "l2").replace("RULE", rule)
    mine, theirs = slopes(nsam.loads(text), "torch"), slopes(nsam.loads(text), "reference")
    for found, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert mine[1].abs().max() < 1e5
