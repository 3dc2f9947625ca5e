"""Rules that use each token's `key` and `err` around a model, against loops over tokens written by hand (eq. 59-60)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from keyed_programs import CLOCK, HEAD, LINEAR, LONG, LOOP, MLP, TWICE, assert_same, compiled, data, run, squares
from torch import Tensor, nn

import nsam
from nsam.backends.torch.cuda_graph import GraphedStep
from tests.recorder import Again

Read = tuple[Tensor, Tensor]
"""Inputs of a layer [tokens, in] and what it returns for them [tokens, out]."""
Token = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What a token adds to a matrix: of the matrix, its key and its err."""


def huber(lr: float, bound: float) -> Token:
    def token(w: Tensor, key: Tensor, err: Tensor) -> Tensor:
        return -lr * torch.outer((w @ key + err).clamp(-bound, bound), key)

    return token


def lp(lr: float, p: float) -> Token:
    def token(w: Tensor, key: Tensor, err: Tensor) -> Tensor:
        miss = w @ key + err
        return -lr * torch.outer(miss.sign() * miss.abs() ** (p - 1), key)

    return token


def mean_over_tokens(w: Tensor, reads: Iterable[Read], loss: Tensor, token: Token) -> Tensor:
    """Σ over reads of the mean over tokens of what each adds; err of a token is N times the loss's gradient."""
    total = torch.zeros_like(w)
    for keys, outputs in reads:
        (gradient,) = torch.autograd.grad(loss, outputs, retain_graph=True)
        count = keys.shape[0]
        for key, e in zip(keys.detach(), gradient, strict=True):
            total += token(w.detach(), key, count * e) / count
    return total


def linear(w: Tensor, rows: Tensor) -> Read:
    return rows, rows @ w.mT


def mlp_reads(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, list[list[Read]]]]:
    """MLP by hand: its output, and for each weight the reads of each head."""
    a = linear(weights["a.weight"], x.reshape(-1, 4))
    h = torch.tanh(a[1])
    first, second = [], []
    for head in range(2):
        first.append([linear(weights["b.w1"][head], h[:, 4 * head : 4 * head + 4])])
        second.append([linear(weights["b.w2"][head], torch.tanh(first[-1][0][1]))])
    y = torch.cat([read[0][1] for read in second], -1)
    return y.reshape(*x.shape[:-1], 4), {"a.weight": [[a]], "b.w1": first, "b.w2": second}


@pytest.mark.parametrize(
    ("rule", "arguments", "token"),
    [
        ("generalized_huber", {"lr": 0.2, "bound": 0.4}, huber(0.2, 0.4)),
        ("generalized_lp", {"lr": 0.05}, lp(0.05, 3)),
        ("generalized_lp", {"lr": 0.05, "p": 1.5}, lp(0.05, 1.5)),
    ],
)
def test_a_network_with_heads(rule: str, arguments: dict[str, float], token: Token) -> None:
    module, xs = compiled(MLP, keys="tokens"), data(5, 3, 4, 4)
    weights = {name: w.clone() for name, w in module.state_dict().items()}
    run(module, nsam.optimizer("std.optimizers", rule, module, retain=0.98, **arguments), xs, squares)
    for x in xs:
        leaves = {name: w.requires_grad_() for name, w in weights.items()}
        y, reads = mlp_reads(leaves, x)
        loss = squares(y, x)
        moved = {}
        for name, w in leaves.items():
            parts = w.unbind(0) if w.dim() == 3 else (w,)
            added = [mean_over_tokens(p, r, loss, token) for p, r in zip(parts, reads[name], strict=True)]
            moved[name] = (0.98 * w + (torch.stack(added) if w.dim() == 3 else added[0])).detach()
        weights = moved
    assert_same(module, weights)


def test_one_token_is_the_published_step() -> None:
    """Eq. 59-60 with the pair (x, −e) of a layer: W ← W − η clip(W x + e) xᵀ, e = W x − v of the loss ½‖W x − v‖²."""
    module = compiled(LINEAR, keys="tokens")
    optimizer = nsam.optimizer("std.optimizers", "generalized_huber", module, lr=0.3, bound=0.5)
    w = module.state_dict()["w.weight"].clone()
    for x in data(5, 1, 1, 4):
        k, v = x[0, 0], x[0, 0, :3].cos()
        optimizer.zero_grad()
        (0.5 * (module(x)[0][0, 0] - v).square().sum()).backward()
        optimizer.step()
        w = w - 0.3 * torch.outer((w @ k + w @ k - v).clamp(-0.5, 0.5), k)
    assert_same(module, {"w.weight": w})


@pytest.mark.parametrize(
    "rule", ["generalized_huber(lr = 0.3, bound = 0.4, retain = 0.98)", "generalized_lp(lr = 0.1)"]
)
def test_around_the_model_is_inside_the_sequence(rule: str) -> None:
    """One rule, one linear memory: token after token inside a sequence, and step after step around a model."""
    inside = f"""nsam 1
    use std.optimizers (generalized_huber, generalized_lp)
    system net(dim: int = 4) {{
      input k: [dim]
      input v: [dim]
      memory m : linear(dim -> dim) {{ learn k -> v; minimize l2; by {rule}; every 1 token; reset never }}
      output m(k)
    }}
    """
    around = inside.replace("learn k -> v; minimize l2", "minimize task").replace(
        "every 1 token; reset never", "every 1 step"
    )
    fast, slow = compiled(inside, keys=False), compiled(around.replace("input v: [dim]\n", ""), keys=False)
    slow.load_state_dict(fast.state_dict())
    optimizer = nsam.optimizer("std.rules", "gd", slow, lr=0.1)
    state = None
    for k, v in zip(data(6, 1, 1, 4), [x.cos() for x in data(6, 1, 1, 4)], strict=True):
        seen, state = fast(k, v, state)
        optimizer.zero_grad()
        y, _ = slow(k)
        torch.testing.assert_close(y, seen, rtol=1e-12, atol=1e-12)
        (0.5 * (y - v).square().sum()).backward()
        optimizer.step()


def test_a_layer_that_is_read_twice_adds_up() -> None:
    module, xs = compiled(TWICE, keys="tokens"), data(5, 2, 3, 4)
    w = module.state_dict()["w.weight"].clone()
    optimizer = nsam.optimizer("std.optimizers", "generalized_huber", module, lr=0.2, bound=0.3, retain=0.97)
    run(module, optimizer, xs, squares)
    for x in xs:
        w.requires_grad_()
        first = linear(w, x.reshape(-1, 4))
        second = linear(w, torch.tanh(first[1]))
        loss = squares(second[1].reshape(x.shape), x)
        w = (0.97 * w + mean_over_tokens(w, (first, second), loss, huber(0.2, 0.3))).detach()
    assert_same(module, {"w.weight": w})


def test_a_memory_of_the_step_clock_has_the_tokens_of_its_period() -> None:
    text = CLOCK.replace("dgd(lr = 0.05, retain = 0.9)", "generalized_huber(lr = 0.05, bound = 0.4, retain = 0.9)")
    text = text.replace("use std.rules", "use std.optimizers (generalized_huber)\nuse std.rules")
    module, xs = compiled(text, keys=False), data(12, 2, 3, 4)
    assert set(module.nsam_rows) == {"b.weight"}  # only what a rule asks for is kept
    start = {name: w.clone() for name, w in module.state_dict().items()}
    run(module, nsam.optimizer("std.rules", "gd", module, lr=0.1), xs, squares)
    a, b = start["a.weight"].requires_grad_(), start["b.weight"].requires_grad_()
    added = torch.zeros_like(b)
    for t, x in enumerate(xs, 1):
        read = linear(b, torch.tanh(x.reshape(-1, 4) @ a.mT))
        loss = squares(read[1].reshape(*x.shape[:-1], 3), x)
        added = added + mean_over_tokens(b, (read,), loss, huber(0.05, 0.4))
        (ga,) = torch.autograd.grad(loss, [a])
        a = (a - 0.1 * ga).detach().requires_grad_()
        if t % 4 == 0:
            b = (0.9 * b + added).detach().requires_grad_()
            added = torch.zeros_like(b)
    assert_same(module, {"a.weight": a.detach(), "b.weight": b.detach()})


def test_passes_before_a_step_are_one_batch() -> None:
    """Losses undivided and lr divided by their number: the same step as one pass with all sequences."""
    one, two = compiled(MLP, keys="tokens"), compiled(MLP, keys="tokens")
    (x,) = data(1, 6, 4, 4)
    whole = nsam.optimizer("std.optimizers", "generalized_huber", one, lr=0.3, bound=0.4, retain=0.9)
    run(one, whole, [x], squares)
    parts = nsam.optimizer("std.optimizers", "generalized_huber", two, lr=0.1, bound=0.4, retain=0.9)
    for part in x.chunk(3):
        squares(two(part)[0], part).backward()
    parts.step()
    assert_same(two, dict(one.state_dict()))


WIDE_OPEN = {"network": MLP, "loops": LOOP, "twice": TWICE}


@pytest.mark.parametrize("text", WIDE_OPEN.values(), ids=WIDE_OPEN)
@pytest.mark.parametrize("passes", [1, 2])
def test_with_the_bound_wide_open_it_is_dgd(text: str, passes: int) -> None:
    huber, dgd = compiled(text, keys="tokens"), compiled(text)
    xs = data(6, 2, 19, 4)
    for module, library, rule, more in (
        (huber, "std.optimizers", "generalized_huber", {"bound": 1e9}), (dgd, "std.rules", "dgd", {}),
    ):  # fmt: skip
        optimizer = nsam.optimizer(library, rule, module, lr=0.1, retain=0.97, **more)
        for i in range(0, len(xs), passes):
            for x in xs[i : i + passes]:
                squares(module(x)[0], x).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same(huber, dict(dgd.state_dict()))


@pytest.mark.parametrize("rule", ["dgd", "safe_dgd"])
def test_a_module_that_keeps_tokens_serves_rules_of_sums_too(rule: str) -> None:
    one, two, xs = compiled(MLP, keys="tokens"), compiled(MLP), data(4, 3, 4, 4)
    for module in (one, two):
        run(module, nsam.optimizer("std.rules", rule, module, lr=0.2, retain=0.99), xs, squares)
    assert_same(one, dict(two.state_dict()))


OWN = """nsam 1
use std.rules (gd)

# Numbers, vectors and matrices of each token, a state, and a memory that learns from tokens.
rule mine(lr, beta = 0.5) {
  state pull = zeros
  memory trace : like(self) { learn outer(err, key); minimize l2; by gd(lr = 0.3); every 1 update; reads running }
  let size = 1 + dot(key, key)
  let miss = self @ key + err / (norm(err) + 0.1)
  pull <- beta * pull + outer(tanh(miss), key) / size + grad
  self <- self * (1 - lr * norm(err)) - lr * (pull + trace) - lr * outer(miss, abs(key)) @ outer(key, key)
}

# The matrix of each token by itself: no product of rows gives its signs.
rule signs(lr) {
  let step = outer(err, key)
  self <- 0.9 * self - lr * sign(step) * abs(self) / (norm(step) + 1)
}

# A memory that maps keys to errors, read at keys.
rule learnt(lr) {
  memory net : linear(cols(self) -> rows(self)) {
    learn key -> clip(err, -1, 1); minimize l2; by gd(lr = 0.1, retain = 0.9); every 2 updates summed; reads running
  }
  self <- self - lr * net - lr * outer(net(key), key)
}
system net(dim: int = 4) { input x: [dim]; memory w : linear(dim -> 3); output w(x) }
"""


def tokens_of(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, errors and the gradient of LINEAR by hand."""
    leaf = w.clone().requires_grad_()
    keys, y = linear(leaf, x.reshape(-1, 4))
    loss = squares(y.reshape(*x.shape[:-1], 3), x)
    gradient, e = torch.autograd.grad(loss, [leaf, y])
    return keys, keys.shape[0] * e, gradient


def mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)


def test_a_rule_of_the_users_own() -> None:
    module, xs = compiled(OWN, keys="tokens"), data(6, 2, 3, 4)
    w = module.state_dict()["w.weight"].clone()
    run(module, nsam.optimizer(nsam.loads(OWN), "mine", module, lr=0.1), xs, squares)
    pull, trace = torch.zeros_like(w), torch.zeros_like(w)
    for x in xs:
        keys, errs, gradient = tokens_of(w, x)
        pairs = list(zip(keys, errs, strict=True))
        trace = mean(trace - 0.3 * (trace - torch.outer(e, k)) for k, e in pairs)
        misses = [w @ k + e / (e.norm() + 0.1) for k, e in pairs]
        tops = zip(misses, keys, strict=True)
        pull = mean(0.5 * pull + torch.outer(m.tanh(), k) / (1 + k @ k) + gradient for m, k in tops)
        w = mean(
            w * (1 - 0.1 * e.norm()) - 0.1 * (pull + trace) - 0.1 * torch.outer(m, k.abs()) @ torch.outer(k, k)
            for m, (k, e) in zip(misses, pairs, strict=True)
        )
    assert_same(module, {"w.weight": w})


@pytest.mark.parametrize("at_once", [1 << 24, 30])
def test_a_matrix_of_each_token(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsam.backends.torch.token_rows.AT_ONCE", at_once)
    module, xs = compiled(OWN, keys="tokens"), data(6, 2, 3, 4)
    w = module.state_dict()["w.weight"].clone()
    run(module, nsam.optimizer(nsam.loads(OWN), "signs", module, lr=0.1), xs, squares)
    for x in xs:
        keys, errs, _ = tokens_of(w, x)
        steps = [torch.outer(e, k) for k, e in zip(keys, errs, strict=True)]
        w = mean(0.9 * w - 0.1 * step.sign() * w.abs() / (step.norm() + 1) for step in steps)
    assert_same(module, {"w.weight": w})


def test_a_memory_inside_a_rule_learns_from_tokens() -> None:
    module, xs = compiled(OWN, keys="tokens"), data(6, 2, 3, 4)
    w = module.state_dict()["w.weight"].clone()
    run(module, nsam.optimizer(nsam.loads(OWN), "learnt", module, lr=0.1), xs, squares)
    net, total = torch.zeros_like(w), torch.zeros_like(w)
    for t, x in enumerate(xs, 1):
        keys, errs, _ = tokens_of(w, x)
        total = total + mean(torch.outer(net @ k - e.clamp(-1, 1), k) for k, e in zip(keys, errs, strict=True))
        if t % 2 == 0:
            net, total = 0.9 * net - 0.1 * total, torch.zeros_like(total)
        w = mean(w - 0.1 * net - 0.1 * torch.outer(net @ k, k) for k in keys)
    assert_same(module, {"w.weight": w})


def steps_of(text: str, xs: list[Tensor], rule: str = "generalized_huber", **options: Any) -> nn.Module:
    module = compiled(text, keys="tokens", **options)
    run(module, nsam.optimizer("std.optimizers", rule, module, lr=0.1), xs, squares)
    return module


@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
@pytest.mark.parametrize("text", [MLP, pytest.param(LOOP, marks=LONG)], ids=["layers", "loops"])
@pytest.mark.usefixtures("short_calls", "quick_kernels")
def test_compiled_is_uncompiled(text: str) -> None:
    xs = data(3, 2, 32, 4)
    wanted = steps_of(text, xs).state_dict()
    for name, value in steps_of(text, xs, compiled=True).state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("rule", ["mine", "signs"])
def test_a_compiled_optimizer_takes_the_same_steps(rule: str) -> None:
    xs, own = data(4, 2, 3, 4), nsam.loads(OWN)
    one, two = compiled(OWN, keys="tokens"), compiled(OWN, keys="tokens")
    run(one, nsam.optimizer(own, rule, one, lr=0.1), xs, squares)
    run(two, nsam.optimizer(own, rule, two, lr=0.1, compiled=True), xs, squares)
    for name, value in two.state_dict().items():
        torch.testing.assert_close(value, one.state_dict()[name], rtol=1e-10, atol=1e-12)


def test_a_recorded_step_brings_the_tokens_too() -> None:
    xs = data(5, 3, 4, 4)
    plain, graphed = steps_of(MLP, xs), compiled(MLP, keys="tokens")

    def loss(x: Tensor) -> tuple[Tensor, None]:
        return squares(graphed(x)[0], x), None

    step = GraphedStep(graphed, loss, Again())
    optimizer = nsam.optimizer("std.optimizers", "generalized_huber", graphed, lr=0.1)
    for x in xs:
        step(x)
        optimizer.step()
        optimizer.zero_grad()
    assert_same(graphed, dict(plain.state_dict()), 0)


def test_a_saved_optimizer_goes_on_within_a_period() -> None:
    text = CLOCK.replace("dgd(lr = 0.05, retain = 0.9)", "generalized_huber(lr = 0.05, bound = 0.4)")
    text = text.replace("use std.rules", "use std.optimizers (generalized_huber)\nuse std.rules")
    xs = data(8, 2, 3, 4)
    whole, other = compiled(text, keys=False), compiled(text, keys=False)
    run(whole, nsam.optimizer("std.rules", "gd", whole, lr=0.1), xs, squares)
    first = nsam.optimizer("std.rules", "gd", other, lr=0.1)
    run(other, first, xs[:6], squares)
    second = nsam.optimizer("std.rules", "gd", other, lr=0.1)
    second.load_state_dict(first.state_dict())
    run(other, second, xs[6:], squares)
    assert_same(other, dict(whole.state_dict()), 0)


@pytest.mark.parametrize("by", ["optimizer", "module"])
def test_zero_grad_forgets_the_tokens_too(by: str) -> None:
    one, two = compiled(MLP, keys="tokens"), compiled(MLP, keys="tokens")
    xs = data(2, 3, 4, 4)
    for module, seen in ((one, xs), (two, xs[1:])):
        optimizer = nsam.optimizer("std.optimizers", "generalized_huber", module, lr=0.2)
        for x in seen:
            (optimizer if by == "optimizer" else module).zero_grad()  # type: ignore[attr-defined]
            squares(module(x)[0], x).backward()
        optimizer.step()
    assert_same(one, dict(two.state_dict()), 0)


SCALED = (
    HEAD
    + """rule by_error(lr) { self <- self - lr * outer(err * abs(err), key) }
system net(dim: int = 4) {
  input x: [dim]
  memory a : linear(dim -> dim)
  memory b : linear(dim -> 3) { minimize task; by gd(lr = 0.05); every 2 steps }
  output b(tanh(a(x)))
}
"""
)


def scaled_steps(enabled: bool, *, overflow: bool = False) -> dict[str, Tensor]:
    """Weights after four steps of two backward passes each; with `overflow` one more is skipped before the last."""
    module = compiled(SCALED, keys="tokens")
    optimizer = nsam.optimizer(nsam.loads(SCALED), "by_error", module, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=2.0**9, growth_interval=1)
    for number, x in enumerate(data(5, 2, 3, 4)):
        if number == 3 and not overflow:
            continue
        optimizer.zero_grad()
        for _ in range(2):
            scaler.scale(squares(module(x)[0], x)).backward()
        if number == 3:
            module.get_parameter("a.weight").grad[0, 0] = torch.inf  # type: ignore[index]
        scaler.step(optimizer)
        scaler.update()
    return module.state_dict()


def test_a_scaled_loss_has_errors_that_are_not() -> None:
    wanted = scaled_steps(False)
    for overflow in (False, True):
        found = scaled_steps(True, overflow=overflow)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_gradients_that_are_unscaled_beforehand_leave_errors_behind() -> None:
    module = compiled(SCALED, keys="tokens")
    optimizer = nsam.optimizer(nsam.loads(SCALED), "by_error", module, lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    (x,) = data(1, 2, 3, 4)
    scaler.scale(squares(module(x)[0], x)).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(nsam.ProgramError, match=r"N0226.*`scaler\.unscale_\(optimizer\)` does not reach"):
        scaler.step(optimizer)
