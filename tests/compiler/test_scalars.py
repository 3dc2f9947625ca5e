"""Functions of numbers have the values that torch gives them, edges included."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import nsam
from nsam.compiler.expressions import ELEMENTWISE
from nsam.compiler.scalars import UNARY
from nsam.verification import verify_unit

TORCH = {
    "neg": torch.neg, "abs": torch.abs, "sign": torch.sign, "relu": F.relu, "exp": torch.exp, "log": torch.log,
    "sqrt": torch.sqrt, "sin": torch.sin, "cos": torch.cos, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "silu": F.silu, "softplus": F.softplus, "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}  # fmt: skip
PROGRAM = """nsam 1
use std.rules (dgd)
system s() {
  input x : [2]
  memory m : linear(2 -> 2) { learn x -> x; minimize l2; by dgd(lr = CONSTANT, retain = sigmoid(4)); every 2 tokens }
  output m(x)
}
"""


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("x", [-800.0, -3.0, -0.5, 0.0, 0.5, 3.0, 800.0])
def test_functions_of_numbers(name: str, x: float) -> None:
    assert name in ELEMENTWISE
    wanted = float(TORCH[name](torch.tensor(x, dtype=torch.float64)))
    assert UNARY[name](x) == pytest.approx(wanted, rel=1e-12, abs=1e-300, nan_ok=True)


@pytest.mark.parametrize(
    "constant", ["sigmoid(0 - 2)", "softplus(0 - 1)", "clip(3, 0, 0.1)", "0.1 * tanh(1)", "max(0.1, gelu(0.1))"]
)
def test_a_constant_argument_may_be_a_function_of_numbers(constant: str) -> None:
    program = nsam.loads(PROGRAM.replace("CONSTANT", constant))
    report = verify_unit(program.instantiate("s", {}), stability_tokens=1024)
    assert report.ok, report.text
    assert math.isfinite(float(nsam.compile(program, "s", compiled=False)(torch.randn(1, 5, 2))[0].detach().sum()))
