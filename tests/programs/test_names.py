"""Any name that the language allows means the same as any other, whatever it means in the files that are written."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import nsam

FAST = "linear(dim -> dim) { learn x -> 2 * x; minimize l2; by gd(lr = 0.1); every 2 tokens }"
BY_RULE = "memory m : linear(dim -> dim) { learn x -> 2 * x; minimize l2; by mine(lr = 0.1); every 2 tokens }"

PLACES = {
    "weight": ("", "input x: [dim]", "memory NAME : linear(dim -> dim)\n output NAME(x)"),
    "fast memory": ("", "input x: [dim]", f"memory NAME : {FAST}\n output NAME(x)"),
    "adaptive memory": (
        "",
        "input x: [dim]",
        f"memory NAME : {FAST.replace('every 2 tokens', 'every 1..4 tokens when surprise > 0.5')}\n output NAME(x)",
    ),
    "generated memory": (
        "",
        "input x: [dim]\n input q: [dim] per sequence",
        f"memory g : linear(dim -> dim * dim)\n memory NAME : {FAST.replace(' }', '; init g(q) }')}\n output NAME(x)",
    ),
    "list": (
        "",
        "input x: [dim]",
        f"memory NAME[p in [1, 2]] : {FAST.replace('2 tokens', 'p tokens')}\n output chain(NAME, x)",
    ),
    "input": ("", "input NAME: [dim]", f"memory m : {FAST.replace('x', 'NAME')}\n output m(NAME)"),
    "input of a sequence": (
        "",
        "input x: [dim]\n input NAME: [dim] per sequence",
        f"memory g : linear(dim -> dim * dim)\n memory m : {FAST.replace(' }', '; init g(NAME) }')}\n output m(x)",
    ),
    "value": ("", "input x: [dim]", "memory m : linear(dim -> dim)\n let NAME = m(x)\n output NAME * x"),
    "called system": (
        f"system NAME(dim: int) {{ input x: [dim]\n memory m : {FAST}\n output m(x) }}\n",
        "input x: [dim]",
        "output NAME(x, dim = dim)",
    ),
    "memory of a call": (
        "system part(dim: int) { input x: [dim]\n memory NAME : linear(dim -> dim)\n output NAME(x) }\n",
        "input x: [dim]",
        "output part(x, dim = dim)",
    ),
    "in a repeat": (
        "",
        "input x: [dim]",
        "let y = x\n repeat 2 { memory NAME : linear(dim -> dim)\n y = y + NAME(y) }\n output y",
    ),
    "carried": (
        "",
        "input x: [dim]",
        "let NAME = x\n repeat 2 { memory m : linear(dim -> dim)\n NAME = NAME + m(NAME) }\n output NAME",
    ),
    "state of a rule": (
        "rule mine(lr) { state NAME = zeros\n NAME <- 0.9 * NAME + grad\n self <- self - lr * NAME }\n",
        "input x: [dim]",
        f"{BY_RULE}\n output m(x)",
    ),
    "state of a summing rule": (
        "rule mine(lr) { state NAME = zeros\n NAME <- 0.9 * NAME + grad\n self <- self - lr * NAME }\n",
        "input x: [dim]",
        f"{BY_RULE.replace('tokens', 'tokens summed')}\n output m(x)",
    ),
    "memory of a rule": (
        "rule mine(lr) { memory NAME : like(self) { learn grad; minimize dot; by gd(lr = 0.5); every 1 update; "
        "reads running }\n self <- self - lr * NAME }\n",
        "input x: [dim]",
        f"{BY_RULE}\n output m(x)",
    ),
    "slow memory of a rule": (
        "rule mine(lr) { memory NAME : like(self) { learn grad; minimize dot; by gd(lr = 0.5); every 2 updates "
        "summed }\n self <- self - lr * (grad + NAME) }\n",
        "input x: [dim]",
        f"{BY_RULE}\n output m(x)",
    ),
    "value in a rule": (
        "rule mine(lr) { let NAME = exp(-mean(grad * grad))\n self <- self - lr * NAME * grad }\n",
        "input x: [dim]",
        f"{BY_RULE}\n output m(x)",
    ),
    "parameter of a rule": (
        "rule mine(NAME) { self <- self - NAME * exp(-mean(grad * grad)) * grad }\n",
        "input x: [dim]",
        BY_RULE.replace("lr", "NAME") + "\n output m(x)",
    ),
    "rule": (
        "rule NAME(lr) { self <- self - lr * exp(-mean(grad * grad)) * grad }\n",
        "input x: [dim]",
        f"{BY_RULE.replace('mine', 'NAME')}\n output m(x)",
    ),
}  # fmt: skip
NAMES = [
    "in", "None", "lambda", "training", "native", "_modules", "forward", "pop", "clock", "start", "__a", "_", "_1", "f",
    "tensor", "run", "sum", "loss", "total", "running", "value", "w", "at",
]  # fmt: skip


def built(place: str, name: str) -> Any:
    """The module of a program that calls something at `place` by `name`."""
    extra, inputs, body = PLACES[place]
    text = f"nsam 1\nuse std.rules (gd)\n{extra}system whole(dim: int = 4) {{ {inputs}\n {body} }}\n"
    torch.manual_seed(0)
    return nsam.compile(nsam.loads(text.replace("NAME", name)), "whole", dim=4, compiled=False).double()


def run(module: Any, place: str) -> list[torch.Tensor]:
    """Outputs of one call, and of two whose second goes on with the state, and gradients."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 7, 4, dtype=torch.float64, generator=generator)
    sequence = "per sequence" in PLACES[place][1]
    more = [torch.randn(2, 4, dtype=torch.float64, generator=generator)] if sequence else []
    module.observe = True
    whole, _ = module(x, *more)
    first, state = module(x[:, :3], *more)
    second, _ = module(x[:, 3:], *more, state=state)
    module.zero_grad()
    if whole.requires_grad:
        whole.square().sum().backward()
    return [whole, first, second, *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("place", PLACES)
def test_a_name_means_nothing(place: str) -> None:
    expected = run(built(place, "thing"), place)
    assert len(expected) > 3 or place == "carried"
    torch.testing.assert_close(torch.cat(expected[1:3], 1), expected[0])
    for name in NAMES:
        module = built(place, name)
        module.train().eval()
        for found, wanted in zip(run(copy.deepcopy(module), place), expected, strict=True):
            torch.testing.assert_close(found, wanted, msg=lambda text, name=name: f"{name}: {text}")
        assert list(module.state_dict()) == [key for key, _ in module.named_parameters()]
