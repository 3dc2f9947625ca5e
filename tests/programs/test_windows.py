"""Rules that see a window's rows: `over last n tokens` with `key` and `err`."""

from __future__ import annotations

import re

import pytest
import torch

import nsam
from nsam.backends.reference import ReferenceModule

PROGRAM = """
nsam 1
use std.optimizers (generalized_huber)
use std.rules (gd)
rule mine(lr) {{ self <- self - lr * ({update}) }}
system s(dim: int = 4) {{
  input x: [dim]
  memory k, v : linear(dim -> dim)
  memory m : linear(dim -> dim) {{
    learn normalize(k(x)) -> v(x) over last {window} tokens
    minimize l2
    by {rule}(lr = 0.1)
    every 3 tokens
  }}
  output m(x)
}}
"""


def program(update: str = "grad", window: int = 3, rule: str = "mine") -> nsam.Program:
    return nsam.loads(PROGRAM.format(update=update, window=window, rule=rule))


def agrees(found: nsam.Program) -> None:
    """The compiled form's values and gradients are the reference's, from the first token on."""
    torch.manual_seed(0)
    module = nsam.compile(found, "s", compiled=False).double()
    reference = ReferenceModule(found.instantiate("s"))
    reference.load_state_dict(module.state_dict())
    x = torch.randn(2, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = [model(x)[0] for model in (module, reference)]
    torch.testing.assert_close(*results)
    for result in results:
        result.square().sum().backward()
    torch.testing.assert_close(*[[p.grad for p in model.parameters()] for model in (module, reference)])


@pytest.mark.parametrize("window", [1, 2, 4, 5])  # 4: as many rows as the matrix has
def test_a_matrix_is_applied_to_each_row(window: int) -> None:
    agrees(program(rule="generalized_huber", window=window))


@pytest.mark.parametrize(
    "update",
    [
        "outer(err, key)",
        "outer(self @ key + err, key)",
        "grad * (1 + sum(key^2))",
        "grad / (1 + norm(err))",
        "grad @ outer(key, key)",
        "outer(sigmoid(err), key)",
        "outer(clip(err, -1, 1), tanh(key))",
        "grad / (1 + dot(key, key))",
    ],
)
def test_what_adds_rows_up_is_compiled(update: str) -> None:
    agrees(program(update))


@pytest.mark.parametrize(
    ("update", "function"),
    [
        ("grad * (1 + mean(key)^2)", "`mean`"),
        ("grad * sum(exp(key))", "`sum`"),
        ("grad * root_mean_square(key)", "`root_mean_square`"),
        ("grad * sum(sigmoid(err))", "`sum`"),
        ("outer(exp(err), 1 + key)", "a product (`@`, `outer`)"),
    ],
)
def test_what_counts_rows_is_refused(update: str, function: str) -> None:
    found = program(update)
    with pytest.raises(nsam.ProgramError, match=rf"N0401.*`mine` takes {re.escape(function)} of a window's rows"):
        nsam.compile(found, "s", compiled=False)
    nsam.compile(program(update, window=1), "s", compiled=False)
