"""Self-modifying Titans: a hand-derived loop as oracle, NumPy against torch, finite differences, streaming."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nsam.backends.reference import ReferenceModule, new_sequence, values
from nsam.dsl.checked import Unit

TITANS = """
system s(dim: int, heads: int = 2, chunk: int = 16, slow: int = 64, bound: float = 1) {
  input x: [dim]
  memory q, o : linear(dim -> dim)
  memory taps_q, taps_k, taps_v : conv(dim, width = 4)
  memory rate_of, keep_of : linear(dim -> heads)
  memory k, v, eta, alpha : mlp(dim -> 2*dim -> dim, act = silu, residual, heads = heads) {
    learn    key -> self(value)
    minimize pseudo_huber(bound)
    by       safe_dgd(lr = rate, retain = keep)
    every    slow tokens
    init     learned
  }
  memory mem : mlp(dim -> 2*dim -> dim, act = silu, residual, heads = heads) {
    learn    key -> self(value)
    minimize pseudo_huber(bound)
    by       safe_dgd(lr = rate, retain = keep)
    every    chunk tokens
    init     learned
  }
  let key   = normalize(k(taps_k(x)), heads)
  let value = normalize(v(taps_v(x)), heads)
  let rate  = sigmoid(rate_of(eta(x)))
  let keep  = sigmoid(3 + keep_of(alpha(x)))
  output o(mem(normalize(q(taps_q(x)), heads)))
}
"""
DIM, HEADS = 4, 2
LEARNERS = ("k", "v", "eta", "alpha", "mem")
Build = Callable[..., Unit]
Random = Callable[..., Tensor]


@pytest.fixture(scope="module", params=[(1, 1), (4, 8), (5, 7)], ids=["online", "4/8", "5/7"])
def unit(request: pytest.FixtureRequest, build: Build) -> Unit:
    chunk, slow = request.param
    return build(TITANS, dim=DIM, heads=HEADS, chunk=chunk, slow=slow)


def _module(unit: Unit) -> ReferenceModule:
    return ReferenceModule(unit, torch.Generator().manual_seed(0))


def _arrays(module: ReferenceModule) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy() for name, p in module.named_parameters()}


# --- the oracle ----------------------------------------------------------------------------------


def _silu_slope(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _read(w: list[Tensor], x: Tensor) -> Tensor:
    return x + w[1] @ torch.nn.functional.silu(w[0] @ x)


def _moved(w: list[Tensor], at: list[Tensor], key: Tensor, value: Tensor, rate: Tensor, keep: Tensor) -> list[Tensor]:
    """One step of eq. 88 with the proximal rate in both layers, everything but `w` taken at the boundary `at`."""
    z = at[0] @ key
    hidden = torch.nn.functional.silu(z)
    miss = key + at[1] @ hidden - value
    outer_error = miss / torch.sqrt(1 + miss @ miss)
    inner_error = (at[1].T @ outer_error) * _silu_slope(z)
    moved = []
    for weight, x, error in ((w[0], key, inner_error), (w[1], hidden, outer_error)):
        step = rate / (1 + rate * (x @ x))
        moved.append(keep * weight - step * torch.outer(weight @ x, x) - step * torch.outer(error, x))
    return moved


def _slices(x: Tensor) -> list[Tensor]:
    return list(x.split(DIM // HEADS))


def _oracle(p: dict[str, Tensor], x: Tensor, chunk: int, slow: int) -> Tensor:
    """Return [time, dim] for one sequence [time, dim]."""
    boundary = {m: [[p[f"{m}.w1"][h], p[f"{m}.w2"][h]] for h in range(HEADS)] for m in LEARNERS}
    running = {m: [list(head) for head in boundary[m]] for m in LEARNERS}
    padded = torch.cat([x.new_zeros(3, DIM), x])
    outputs = []

    def taps(name: str, t: int) -> Tensor:
        return (p[f"taps_{name}.weight"].T * padded[t : t + 4]).sum(0)

    def read(name: str, y: Tensor) -> Tensor:
        return torch.cat([_read(w, part) for w, part in zip(boundary[name], _slices(y), strict=True)])

    def unit_length(y: Tensor) -> Tensor:
        return torch.cat([part / part.norm() for part in _slices(y)])

    for t in range(len(x)):
        key, value = unit_length(read("k", taps("k", t))), unit_length(read("v", taps("v", t)))
        rate = torch.sigmoid(p["rate_of.weight"] @ read("eta", x[t]))
        keep = torch.sigmoid(3 + p["keep_of.weight"] @ read("alpha", x[t]))
        query = unit_length(p["q.weight"] @ taps("q", t))
        outputs.append(p["o.weight"] @ read("mem", query))
        keys, targets = _slices(key), {m: _slices(read(m, value)) for m in LEARNERS}
        for m in LEARNERS:
            for h in range(HEADS):
                running[m][h] = _moved(running[m][h], boundary[m][h], keys[h], targets[m][h], rate[h], keep[h])
        for m in LEARNERS:
            if (t + 1) % (chunk if m == "mem" else slow) == 0:
                boundary[m] = [list(head) for head in running[m]]
    return torch.stack(outputs)


def test_values_and_gradients_equal_a_hand_derived_loop(unit: Unit, random: Random) -> None:
    module, x = _module(unit), random(1, 17, DIM)
    y, _ = module(x)
    y.square().sum().backward()
    copies = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    expected = _oracle(copies, x[0], int(unit.parameters["chunk"]), int(unit.parameters["slow"]))
    torch.testing.assert_close(y[0].detach(), expected.detach(), rtol=1e-11, atol=1e-12)
    expected.square().sum().backward()
    for name, copy in copies.items():
        assert copy.grad is not None
        assert copy.grad.abs().max() > 0, f"{name} does not learn"
        torch.testing.assert_close(module.get_parameter(name).grad, copy.grad, rtol=1e-9, atol=1e-11, msg=name)


# --- the two implementations, and what every program must satisfy -----------------------------------


def test_numpy_equals_torch(unit: Unit, random: Random) -> None:
    module, x = _module(unit), random(2, 17, DIM)
    found, _ = values(unit, _arrays(module), {"x": x.numpy()})
    np.testing.assert_allclose(found, module(x)[0].detach().numpy(), rtol=1e-11, atol=1e-12)


def test_finite_differences_of_outer_gradients(build: Build, random: Random) -> None:
    """NumPy's values, shifted both ways, against the torch path's gradients into initial states and projections."""
    unit = build(TITANS, dim=DIM, heads=HEADS, chunk=2, slow=3)
    module, x = _module(unit), random(1, 9, DIM)
    weights = np.cos(np.arange(9 * DIM)).reshape(1, 9, DIM)
    (module(x)[0] * torch.as_tensor(weights)).sum().backward()
    arrays = _arrays(module)
    names = [f"{m}.w{i}" for m in LEARNERS for i in (1, 2)] + ["rate_of.weight", "taps_k.weight", "q.weight"]
    for name in names:
        direction = np.sin(np.arange(arrays[name].size)).reshape(arrays[name].shape)

        def loss(shift: float, name: str = name, direction: np.ndarray = direction) -> float:
            moved = arrays | {name: arrays[name] + shift * direction}
            return float((values(unit, moved, {"x": x.numpy()})[0] * weights).sum())

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        gradient = module.get_parameter(name).grad
        assert gradient is not None
        assert slope == pytest.approx(float((gradient.numpy() * direction).sum()), rel=1e-6, abs=1e-9), name


def test_token_by_token_equals_the_whole(unit: Unit, random: Random) -> None:
    module, x = _module(unit), random(2, 17, DIM)
    whole, _ = module(x)
    state, pieces = None, []
    for part in x.split([1, 1, 4, 7, 3, 1], dim=1):
        y, state = module(part, state=state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-13, atol=1e-14)


def test_gradients_flow_across_calls(unit: Unit, random: Random) -> None:
    module, x = _module(unit), random(1, 17, DIM)
    module(x)[0][:, -1].sum().backward()
    whole = module.get_parameter("k.w1").grad
    module.zero_grad()
    _, state = module(x[:, :10])
    module(x[:, 10:], state=state)[0][:, -1].sum().backward()
    torch.testing.assert_close(module.get_parameter("k.w1").grad, whole, rtol=1e-11, atol=1e-13)


def test_a_state_can_be_continued_twice(unit: Unit, random: Random) -> None:
    """A call leaves the state that it was given as it was."""
    module, x = _module(unit), random(1, 12, DIM)
    _, state = module(x[:, :3])
    first, _ = module(x[:, 3:], state=state)
    second, _ = module(x[:, 3:], state=state)
    assert torch.equal(first, second)


def test_causality_and_batch_isolation(unit: Unit, random: Random) -> None:
    module, x = _module(unit), random(2, 17, DIM)
    y, _ = module(x)
    changed = x.clone()
    changed[0, 9:] += 1
    z, _ = module(changed)
    assert torch.equal(y[0, :9], z[0, :9])
    assert not torch.equal(y[0, 9:], z[0, 9:])
    assert torch.equal(y[1], z[1])


def test_new_sequence_starts_over(unit: Unit, random: Random) -> None:
    module, x = _module(unit), random(1, 12, DIM)
    y, state = module(x)
    again, _ = module(x, state=new_sequence(state))
    assert torch.equal(y, again)


def test_without_gradients_the_values_are_the_same(unit: Unit, random: Random) -> None:
    module, x = _module(unit), random(1, 9, DIM)
    with torch.no_grad():
        y, state = module(x)
    torch.testing.assert_close(y, module(x)[0].detach(), rtol=1e-13, atol=1e-14)
    assert not y.requires_grad
    assert not state["sequences"][0]["memories"]["mem"]["running"][0]["w1"].requires_grad


def test_state_dict_is_the_public_one(build: Build) -> None:
    module = ReferenceModule(build(TITANS, dim=DIM, heads=HEADS))
    shapes = {name: tuple(p.shape) for name, p in module.state_dict().items()}
    expected = {"q.weight": (4, 4), "o.weight": (4, 4), "rate_of.weight": (2, 4), "keep_of.weight": (2, 4)}
    expected |= {f"taps_{n}.weight": (4, 4) for n in "qkv"}
    for m in LEARNERS:
        expected |= {f"{m}.w1": (2, 4, 2), f"{m}.w2": (2, 2, 4)}
    assert shapes == expected
