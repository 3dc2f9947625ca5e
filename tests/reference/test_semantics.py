"""The corners of the language: resets, initial states, transfers, clocks, state between calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nsam.backends.reference import ReferenceModule, new_sequence, values
from nsam.dsl.checked import Unit

Build = Callable[..., Unit]
Random = Callable[..., Tensor]


def _module(unit: Unit) -> ReferenceModule:
    return ReferenceModule(unit, torch.Generator().manual_seed(0))


def _weights(module: ReferenceModule) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters()}


def _both(module: ReferenceModule, *inputs: Tensor) -> Tensor:
    """Run NumPy and torch, check that they agree, and return torch's output."""
    y, _ = module(*inputs)
    arrays = {name: p.detach().numpy() for name, p in module.named_parameters()}
    named = {given.name: x.numpy() for given, x in zip(module.unit.inputs, inputs, strict=True)}
    np.testing.assert_allclose(values(module.unit, arrays, named)[0], y.detach().numpy(), rtol=1e-11, atol=1e-12)
    return y


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-12)


def test_reset_starts_from_the_learned_state_and_forgets_the_trace(build: Build, random: Random) -> None:
    text = """system s() {
      input x: [3]
      memory m : linear(3 -> 3) {
        learn x -> x; minimize l2; by momentum(lr = 0.1); every 2 tokens; reset every 4 tokens; init learned
      }
      output m(x)
    }"""
    module, x = _module(build(text)), random(1, 10, 3)
    y = _both(module, x)
    for start in (0, 4, 8):
        alone, _ = module(x[:, start : start + 4])
        torch.testing.assert_close(y[:, start : start + 4], alone, rtol=1e-13, atol=1e-14)
    assert not torch.allclose(y[:, 2:4].detach(), x[:, 2:4] @ module.get_parameter("m.weight").detach().T)


def test_the_window_stops_at_a_reset(build: Build, random: Random) -> None:
    text = """system s() {
      input x: [3]
      memory m : linear(3 -> 3) {
        learn x -> x over last 3 tokens; minimize l2; by gd(lr = 0.1); every 1 token; reset every 4 tokens; init zeros
      }
      output m(x)
    }"""
    module, x = _module(build(text)), random(1, 8, 3)
    y = _both(module, x)
    _close(y[:, 4:], module(x[:, 4:])[0].detach())


NESTED = """system s() {
  input x: [3]
  memory k : linear(3 -> 3)
  memory slow : linear(3 -> 3) { learn k(x) -> x; minimize l2; by gd(lr = 0.1); every 4 tokens summed; init learned }
  memory fast : linear(3 -> 3) {
    learn k(x) -> x; minimize l2; by gd(lr = 0.2); every 2 tokens; reset every 4 tokens; init slow
  }
  output chain([slow, fast], x)
}"""


def test_a_fast_memory_starts_from_what_the_slow_one_has_just_learnt(build: Build, random: Random) -> None:
    module, x = _module(build(NESTED)), random(1, 11, 3)
    y = _both(module, x)
    p = _weights(module)
    assert set(p) == {"k.weight", "slow.weight"}
    slow = boundary = running = p["slow.weight"]
    sums = torch.zeros(3, 3, dtype=torch.float64)
    for t, row in enumerate(x[0]):
        _close(y[0, t], boundary @ slow @ row)
        key = p["k.weight"] @ row
        sums = sums + torch.outer(slow @ key - row, key)
        running = running - 0.2 * torch.outer(boundary @ key - row, key)
        if (t + 1) % 2 == 0:
            boundary = running
        if (t + 1) % 4 == 0:
            slow, sums = slow - 0.1 * sums, torch.zeros_like(sums)
            boundary = running = slow


def test_the_initial_state_carries_the_gradient(build: Build, random: Random) -> None:
    """`slow` is only read as an initial state here; full and first-order transfer differ by that gradient."""
    text = NESTED.replace("chain([slow, fast], x)", "fast(x)")
    full, first_order = (
        _module(build(text)),
        _module(build(text.replace("output", "transfer slow -> fast : direct\noutput"))),
    )
    x = random(1, 3, 3)
    full(x)[0].sum().backward()
    first_order(x)[0].sum().backward()
    gradient = full.get_parameter("slow.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 0
    assert first_order.get_parameter("slow.weight").grad is None


def test_generated_weights(build: Build, random: Random) -> None:
    text = """system s() {
      input x: [3]
      input c: [2] per sequence
      memory writer : linear(2 -> 12)
      memory fast : mlp(3 -> 2 -> 3, act = tanh) { init writer(c) }
      transfer writer -> fast : generate
      output fast(x)
    }"""
    module, x, c = _module(build(text)), random(2, 4, 3), random(2, 2, seed=1)
    y = _both(module, x, c)
    assert set(_weights(module)) == {"writer.weight"}
    for i in range(2):
        flat = _weights(module)["writer.weight"] @ c[i]
        first, second = flat[:6].reshape(2, 3), flat[6:].reshape(3, 2)
        _close(y[i], torch.tanh(x[i] @ first.T) @ second.T)
    y.sum().backward()
    gradient = module.get_parameter("writer.weight").grad
    assert gradient is not None
    assert gradient.abs().min() > 0


def test_generated_states_learn_and_return(build: Build, random: Random) -> None:
    """A generated initial state can move on the token clock, and is written again at each reset."""
    text = """system s() {
      input x: [2]
      input c: [2] per sequence
      memory writer : linear(2 -> 4)
      memory m : linear(2 -> 2) {
        learn x -> x; minimize l2; by gd(lr = 0.1); every 1 token; reset every 3 tokens; init writer(c)
      }
      output m(x)
    }"""
    module, x, c = _module(build(text)), random(1, 7, 2), random(1, 2, seed=1)
    y = _both(module, x, c)
    start = (_weights(module)["writer.weight"] @ c[0]).reshape(2, 2)
    m = start
    for t, row in enumerate(x[0]):
        _close(y[0, t], m @ row)
        m = start if (t + 1) % 3 == 0 else m - 0.1 * torch.outer(m @ row - row, row)


DETACHED = """system s() {
  input x: [3]
  memory q, k, v, up : linear(3 -> 3)
  let h = up(x)
  let key = normalize(k(h))
  memory m : linear(3 -> 3) {
    learn key -> v(h); minimize l2; by dgd(lr = 0.1); every 1 token; reads running; init zeros
  }
  transfer k -> m : direct
  output m(q(x)) + key * 0.001
}"""


def test_a_direct_transfer_stops_the_gradient_where_it_enters(build: Build, random: Random) -> None:
    x = random(1, 5, 3)
    cut, whole = _module(build(DETACHED)), _module(build(DETACHED.replace("transfer k -> m : direct", "")))
    y = _both(cut, x)
    assert torch.equal(y, whole(x)[0])
    y.square().sum().backward()
    # The same loop by hand, the key detached in the memory's clauses only.
    p = {name: w.clone().requires_grad_() for name, w in _weights(cut).items()}
    m, total = torch.zeros(3, 3, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for row in x[0]:
        h = p["up.weight"] @ row
        key = p["k.weight"] @ h
        key = key / key.norm()
        given, value = key.detach(), p["v.weight"] @ h
        m = m - 0.1 * torch.outer(m @ given, given) - 0.1 * torch.outer(m @ given - value, given)
        total = total + (m @ (p["q.weight"] @ row) + key * 0.001).square().sum()
    total.backward()
    for name, weight in p.items():
        torch.testing.assert_close(cut.get_parameter(name).grad, weight.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_reads_of_running_memories_wait_for_their_update(build: Build, random: Random) -> None:
    """`b` learns from what `a` answers after the current token, whatever the order of declaration."""
    text = """system s() {
      input x: [3]
      memory b : linear(3 -> 3) {
        learn x -> a(x); minimize dot; by gd(lr = 1); every 1 token; reads running; init zeros
      }
      memory a : linear(3 -> 3) { learn x -> x; minimize dot; by gd(lr = 1); every 1 token; reads running; init zeros }
      output b(x)
    }"""
    module, x = _module(build(text)), random(1, 4, 3)
    y = _both(module, x)
    a = b = torch.zeros(3, 3, dtype=torch.float64)
    for t, row in enumerate(x[0]):
        a = a + torch.outer(row, row)
        b = b + torch.outer(a @ row, row)
        _close(y[0, t], b @ row)


def test_reset_never_survives_a_new_sequence(build: Build, random: Random) -> None:
    text = """system s() {
      input x: [3]
      memory taps : conv(3, 2)
      memory kept : linear(3 -> 3) {
        learn x -> x; minimize l2; by gd(lr = 0.1); every 2 tokens; reset never; init zeros
      }
      memory lost : linear(3 -> 3) { learn x -> x; minimize l2; by gd(lr = 0.1); every 2 tokens; init zeros }
      output concat(kept(x), lost(taps(x)))
    }"""
    module, x = _module(build(text)), random(1, 5, 3)
    first, state = module(x)
    second, _ = module(x, state=new_sequence(state))
    assert torch.equal(first[..., 3:], second[..., 3:])
    assert not torch.allclose(first[..., :3], second[..., :3])
    # `kept` saw five tokens: its period closes with the first token of the new sequence.
    stream, _ = module(torch.cat([x, x], 1))
    assert torch.equal(second[..., :3], stream[:, 5:, :3])


def test_value_less_memories_track_their_context(build: Build, random: Random) -> None:
    text = """system s() {
      input x: [3]
      memory total : vector(3) { learn x; minimize dot; by gd(lr = 1); every 1 token; reads running; init zeros }
      memory mean  : vector(3) { learn x; minimize l2; by gd(lr = 0.25); every 1 token; reads running; init zeros }
      output concat(total, mean)
    }"""
    module, x = _module(build(text)), random(1, 6, 3)
    y = _both(module, x)
    _close(y[0, :, :3], x[0].cumsum(0))
    tracked = torch.zeros(3, dtype=torch.float64)
    for t, row in enumerate(x[0]):
        tracked = tracked + 0.25 * (row - tracked)
        _close(y[0, t, 3:], tracked)


def test_frozen_and_stepped_memories_are_constants_of_a_sequence(build: Build, random: Random) -> None:
    text = """system s() {
      input x: [3]
      memory level[p in [1, 4]] : mlp(3 -> 6 -> 3, act = gelu, residual) { minimize task; every p steps }
      memory weight : vector(2)
      output mix(softmax(weight), level, x) + chain(level, x)
    }"""
    module, x = _module(build(text)), random(2, 3, 3)
    y = _both(module, x)
    p = _weights(module)
    assert set(p) == {"level.0.w1", "level.0.w2", "level.1.w1", "level.1.w2", "weight.weight"}

    def block(i: int, h: Tensor) -> Tensor:
        return h + torch.nn.functional.gelu(h @ p[f"level.{i}.w1"].T) @ p[f"level.{i}.w2"].T

    _close(y, 0.5 * block(0, x) + 0.5 * block(1, x) + block(1, block(0, x)))


def test_calls_and_repeats_have_their_own_memories(build: Build, random: Random) -> None:
    text = """
    system inner() { input x: [3]; memory w : linear(3 -> 3)
      memory m : linear(3 -> 3) { learn x -> w(x); minimize l2; by gd(lr = 0.1); every 2 tokens; init learned }
      output m(x) }
    system s(vocab: int = 5) {
      input tokens: token(vocab)
      memory embed : table(vocab, 3)
      let h = embed(tokens)
      repeat 2 { memory n : rmsnorm(3)
        h = h + inner(n(h)) + inner(h) }
      output embed.T(h)
    }"""
    module = _module(build(text))
    names = {f"repeat.{i}.{call}.{m}.weight" for i in range(2) for call in ("inner", "inner_2") for m in "wm"}
    assert set(_weights(module)) == names | {"repeat.0.n.weight", "repeat.1.n.weight", "embed.weight"}
    tokens = torch.tensor([[0, 3, 4, 1, 1], [2, 2, 0, 1, 4]])
    y = _both(module, tokens)
    p = _weights(module)

    def inner(prefix: str, x: Tensor) -> Tensor:
        w, boundary = p[f"{prefix}.w.weight"], p[f"{prefix}.m.weight"]
        running, out = boundary, []
        for t, row in enumerate(x):
            out.append(boundary @ row)
            running = running - 0.1 * torch.outer(boundary @ row - w @ row, row)
            boundary = running if (t + 1) % 2 == 0 else boundary
        return torch.stack(out)

    for i in range(2):
        h = p["embed.weight"][tokens[i]]
        for j in range(2):
            n = h * (h.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * p[f"repeat.{j}.n.weight"]
            h = h + inner(f"repeat.{j}.inner", n) + inner(f"repeat.{j}.inner_2", h)
        _close(y[i], h @ p["embed.weight"].T)


def test_gated_biased_and_layer_normed(build: Build, random: Random) -> None:
    text = """system s() {
      input x: [4]
      memory n : layernorm(4)
      memory g : mlp(4 -> 6 -> 4, act = silu, gated, bias)
      memory l : linear(4 -> 2, bias)
      output l(g(n(x)))
    }"""
    module, x = _module(build(text)), random(1, 3, 4)
    with torch.no_grad():
        for i, weight in enumerate(module.parameters()):
            weight.copy_(random(*weight.shape, seed=10 + i))
    y = _both(module, x)
    p = _weights(module)
    h = torch.nn.functional.layer_norm(x, (4,), p["n.weight"], p["n.bias"], eps=1e-6)
    h = torch.nn.functional.silu(h @ p["g.g1"].T) * (h @ p["g.w1"].T + p["g.b1"])
    h = h @ p["g.w2"].T + p["g.b2"]
    _close(y, h @ p["l.weight"].T + p["l.bias"])


def test_learning_biases_have_key_one(build: Build, random: Random) -> None:
    text = """system s() {
      input x: [3]
      memory m : linear(3 -> 2, bias) {
        learn x -> slice(x, 0, 2); minimize dot; by dgd(lr = 0.1, erase = 0.3); every 1 token; init learned
      }
      output m(x)
    }"""
    module, x = _module(build(text)), random(1, 4, 3)
    y = _both(module, x)
    w, b = _weights(module)["m.weight"], _weights(module)["m.bias"]
    for t, row in enumerate(x[0]):
        _close(y[0, t], w @ row + b)
        w = w - 0.3 * torch.outer(w @ row, row) + 0.1 * torch.outer(row[:2], row)
        b = b - 0.3 * b + 0.1 * row[:2]


def test_rope_counts_positions_across_calls(build: Build, random: Random) -> None:
    text = "system s() { input x: [4]; output rope(x, 2) }"
    module, x = _module(build(text)), random(1, 5, 4)
    whole, _ = module(x)
    first, state = module(x[:, :2])
    rest, _ = module(x[:, 2:], state=state)
    assert torch.equal(torch.cat([first, rest], 1), whole)
    assert torch.equal(whole[:, 0], x[:, 0])
    again, _ = module(x[:, :1], state=new_sequence(state))
    assert torch.equal(again, whole[:, :1])


def test_the_objective_of_a_rules_memory_may_name_the_rules_parameters(build: Build, random: Random) -> None:
    rule = """rule pulled(lr, pull) {
      memory slow : like(self) {
        learn grad; minimize pull * sum(self^2) / 2 - dot(self, value); by gd(lr = 0.5); every 1 update; reads running
      }
      self <- self - lr * slow
    }
    """
    text = (
        rule
        + """system s() {
      input x: [3]
      memory m : linear(3 -> 3) {
        learn x -> x; minimize l2; by pulled(lr = 0.1, pull = sigmoid(index(x, 0))); every 1 token; init zeros
      }
      output m(x)
    }"""
    )
    x = random(1, 7, 3)
    given = x.clone().requires_grad_()
    state, slow, outputs = x.new_zeros(3, 3), x.new_zeros(3, 3), []
    for token in given[0]:
        outputs.append(state @ token)
        grad = torch.outer(state @ token - token, token)
        slow = slow - 0.5 * (torch.sigmoid(token[0]) * slow - grad)
        state = state - 0.1 * slow
    expected = torch.stack(outputs)[None]
    own = x.clone().requires_grad_()
    y = _both(_module(build(text)), own.detach())
    _close(y, expected.detach())
    y, _ = _module(build(text))(own)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert own.grad is not None
    assert given.grad is not None
    _close(own.grad, given.grad)
