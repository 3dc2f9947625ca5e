"""Rules that use `key` around a model, against loops written by hand (eq. 57 over the tokens of a step)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from keyed_programs import (
    CLOCK,
    HEAD,
    LINEAR,
    LONG,
    LOOP,
    MLP,
    TWICE,
    assert_same,
    compiled,
    data,
    outer_mean,
    run,
    squares,
)
from torch import Tensor

import nsam
from nsam import api
from nsam.backends.torch.cuda_graph import GraphedStep
from tests.recorder import Again

Oracle = Callable[[dict[str, Tensor], Tensor], "tuple[Tensor, dict[str, Tensor]]"]


def mlp_by_hand(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output of MLP and the mean outer products of the inputs of its layers, heads one after the other."""
    rows = x.reshape(-1, 4)
    h = torch.tanh(rows @ weights["a.weight"].mT)
    y, grams = [], {"a.weight": outer_mean(rows.detach())}
    first, second = [], []
    for head in range(2):
        part = h[:, 4 * head : 4 * head + 4]
        hidden = torch.tanh(part @ weights["b.w1"][head].mT)
        y.append(hidden @ weights["b.w2"][head].mT)
        first.append(outer_mean(part.detach()))
        second.append(outer_mean(hidden.detach()))
    grams |= {"b.w1": torch.stack(first), "b.w2": torch.stack(second)}
    return torch.cat(y, -1).reshape(*x.shape[:-1], 4), grams


def by_hand(
    start: dict[str, Tensor], xs: list[Tensor], forward: Oracle, lr: float, retain: float = 1, *, safe: bool = False
) -> dict[str, Tensor]:
    """W ← W(retain I − lr E[x xᵀ]) − lr ∇, by torch's autograd and nothing of the compiler."""
    weights = {name: w.detach().clone().requires_grad_() for name, w in start.items()}
    for x in xs:
        y, grams = forward(weights, x)
        gradients = torch.autograd.grad(squares(y, x), list(weights.values()))
        for (name, w), gradient in zip(list(weights.items()), gradients, strict=True):
            gram = grams[name]
            rate: Any = lr
            if safe:
                rate = lr / (1 + lr * gram.diagonal(0, -2, -1).sum(-1)[..., None, None])
            eye = torch.eye(w.shape[-1], dtype=w.dtype)
            weights[name] = (w @ (retain * eye - rate * gram) - rate * gradient).detach().requires_grad_()
    return {name: w.detach() for name, w in weights.items()}


@pytest.mark.parametrize(("rule", "retain"), [("dgd", 1.0), ("dgd", 0.97), ("safe_dgd", 1.0), ("safe_dgd", 0.9)])
def test_linear_regression(rule: str, retain: float) -> None:
    module, xs = compiled(LINEAR), data(7, 2, 5, 4)

    def forward(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x @ weights["w.weight"].mT, {"w.weight": outer_mean(x.reshape(-1, 4))}

    wanted = by_hand(dict(module.state_dict()), xs, forward, 0.1, retain, safe=rule == "safe_dgd")
    run(module, nsam.optimizer("std.rules", rule, module, lr=0.1, retain=retain), xs, squares)
    assert_same(module, wanted)


@pytest.mark.parametrize("rule", ["dgd", "safe_dgd"])
def test_a_network_with_heads(rule: str) -> None:
    module, xs = compiled(MLP), data(6, 3, 4, 4)
    wanted = by_hand(dict(module.state_dict()), xs, mlp_by_hand, 0.2, 0.99, safe=rule == "safe_dgd")
    run(module, nsam.optimizer("std.rules", rule, module, lr=0.2, retain=0.99), xs, squares)
    assert_same(module, wanted)


def test_one_token_is_the_published_step() -> None:
    """Eq. 57: W ← W(I − η x xᵀ) − η (W x − v) xᵀ."""
    module = compiled(LINEAR)
    optimizer = nsam.optimizer("std.rules", "dgd", module, lr=0.3)
    w = module.state_dict()["w.weight"].clone()
    for x in data(5, 1, 1, 4):
        v = x[0, 0, :3].cos()
        optimizer.zero_grad()
        (0.5 * (module(x)[0][0, 0] - v).square().sum()).backward()
        optimizer.step()
        k = x[0, 0]
        w = w @ (torch.eye(4, dtype=w.dtype) - 0.3 * torch.outer(k, k)) - 0.3 * torch.outer(w @ k - v, k)
    assert_same(module, {"w.weight": w})


@pytest.mark.parametrize(
    ("rule", "text"), [("dgd", "dgd(lr = 0.3, retain = 0.98)"), ("safe_dgd", "safe_dgd(lr = 0.3)")]
)
def test_around_the_model_is_inside_the_sequence(rule: str, text: str) -> None:
    """One rule, one linear memory: token after token inside a sequence, and step after step around a model."""
    inside = f"""{HEAD}system net(dim: int = 4) {{
      input k: [dim]
      input v: [dim]
      memory m : linear(dim -> dim) {{ learn k -> v; minimize l2; by {text}; every 1 token; reset never }}
      output m(k)
    }}
    """
    around = HEAD + "system net(dim: int = 4) { input x: [dim]; memory m : linear(dim -> dim); output m(x) }\n"
    fast, slow = compiled(inside, keys=False), compiled(around)
    slow.load_state_dict(fast.state_dict())
    arguments = {"lr": 0.3, "retain": 0.98} if rule == "dgd" else {"lr": 0.3}
    optimizer = nsam.optimizer("std.rules", rule, slow, **arguments)
    state = None
    for k, v in zip(data(6, 1, 1, 4), [x.cos() for x in data(6, 1, 1, 4)], strict=True):
        seen, state = fast(k, v, state)
        optimizer.zero_grad()
        y, _ = slow(k)
        torch.testing.assert_close(y, seen, rtol=1e-12, atol=1e-12)
        (0.5 * (y - v).square().sum()).backward()
        optimizer.step()


def test_a_layer_that_is_read_twice_adds_up() -> None:
    module, xs = compiled(TWICE), data(5, 2, 3, 4)

    def forward(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        w = weights["w.weight"]
        h = torch.tanh(x @ w.mT)
        return h @ w.mT, {"w.weight": outer_mean(x.reshape(-1, 4)) + outer_mean(h.detach().reshape(-1, 4))}

    wanted = by_hand(dict(module.state_dict()), xs, forward, 0.1)
    run(module, nsam.optimizer("std.rules", "dgd", module, lr=0.1), xs, squares)
    assert_same(module, wanted)


def test_a_memory_of_the_step_clock_sums_its_period() -> None:
    module, xs = compiled(CLOCK, keys=False), data(12, 2, 3, 4)
    assert set(module.nsam_grams) == {"b.weight"}  # only what a rule asks for is summed up
    start = {name: w.clone() for name, w in module.state_dict().items()}
    optimizer = nsam.optimizer("std.rules", "gd", module, lr=0.1)
    run(module, optimizer, xs, squares)
    a, b = start["a.weight"].requires_grad_(), start["b.weight"].requires_grad_()
    gram, total = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    for t, x in enumerate(xs, 1):
        h = torch.tanh(x @ a.mT)
        ga, gb = torch.autograd.grad(squares(h @ b.mT, x), [a, b])
        gram, total = gram + outer_mean(h.detach().reshape(-1, 4)), total + gb
        a = (a - 0.1 * ga).detach().requires_grad_()
        if t % 4 == 0:
            b = (0.9 * b - 0.05 * b @ gram - 0.05 * total).detach().requires_grad_()
            gram, total = torch.zeros_like(gram), torch.zeros_like(total)
    assert_same(module, {"a.weight": a.detach(), "b.weight": b.detach()})


def test_backward_passes_before_a_step_add_up() -> None:
    module, (first, second) = compiled(MLP), data(2, 3, 4, 4)
    start = {name: w.clone().requires_grad_() for name, w in module.state_dict().items()}
    optimizer = nsam.optimizer("std.rules", "dgd", module, lr=0.2)
    for x in (first, second):
        squares(module(x)[0], x).backward()
    optimizer.step()
    (y1, one), (y2, two) = mlp_by_hand(start, first), mlp_by_hand(start, second)
    gradients = torch.autograd.grad(squares(y1, first) + squares(y2, second), list(start.values()))
    wanted = {
        name: w.detach() - 0.2 * w.detach() @ (one[name] + two[name]) - 0.2 * g
        for (name, w), g in zip(start.items(), gradients, strict=True)
    }
    assert_same(module, wanted)


@pytest.mark.parametrize("by", ["optimizer", "module"])
def test_zero_grad_forgets_the_inputs_too(by: str) -> None:
    one, two = compiled(MLP), compiled(MLP)
    xs = data(2, 3, 4, 4)
    for module, seen in ((one, xs), (two, xs[1:])):
        optimizer = nsam.optimizer("std.rules", "dgd", module, lr=0.2)
        for x in seen:
            (optimizer if by == "optimizer" else module).zero_grad()  # type: ignore[attr-defined]
            squares(module(x)[0], x).backward()
        optimizer.step()
    assert_same(one, dict(two.state_dict()), 0)


OWN = (
    HEAD
    + """
# A momentum of its own, and the erasure scaled by the length of the input.
rule mine(lr, beta = 0.5) {
  let k = key
  state pull = zeros
  pull <- beta * pull + grad + self @ outer(k, k) / (1 + norm(key)^2)
  self <- self - lr * pull / dot(key, k)
}
system net(dim: int = 4) { input x: [dim]; memory w : linear(dim -> 3); output w(x) }
"""
)


def test_a_rule_of_the_users_own() -> None:
    module, xs = compiled(OWN), data(6, 2, 3, 4)
    w = module.state_dict()["w.weight"].clone()
    run(module, nsam.optimizer(nsam.loads(OWN), "mine", module, lr=0.3), xs, squares)
    pull = torch.zeros_like(w)
    for x in xs:
        leaf = w.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(squares(x @ leaf.mT, x), [leaf])
        gram = outer_mean(x.reshape(-1, 4))
        pull = 0.5 * pull + gradient + w @ gram / (1 + gram.trace())
        w = w - 0.3 * pull / gram.trace()
    assert_same(module, {"w.weight": w})


def test_a_saved_optimizer_goes_on_within_a_period() -> None:
    xs = data(8, 2, 3, 4)
    whole, other = compiled(CLOCK, keys=False), compiled(CLOCK, keys=False)
    run(whole, nsam.optimizer("std.rules", "gd", whole, lr=0.1), xs, squares)
    first = nsam.optimizer("std.rules", "gd", other, lr=0.1)
    run(other, first, xs[:6], squares)
    second = nsam.optimizer("std.rules", "gd", other, lr=0.1)
    second.load_state_dict(first.state_dict())
    run(other, second, xs[6:], squares)
    assert_same(other, dict(whole.state_dict()), 0)


def test_a_train_declaration_gives_matrices_and_others_their_rules() -> None:
    program = nsam.loads(
        HEAD
        + """system net(dim: int = 8) {
  input tokens: token(256)
  memory embed : table(256, dim)
  memory ffn : mlp(dim -> 2*dim -> dim, residual, bias)
  output embed.T(ffn(embed(tokens)))
}
train t {
  model net()
  data text(context = 8, batch = 2)
  minimize cross_entropy(model(tokens), next(tokens))
  by dgd(lr = 0.1) for matrices, adamw(lr = 1e-3) for others
  steps 3
}
"""
    )
    train = program.train("t")
    module = api.compile_unit(train.model, compiled=False, keys=True)
    optimizer = api.train_optimizer(train, module)
    names = {p: name for name, p in module.named_parameters()}
    rule_of = {names[p]: group["nsam.rule"] for group in optimizer.param_groups for p in group["params"]}
    assert rule_of == {
        "embed.weight": "adamw", "ffn.w1": "dgd", "ffn.w2": "dgd", "ffn.b1": "adamw", "ffn.b2": "adamw",
    }  # fmt: skip
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    module(torch.randint(256, (2, 8)))[0].square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p.detach(), before[name]) for name, p in module.named_parameters())


def steps_of(text: str, xs: list[Tensor], **options: Any) -> dict[str, Tensor]:
    module = compiled(text, **options)
    run(module, nsam.optimizer("std.rules", "safe_dgd", module, lr=0.1), xs, squares)
    return dict(module.state_dict())


@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
@pytest.mark.parametrize("text", [MLP, pytest.param(LOOP, marks=LONG)], ids=["layers", "loops"])
@pytest.mark.usefixtures("short_calls", "quick_kernels")
def test_compiled_is_uncompiled(text: str) -> None:
    xs = data(3, 2, 32, 4)
    one, two = steps_of(text, xs), steps_of(text, xs, compiled=True)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("default")
def test_a_compiled_optimizer_takes_the_same_steps() -> None:
    xs = data(4, 2, 3, 4)
    one, two = compiled(MLP), compiled(MLP)
    run(one, nsam.optimizer("std.rules", "safe_dgd", one, lr=0.1), xs, squares)
    run(two, nsam.optimizer("std.rules", "safe_dgd", two, lr=0.1, compiled=True), xs, squares)
    for name, value in two.state_dict().items():
        torch.testing.assert_close(value, one.state_dict()[name], rtol=1e-10, atol=1e-12)


def test_a_recorded_step_brings_the_inputs_too() -> None:
    plain, graphed = compiled(MLP), compiled(MLP)
    xs = data(5, 3, 4, 4)
    run(plain, nsam.optimizer("std.rules", "dgd", plain, lr=0.2), xs, squares)

    def loss(x: Tensor) -> tuple[Tensor, None]:
        return squares(graphed(x)[0], x), None

    step = GraphedStep(graphed, loss, Again())
    optimizer = nsam.optimizer("std.rules", "dgd", graphed, lr=0.2)
    for x in xs:
        step(x)
        optimizer.step()
        optimizer.zero_grad()
    assert_same(graphed, dict(plain.state_dict()), 0)
