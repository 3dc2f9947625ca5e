"""Constants in rules keep the shape of what they stand for: random expressions of rules in three lowerings.

A rule's arguments are folded into a compiled model's steps and stay names in an optimizer's; the reference computes
with matrices throughout.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from nsam.backends.reference.numpy_arrays import NumpyArrays
from nsam.backends.reference.rules import Host, apply_rule, new_rule_record
from nsam.backends.torch.optim import optimizer
from nsam.backends.torch.rule_source import emit_initial, emit_step, load, scalar_keyword
from nsam.compiler.rule_plan import lower_rule
from nsam.dsl.diagnostics import ProgramError
from nsam.dsl.program import Program

SIZES = {"r": 3, "c": 4}
ARGUMENTS = {"off": 0, "lr": 0.3}
FILLS = ("zeros", "ones", "identity")


class Draw:
    """Random expressions by their shape: two of the letters r, c for a matrix, one for a vector, none for a number."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def some(self, shape: str, depth: int) -> str:
        if depth == 0 or self.random.random() < 0.1:
            return f"({self.random.choice(self.leaves(shape))})"
        return self.random.choice(self.forms(shape))(depth - 1)

    def leaves(self, shape: str) -> list[str]:
        return {
            "": ["off", "lr", "0", "1", "2", "rows(self)", "cols(grad)", "mean(grad)"],
            "c": ["key", "off * key"],
            "r": ["err", "off * err"],
            "rc": ["grad", "self", "s", "off * s", "0 * grad"],
            "cr": ["transpose(grad)", "off * transpose(s)"],
            "rr": ["grad @ transpose(s)", "off * outer(err, err)"],
            "cc": ["outer(key, key)", "off * (transpose(s) @ grad)"],
        }[shape]

    def forms(self, shape: str) -> list[Any]:
        some, pick = self.some, self.random.choice
        every = [
            lambda d: f"({some(shape, d)} {pick('+-*')} {some(shape, d)})",
            lambda d: f"({some('', d)} {pick('+-*')} {some(shape, d)})",
            lambda d: f"{pick(['tanh', 'exp', 'abs', 'cos'])}(0.3 * {some(shape, d)})",
            lambda d: f"(off * {some(shape, d)})",
            lambda d: f"({some(shape, d)})^{pick('012')}",
            lambda d: f"clip({some(shape, d)}, {pick(['0', 'off', '-1'])}, 1)",
            lambda d: f"max({some(shape, d)}, {some('', d)})",
        ]
        if not shape:
            whole = pick(["rc", "cr", "rr", "cc", "c", "r", ""])
            matrix = pick(["rc", "cr", "rr", "cc"])
            return [
                *every,
                lambda d: f"{pick(['sum', 'mean', 'norm', 'root_mean_square'])}({some(whole, d)})",
                lambda d: f"dot({some(whole, d)}, {some(whole, d)})",
                lambda d: f"{pick(['rows', 'cols'])}({some(matrix, d)})",
                lambda d: f"sum({pick(FILLS)} * {some(matrix, d)})",
                lambda d: f"dot({pick(FILLS)}, {some(matrix, d)})",
            ]
        if len(shape) == 1:
            inner = pick("rc")
            return [*every, lambda d: f"({some(shape + inner, d)} @ {some(inner, d)})"]
        a, b = shape
        inner = pick("rc")
        return [
            *every,
            lambda d: f"({pick(FILLS)} {pick('+-*')} {some(shape, d)})",
            lambda d: f"max({some(shape, d)}, {pick(FILLS)})",
            lambda d: f"({some(a + inner, d)} @ {some(inner + b, d)})",
            lambda d: f"({pick(FILLS)} @ {some(shape, d)})",
            lambda d: f"({some(shape, d)} @ (lr * {pick(FILLS)}))",
            lambda d: f"transpose({some(b + a, d)})",
            lambda d: f"outer({some(a, d)}, {some(b, d)})",
            lambda d: f"orthogonalize({some(shape, d)}, 2)",
            *([lambda d: f"({some(shape, d)} + {some('c', d)})"] if b == "c" else []),
        ]


def compared(body: str) -> None:
    """Apply a rule twice, as compiled models do, as optimizers do, and in the reference."""
    text = f"nsam 1\nrule drawn(off, lr) {{\nstate s = ones\ns <- 0.5 * s + grad\n{body}\n}}\n"
    use = Program.loads(text).rule("drawn", ARGUMENTS)
    ops, draw = NumpyArrays(), np.random.default_rng(2)
    start = draw.normal(size=(SIZES["r"], SIZES["c"]))
    wanted, record = ops.array(start), new_rule_record()
    tensors = torch.tensor(start)
    runs = []
    for fixed in ({}, dict(use.arguments)):
        plan = lower_rule(use.rule, fixed)
        scalars = {scalar_keyword(name): float(ARGUMENTS[name]) for name in plan.parameters}
        step, initial = load(emit_step(plan), "step"), load(emit_initial(plan), "initial")
        runs.append((step, scalars, tensors, initial(tensors, **scalars)))
    for count in (1, 2):
        grad, key, err = (draw.normal(size=n) for n in (start.shape, SIZES["c"], SIZES["r"]))
        host = Host(wanted, *(ops.array(x) for x in (grad, key, err)))
        numbers = {name: ops.array(float(value)) for name, value in ARGUMENTS.items()}
        wanted, record = apply_rule(ops, use, numbers, host, record)
        given = [torch.tensor(x) for x in (grad, key, err)]
        runs = [(s, k, *s(mine, states, *given, **k, count=count)) for s, k, mine, states in runs]
        for _, _, mine, _ in runs:
            np.testing.assert_allclose(mine.numpy(), np.asarray(wanted), rtol=1e-7, atol=1e-9, err_msg=body)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.filterwarnings("ignore")
def test_three_lowerings_agree(seed: int) -> None:
    draw = Draw(seed)
    for _ in range(10):
        compared(f"self <- 0.9 * self - 0.1 * tanh({draw.some('rc', 3)})")


WRITTEN = {
    "a reduction of a number": "self <- self - lr * grad * (sum(2) + norm(lr - 1) + dot(2, lr) + mean(lr))",
    "of sizes": "self <- self - grad * (sum(rows(self) * cols(self)) + norm(rows(self) / cols(self)))",
    "folded to a number": "self <- self - grad * (sum(0 * key + 1) + norm(key^0) + sum(outer(key, key)^0))",
    "a number that is no constant": "let a = 0 * self + lr\nself <- self - sum(a) * grad - sum(transpose(a) @ a)",
    "sizes of what is folded": "self <- self - grad * (rows(0 * self + 1) + cols(transpose(0 * self)))",
    "rows that were stretched": "self <- self - lr * grad * sum(0 * self + key)",
    "row sums": "let e = exp(self)\nself <- e / (e @ ones)",
    "column sums": "let e = exp(self)\nself <- e / (ones @ e)",
    "all but the diagonal": "self <- self - lr * (1 - identity) * grad",
    "functions of the identity": "self <- self - lr * (sqrt(identity + 0.1) * grad + tanh(identity) + identity^2)",
    "a let of each place's size": "let p = 1 - identity\nself <- self - lr * (p @ grad + grad @ p + p * grad)",
    "a turned identity": "self <- self - lr * transpose(max(identity, 0.5) + transpose(grad))",
    "a state": "state a = 2 * identity\nself <- self - lr * (a + norm(a) * grad)",
    "keys and values": "memory m : like(self) {\n"
    "learn 0 * grad -> identity; minimize l2; by plain(lr = 1); every 1 update\n}\n"
    "memory n : like(self) { learn grad -> ones; minimize l2; by outwards(lr = 1); every 1 update; reads running }\n"
    "self <- self - lr * (grad + m + n)",
    "objectives that lose what they count": "memory m : like(self) {\n"
    "learn off * grad; minimize sum((self - value)^2) * sum(value^0) + sum(0 * self)^2\n"
    "by plain(lr = 0.01); every 1 update\n}\n"
    "memory n : like(self) {\n"
    "learn 0 * key + 1 -> err; minimize sum((self(key^0) - value)^2) * norm(self(key)^0)\n"
    "by plain(lr = 0.1); every 1 update\n}\nself <- self - lr * (grad + m + n)",
    "starts of several layers": "memory n : mlp(4 -> 5 -> 3) {\n"
    "learn grad -> off * outer(err, err); minimize l2; by plain(lr = 0.1); every 1 update\n"
    "init 2 * identity + ones\n}\n"
    "self <- self - transpose(n(grad)) @ grad",
}
OTHERS = (
    "rule plain(lr) { self <- self - lr * grad }\nrule outwards(lr) { self <- self - lr * outer(0 * err + 1, key) }\n"
)


@pytest.mark.parametrize("case", WRITTEN)
def test_written_constants(case: str) -> None:
    compared(WRITTEN[case] + "\n}\n" + OTHERS.rstrip().removesuffix("}"))


def test_the_identity_is_every_head_s() -> None:
    """A state, or `self`, that is made of the identity alone has the axes of heads too."""
    text = "rule r(lr) { state s = 2 * identity; s <- lr * identity; self <- identity - s }"
    weight = torch.nn.Parameter(torch.randn(2, 3, 4, dtype=torch.float64))
    made = optimizer(Program.loads(f"nsam 1\n{text}\n").rule("r", {"lr": 0.3}), [weight])
    weight.grad = torch.ones_like(weight)
    made.step()
    torch.testing.assert_close(weight.detach(), 0.7 * torch.eye(3, 4, dtype=torch.float64).expand(2, 3, 4))


@pytest.mark.parametrize("value", ["sum(ones)", "cols(identity)", "dot(zeros, lr)", "sum(n)", "sum(ones @ identity)"])
def test_a_fill_without_a_shape_is_reported(value: str) -> None:
    with pytest.raises(ProgramError) as caught:
        Program.loads(f"nsam 1\nrule r(lr) {{\nlet n = 2 * ones\nself <- self - lr * {value} * grad\n}}\n")
    (found,) = caught.value.diagnostics
    assert found.code == "N0214"
    assert found.primary is not None
    assert found.primary.span.text in ("ones", "identity", "zeros", "n")
