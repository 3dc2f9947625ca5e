"""Programs with a repeat of layers, and how the tests of wavefronts run and compare them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nsam.backends.torch.build import build
from nsam.backends.torch.runtime.system import System
from nsam.backends.torch.runtime.wavefront import Wavefront
from nsam.dsl.checked import Unit

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Shipped = Callable[..., Unit]
UnitOf = Callable[[str], Unit]
LEARN = "memory k, v : linear(4 -> 4)\nmemory n : rmsnorm(4)\nmemory m : linear(4 -> 4)"


def repeat(body: str, before: str = "", passes: int = 3) -> str:
    return f"let h = x\n{before}\nrepeat {passes} {{\n{body}\n}}\noutput h"


def learning(clauses: str, objective: str = "l2") -> str:
    learn = f"learn normalize(k(n(h))) -> v(n(h)); minimize {objective}"
    return repeat(f"{LEARN} {{ {learn}; {clauses} }}\nh = h + m(n(h))")


BODIES = {
    "boundary": learning("by gd(lr = 0.2, retain = 0.9); every 4 tokens; init learned"),
    "running": learning("by gd(lr = 0.2); every 6 tokens; reads running"),
    "summed": learning("by gd(lr = 0.2); every 3 tokens summed; init zeros"),
    "one token": learning("by dgd(lr = 0.3, retain = 0.9); every 1 token; reads running; init zeros"),
    "reset": learning("by gd(lr = 0.2); every 4 tokens; reset every 8 tokens"),
    "never reset": learning("by gd(lr = 0.2); every 4 tokens; reset never"),
    "momentum": learning("by momentum(lr = 0.1, beta = 0.8); every 4 tokens"),
    "count": learning("by adamw(lr = 0.01); every 4 tokens summed"),
    "taps": repeat("memory taps : conv(4, 3)\nmemory n : rmsnorm(4)\nh = h + taps(n(h))"),
    "nothing moves": repeat("memory f : mlp(4 -> 8 -> 4, act = silu)\nh = h + f(h)"),
    "two carried": repeat(
        f"{LEARN} {{ learn k(h) -> v(g); minimize l2; by gd(lr = 0.1); every 4 tokens }}\n"
        "h = h + m(n(g))\ng = normalize(h) + g",
        "memory first : linear(4 -> 4)\nlet g = first(x)",
    ),
    "captured": repeat(
        f"{LEARN} {{ learn k(h) -> v(g); minimize l2; by gd(lr = rate); every 4 tokens }}\nh = h + m(n(h)) * c",
        "memory first : linear(4 -> 4)\nmemory rate_of : linear(4 -> 1)\nmemory c0 : vector(4)\n"
        "let g = first(x)\nlet rate = sigmoid(rate_of(x)) / 4\nlet c = first(c0)",
    ),
    "nested": repeat(
        f"repeat 2 {{\n{LEARN} {{ learn k(n(h)) -> v(h); minimize l2; by gd(lr = 0.1); every 4 tokens }}\n"
        "h = h + m(n(h))\n}"
    ),
}


def module_of(unit: Unit, **how: Any) -> System:
    torch.manual_seed(0)
    module = build(unit, compiled=False, **how).double()
    for name, parameter in module.named_parameters():
        if parameter.detach().abs().max() == 0:  # zeros would hide what goes through them
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return module


def observed(module: System) -> System:
    for unit in module.modules():
        if isinstance(unit, System):
            unit.observe = True
    return module


def result(module: System, x: Tensor, wave: Wavefront | None, state: Any = None) -> tuple[Tensor, Any, list[Tensor]]:
    """Output, state, and gradients of a sum over both, by parameter."""
    if wave is None:
        y, new = module(x, state=state)
    else:
        with wave.in_force():
            y, new = module(x, state=state)
    kept = [t for t in pytree.tree_leaves(new) if isinstance(t, Tensor) and t.requires_grad]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    loss = (y * weights).sum() + sum((t.square().sum() for t in kept), torch.zeros(()))
    return y, new, list(torch.autograd.grad(loss, list(module.parameters()), allow_unused=True))


def agree(found: Any, wanted: Any) -> None:
    (one, shape), (other, same) = pytree.tree_flatten(found), pytree.tree_flatten(wanted)
    assert shape == same
    for a, b in zip(one, other, strict=True):
        if isinstance(b, Tensor):
            assert a.requires_grad == b.requires_grad
            scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * scale)
        else:
            assert a == b
