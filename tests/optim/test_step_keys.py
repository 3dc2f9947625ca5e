"""Rules that use `key` around a model, against loops written by hand (eq. 57 over the tokens of a step)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nsam
from nsam import api
from nsam.backends.torch.cuda_graph import GraphedStep
from nsam.backends.torch.runtime.replay import Plan, Schedule

HEAD = "nsam 1\nuse std.rules (gd, dgd, safe_dgd, adamw)\n"
LINEAR = HEAD + "system net(dim: int = 4) { input x: [dim]; memory w : linear(dim -> 3); output w(x) }\n"
MLP = (
    HEAD
    + """system net(dim: int = 4, heads: int = 2) {
  input x: [dim]
  memory a : linear(dim -> 2*dim)
  memory b : mlp(2*dim -> 12 -> dim, act = tanh, heads = heads)
  output b(tanh(a(x)))
}
"""
)
Oracle = Callable[[dict[str, Tensor], Tensor], "tuple[Tensor, dict[str, Tensor]]"]


def outer_mean(x: Tensor) -> Tensor:
    """E[x xᵀ] of rows [N, in]."""
    return torch.einsum("ni,nj->ij", x, x) / x.shape[0]


def compiled(text: str, **options: Any) -> nn.Module:
    torch.manual_seed(3)
    return nsam.compile(nsam.loads(text), "net", **{"compiled": False, "keys": True} | options).double()


def data(steps: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(steps)]


def run(module: nn.Module, optimizer: torch.optim.Optimizer, xs: list[Tensor], loss: Callable[..., Tensor]) -> None:
    for x in xs:
        optimizer.zero_grad()
        loss(module(x)[0], x).backward()
        optimizer.step()


def squares(y: Tensor, x: Tensor) -> Tensor:
    return (y - x[..., : y.shape[-1]].sin()).square().sum(-1).mean()


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


def assert_same(module: nn.Module, wanted: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=tolerance, atol=tolerance)


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
    text = HEAD + "system net(dim: int = 4) { input x: [dim]; memory w : linear(dim -> dim); output w(tanh(w(x))) }\n"
    module, xs = compiled(text), data(5, 2, 3, 4)

    def forward(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        w = weights["w.weight"]
        h = torch.tanh(x @ w.mT)
        return h @ w.mT, {"w.weight": outer_mean(x.reshape(-1, 4)) + outer_mean(h.detach().reshape(-1, 4))}

    wanted = by_hand(dict(module.state_dict()), xs, forward, 0.1)
    run(module, nsam.optimizer("std.rules", "dgd", module, lr=0.1), xs, squares)
    assert_same(module, wanted)


CLOCK = (
    HEAD
    + """system net(dim: int = 4) {
  input x: [dim]
  memory a : linear(dim -> dim)
  memory b : linear(dim -> 3) { minimize task; by dgd(lr = 0.05, retain = 0.9); every 4 steps }
  output b(tanh(a(x)))
}
"""
)


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


def test_gradients_and_values_stay_the_same() -> None:
    with_, without = compiled(MLP), compiled(MLP, keys=False)
    assert without.nsam_grams == {}
    (x,) = data(1, 3, 4, 4)
    for module in (with_, without):
        squares(module(x)[0], x).backward()
    for (name, one), (_, two) in zip(with_.named_parameters(), without.named_parameters(), strict=True):
        assert torch.equal(one.grad, two.grad), name  # type: ignore[arg-type]
    assert list(with_.state_dict()) == list(without.state_dict())
    with torch.no_grad():
        assert torch.equal(with_(x)[0], without(x)[0])


LOOP = (
    HEAD
    + """system net(dim: int = 4) {
  input x: [dim]
  memory k, v, o : linear(dim -> dim)
  memory r : linear(dim -> 1)
  memory m : linear(dim -> dim) {
    learn normalize(k(x)) -> v(m(x)); minimize l2; by gd(lr = sigmoid(r(m(x))) / 4); every 4 tokens; init zeros
  }
  memory n : linear(dim -> dim) {
    learn normalize(k(o(m(x)))) -> v(x); minimize l2; by gd(lr = 0.1); every 8 tokens; init zeros
  }
  output o(m(k(x)) + n(x) + x)
}
"""
)


def folding(rule: str, every: str, learn: str = "normalize(k(x)) -> v(m(x))") -> str:
    return f"""nsam 1
use std.rules (gd, dgd, momentum)
system inner(dim: int) {{ input x: [dim]; memory w : linear(dim -> dim); output tanh(w(x)) }}
system net(dim: int = 4) {{
  input x: [dim]
  memory k, v, o : linear(dim -> dim)
  memory m : linear(dim -> dim) {{ learn {learn}; minimize l2; by {rule}; every {every}; init zeros }}
  output o(m(v(k(x))))
}}
"""


FOLDING = {
    "loops": LOOP,
    "every token": folding("dgd(lr = 0.1)", "1 token; reads running", "normalize(k(x)) -> v(x)"),
    "the token before": folding("dgd(lr = 0.1)", "1 token"),
    "momentum": folding("momentum(lr = 0.1)", "4 tokens"),
    "summed": folding("gd(lr = 0.1)", "4 tokens summed"),
    "window": folding("gd(lr = 0.1)", "4 tokens", "normalize(k(x)) -> v(m(x)) over last 3 tokens"),
    "adaptive": folding("gd(lr = 0.1)", "4..8 tokens when surprise > 0.3"),
    "resets": folding("gd(lr = 0.1)", "4 tokens; reset every 8 tokens"),
    "a call inside": folding("gd(lr = 0.1)", "4 tokens", "normalize(k(x)) -> inner(m(x), dim)"),
}


@pytest.mark.parametrize("without", [(), "all"], ids=["passes", "no passes"])
@pytest.mark.parametrize("text", FOLDING.values(), ids=FOLDING)
def test_reads_inside_loops_count_every_token(text: str, without: Any) -> None:
    """Inputs of layers inside the loop over chunks, tokens of the last chunk included: against hooks on every read."""
    module = compiled(text, without=without)
    (x,) = data(1, 2, 19, 4)
    seen: dict[str, Tensor] = {}
    weights = {p.data_ptr(): name for name, p in module.named_parameters()}
    linear = nn.functional.linear

    def spy(rows: Tensor, weight: Tensor, *more: Any) -> Tensor:
        name, flat = weights[weight.data_ptr()], rows.detach().reshape(-1, 4)
        seen[name] = seen.get(name, torch.zeros(4, 4, dtype=torch.float64)) + flat.mT @ flat / (2 * 19)
        return linear(rows, weight, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", spy)
        y, _ = module(x)
    y.square().mean().backward()
    assert set(seen) == set(weights.values()) == set(module.nsam_grams)
    for name, leaf in module.nsam_grams.items():
        torch.testing.assert_close(leaf.grad, seen[name], rtol=1e-12, atol=1e-12)


def test_a_cut_read_does_not_count() -> None:
    text = (
        HEAD
        + """system net(dim: int = 4) {
  input x: [dim]
  memory k : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn k(x) -> x; minimize l2; by gd(lr = 0.1); every 2 tokens; init zeros }
  transfer k -> m : direct
  output m(x) + k(2 * x)
}
"""
    )
    module = compiled(text)
    (x,) = data(1, 2, 6, 4)
    module(x)[0].sum().backward()
    torch.testing.assert_close(module.nsam_grams["k.weight"].grad, outer_mean(2 * x.reshape(-1, 4)))


def test_a_row_that_stands_for_many_tokens_counts_for_each() -> None:
    text = (
        HEAD
        + """system net(dim: int = 4) {
  input x: [dim]
  input c: [dim] per sequence
  memory w : linear(dim -> dim)
  memory b : vector(dim)
  memory u : linear(dim -> dim)
  output x + w(c) + u(b)
}
"""
    )
    module = compiled(text)
    with torch.no_grad():
        module.get_parameter("b.weight").normal_()
    (x,), (c,) = data(1, 3, 5, 4), data(1, 3, 4)
    module(x, c)[0].square().mean().backward()
    grams, b = module.nsam_grams, module.get_parameter("b.weight").detach()
    torch.testing.assert_close(grams["w.weight"].grad, outer_mean(c))
    torch.testing.assert_close(grams["u.weight"].grad, torch.outer(b, b))


def test_every_pass_of_a_repeat_has_its_own() -> None:
    text = (
        HEAD
        + """system block(dim: int) { input x: [dim]; memory w : linear(dim -> dim); output tanh(w(x)) }
system net(dim: int = 4) { input x: [dim]; let h = x; repeat 3 { h = h + block(h, dim) }; output h }
"""
    )
    module = compiled(text)
    (x,) = data(1, 2, 3, 4)
    module(x)[0].square().mean().backward()
    names = [f"repeat.{i}.block.w.weight" for i in range(3)]
    assert list(module.nsam_grams) == names
    h = x
    for name in names:
        torch.testing.assert_close(module.nsam_grams[name].grad, outer_mean(h.reshape(-1, 4)))
        h = h + torch.tanh(h @ module.get_parameter(name).detach().mT)


def test_gradients_through_the_state_bring_the_inputs_of_the_call_before() -> None:
    module = compiled(LOOP)
    first, second = data(2, 2, 8, 4)

    def brought(y: Tensor) -> dict[str, Tensor]:
        module.zero_grad()
        y.sum().backward()
        return {name: leaf.grad.clone() for name, leaf in module.nsam_grams.items()}

    y, state = module(first)
    both = brought(module(second, state)[0])
    held = nsam.take_sequences(module(first)[1], [0, 1])
    held |= {"sequence": {name: x.detach() for name, x in held["sequence"].items()}}
    one, two = brought(module(first)[0]), brought(module(second, held)[0])
    for name in both:
        torch.testing.assert_close(both[name], one[name] + two[name])
    assert y.requires_grad


def test_what_a_call_returns_may_be_changed_in_place() -> None:
    module = compiled(LINEAR)
    (x,) = data(1, 2, 3, 4)
    y, _ = module(x)
    y.mul_(2).sum().backward()
    torch.testing.assert_close(module.get_parameter("w.weight").grad, 2 * x.sum((0, 1)).expand(3, 4))


def test_under_autocast_sums_are_in_float32() -> None:
    module = compiled(MLP).float()
    x = torch.randn(4, 64, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = module(x)
    y.float().square().mean().backward()
    grams = module.nsam_grams
    assert {leaf.grad.dtype for leaf in grams.values()} == {torch.float32}
    torch.testing.assert_close(grams["a.weight"].grad, outer_mean(x.reshape(-1, 4)), rtol=1e-5, atol=1e-6)


def test_it_runs_where_its_inputs_are() -> None:
    module = compiled(LOOP).to("meta")
    module(torch.randn(2, 19, 4, dtype=torch.float64, device="meta"))[0].sum().backward()
    optimizer = nsam.optimizer("std.rules", "safe_dgd", module, lr=0.1)
    optimizer.step()
    assert {leaf.device.type for leaf in module.nsam_grams.values()} == {"meta"}


def test_weights_in_half_precision_have_sums_in_float32() -> None:
    module = compiled(MLP).to(torch.bfloat16)
    module(torch.randn(2, 3, 4).bfloat16())[0].float().sum().backward()
    assert {leaf.grad.dtype for leaf in module.nsam_grams.values()} == {torch.float32}
    optimizer = nsam.optimizer("std.rules", "dgd", module, lr=0.1)
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in module.parameters())


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


# --- compiled, computed again, recorded --------------------------------------------------------------


def steps_of(text: str, xs: list[Tensor], **options: Any) -> dict[str, Tensor]:
    module = compiled(text, **options)
    run(module, nsam.optimizer("std.rules", "safe_dgd", module, lr=0.1), xs, squares)
    return dict(module.state_dict())


@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
@pytest.mark.parametrize("text", [MLP, LOOP], ids=["layers", "loops"])
def test_compiled_is_uncompiled(text: str) -> None:
    xs = data(3, 2, 32, 4)
    one, two = steps_of(text, xs), steps_of(text, xs, compiled=True)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("default")
def test_compiled_under_autocast() -> None:
    module = compiled(MLP, compiled=True).float()
    x = torch.randn(4, 64, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = module(x)
    y.float().square().mean().backward()
    torch.testing.assert_close(module.nsam_grams["a.weight"].grad, outer_mean(x.reshape(-1, 4)), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("default")
def test_a_compiled_optimizer_takes_the_same_steps() -> None:
    xs = data(4, 2, 3, 4)
    one, two = compiled(MLP), compiled(MLP)
    run(one, nsam.optimizer("std.rules", "safe_dgd", one, lr=0.1), xs, squares)
    run(two, nsam.optimizer("std.rules", "safe_dgd", two, lr=0.1, compiled=True), xs, squares)
    for name, value in two.state_dict().items():
        torch.testing.assert_close(value, one.state_dict()[name], rtol=1e-10, atol=1e-12)


REPEAT = (
    HEAD
    + """system block(dim: int) {
  input x: [dim]
  memory k, v, o : linear(dim -> dim)
  memory m : linear(dim -> dim) {
    learn normalize(k(x)) -> v(m(x)); minimize l2; by gd(lr = 0.1); every 4 tokens; init zeros
  }
  output o(tanh(m(x))) + x
}
system net(dim: int = 4) { input x: [dim]; let h = x; repeat 3 { h = block(h, dim) }; output h }
"""
)


@pytest.mark.parametrize(("passes", "group", "kept"), [(0, 2, 0), (0, 1, 2), (2, 0, 0), (3, 2, 1)])
def test_computed_again_in_the_backward_pass_it_is_the_same(passes: int, group: int, kept: int) -> None:
    (x,) = data(1, 2, 24, 4)
    found = []
    for plan in (Plan(Schedule()), Plan(Schedule(passes, group, kept))):
        module = compiled(REPEAT)
        with plan.in_force():
            y, _ = module(x)
        squares(y, x).backward()
        grads = {name: p.grad for name, p in module.named_parameters()}
        found.append({**grads, **{f"{name}.keys": leaf.grad for name, leaf in module.nsam_grams.items()}})
    assert found[0].keys() == found[1].keys()
    for name, one in found[0].items():
        assert one is not None, name
        assert torch.equal(one, found[1][name]), name


def test_a_budget_counts_and_keeps_the_same() -> None:
    module, other = compiled(REPEAT, memory="1GB"), compiled(REPEAT)
    xs = data(2, 2, 24, 4)
    for one in (module, other):
        run(one, nsam.optimizer("std.rules", "dgd", one, lr=0.1), xs, squares)
    assert_same(module, dict(other.state_dict()), 0)


class Again:
    """Stands in for a CUDA graph: runs the work again into the tensors that it returned first."""

    def warm_up(self, run: Callable[[], Any]) -> None:
        run()

    def record(self, run: Callable[[], Any]) -> Callable[[], None]:
        first = list(run())

        def replay() -> None:
            for mine, new in zip(first, run(), strict=True):
                mine.copy_(new)

        return replay


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


# --- refused -----------------------------------------------------------------------------------------


def refused(text: str, rule: str = "dgd", **options: Any) -> tuple[str, str]:
    module = compiled(text, **options)
    with pytest.raises(nsam.ProgramError) as caught:
        nsam.optimizer("std.rules", rule, module, lr=0.1)
    (found,) = caught.value.diagnostics
    assert found.code == "N0226"
    return found.message, found.help or ""


def test_a_module_compiled_without_keys_is_refused_with_what_to_do() -> None:
    message, help = refused(MLP, keys=False)
    assert "`dgd` needs `key`" in message
    assert "`a.weight`" in message
    assert "nsam.compile(…, keys=True)" in help
    message, help = refused(MLP, backend="reference")
    assert "nsam.compile(…, keys=True)" in help


def test_bare_tensors_and_modules_of_torch_are_refused() -> None:
    for target in (nn.Linear(2, 2, bias=False), [nn.Parameter(torch.ones(2, 2))]):
        with pytest.raises(nsam.ProgramError, match="N0226") as caught:
            nsam.optimizer("std.rules", "dgd", target, lr=0.1)
        assert "keys=True" in (caught.value.diagnostics[0].help or "")


@pytest.mark.parametrize("rule", ["generalized_huber", "generalized_lp"])
def test_more_of_the_key_than_its_outer_product_is_refused(rule: str) -> None:
    module = compiled(MLP)
    with pytest.raises(nsam.ProgramError) as caught:
        nsam.optimizer("std.optimizers", rule, module, lr=0.1)
    (found,) = caught.value.diagnostics
    assert found.code == "N0226"
    assert "`key` in more than `outer(key, key)` and `dot(key, key)`" in found.message
    assert [label.span.text for label in found.secondary] == ["key"]


def test_parameters_without_layer_inputs_are_named() -> None:
    fast = (
        HEAD
        + "system net(dim: int = 4) { input x: [dim]\n memory m : linear(dim -> dim) "
        + "{ learn x -> x; minimize l2; by gd(lr = 0.1); every 4 tokens }\n output m(x) }\n"
    )
    assert "`m.weight` has none: it is what `m`, which moves" in refused(fast)[0]
    norm = HEAD + "system net(dim: int = 4) { input x: [dim]; memory n : rmsnorm(dim); output n(x) }\n"
    message, help = refused(norm)
    assert "`n` is a rmsnorm" in message
    assert "for others" in help


def test_a_gradient_from_elsewhere_is_an_error() -> None:
    module = compiled(LINEAR)
    optimizer = nsam.optimizer("std.rules", "dgd", module, lr=0.1)
    module.get_parameter("w.weight").grad = torch.ones(3, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"`w\.weight` has a gradient, but its layer's inputs did not come"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_several_processes_are_refused(tmp_path: Any) -> None:
    import torch.distributed as dist

    module = compiled(LINEAR)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with pytest.raises(nsam.ProgramError, match="not averaged"):
            nsam.optimizer("std.rules", "dgd", module, lr=0.1, sharded=True)
    finally:
        dist.destroy_process_group()
