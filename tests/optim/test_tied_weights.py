"""A parameter with several places: rules of the layers' inputs have those of all of them, as if one was read twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from keyed_programs import HEAD, LINEAR, compiled, data, outer_mean, squares
from torch import Tensor, nn

import nsam

ONE = HEAD + "system net(dim: int = 4) { input x: [dim]; memory a : linear(dim -> dim); output tanh(a(tanh(a(x)))) }"
TWO = HEAD + "system net(dim: int = 4) { input x: [dim]; memory a, b : linear(dim -> dim); output tanh(b(tanh(a(x)))) }"
PASSES = HEAD + (
    "system net(dim: int = 4) { input x: [dim]; let h = x\n"
    "  repeat 2 { memory a : linear(dim -> dim); h = tanh(a(h)) }\n  output h }"
)
RULES: dict[str, tuple[str, str, Any]] = {
    "sums": ("std.rules", "dgd", True),
    "sums of tokens": ("std.rules", "dgd", "tokens"),
    "tokens": ("std.optimizers", "generalized_huber", "tokens"),
    "gradient": ("std.rules", "gd", False),
}


def tied_parameter(keys: Any) -> Any:
    module: Any = compiled(TWO, keys=keys)
    module.b.weight = module.a.weight
    return module


def tied_memory(keys: Any) -> Any:
    module: Any = compiled(TWO, keys=keys)
    module.b = module.a
    return module


def tied_passes(keys: Any) -> Any:
    module: Any = compiled(PASSES, keys=keys)
    module.repeat[1] = module.repeat[0]
    return module


def tied_across_passes(keys: Any) -> Any:
    module: Any = compiled(PASSES, keys=keys)
    module.repeat[1].a.weight = module.repeat[0].a.weight
    return module


def moved(module: nn.Module, rule: str, start: Tensor) -> Tensor:
    """The weight after two steps, each of two backward passes."""
    (weight,) = module.parameters()
    with torch.no_grad():
        weight.copy_(start)
    library, name, _ = RULES[rule]
    optimizer = nsam.optimizer(library, name, module, lr=0.1)
    for x, more in zip(data(2, 2, 3, 4), data(4, 1, 5, 4)[2:], strict=True):
        squares(module(x)[0], x).backward()
        squares(module(more)[0], more).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weight.detach()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tied", [tied_parameter, tied_memory, tied_passes, tied_across_passes])
def test_all_places_count(tied: Any, rule: str) -> None:
    keys = RULES[rule][2]
    (start,) = data(1, 4, 4)
    wanted = moved(compiled(ONE, keys=keys), rule, start)
    torch.testing.assert_close(moved(tied(keys), rule, start), wanted, rtol=1e-12, atol=1e-12)


def test_two_models_may_have_one_weight() -> None:
    first, second = (compiled(LINEAR) for _ in range(2))
    second.w.weight = first.w.weight  # type: ignore[union-attr]
    w = first.get_parameter("w.weight").detach().clone().requires_grad_()
    optimizer = nsam.optimizer("std.rules", "dgd", nn.ModuleList([first, second]), lr=0.1)
    x, z = data(2, 2, 3, 4)
    (squares(first(x)[0], x) + squares(second(z)[0], z)).backward()
    optimizer.step()
    (squares(x @ w.mT, x) + squares(z @ w.mT, z)).backward()
    gram = outer_mean(x.reshape(-1, 4)) + outer_mean(z.reshape(-1, 4))
    wanted = w - 0.1 * w @ gram - 0.1 * w.grad
    torch.testing.assert_close(first.get_parameter("w.weight"), wanted, rtol=1e-12, atol=1e-12)


def test_a_place_that_tells_nothing_is_named() -> None:
    """A layer of torch's outside of the model: its inputs are not known."""
    both = nn.ModuleDict({"core": compiled(LINEAR), "head": nn.Linear(4, 3, bias=False).double()})
    both["head"].weight = both["core"].w.weight  # type: ignore[union-attr, assignment]
    with pytest.raises(nsam.ProgramError, match=r"this module does not tell that of `head\.weight`") as caught:
        nsam.optimizer("std.rules", "dgd", both, lr=0.1)
    assert caught.value.diagnostics[0].code == "N0226"
    nsam.optimizer("std.rules", "gd", both, lr=0.1)


def test_a_place_that_is_the_start_of_a_fast_memory_is_refused() -> None:
    module: Any = compiled(
        HEAD
        + "system net(dim: int = 4) { input x: [dim]\n memory w : linear(dim -> dim)\n memory m : linear(dim -> dim) "
        "{ learn x -> x; minimize l2; by gd(lr = 0.1); every 4 tokens }\n output m(w(x)) }\n"
    )
    module.m.weight = module.w.weight
    with pytest.raises(nsam.ProgramError, match=r"`m\.weight` has none: it is what `m`, which moves"):
        nsam.optimizer("std.rules", "dgd", module, lr=0.1)
