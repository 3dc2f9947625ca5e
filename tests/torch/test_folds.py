"""The chunk kernels against the token recurrences that they stand for, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nsam.backends.torch.runtime.chained import Chained, momentum, rank_one
from nsam.backends.torch.runtime.folds import Fold, Generic, Summed
from nsam.backends.torch.runtime.triangular import decay as decay_over
from nsam.backends.torch.runtime.triangular import decays, triangle, unit_lower_inverse

Random = Callable[..., Tensor]
B, H, OUT, IN = 2, 3, 4, 5
PIECE = 20
LENGTHS = (1, 2, 7, 16, 33, PIECE, 2 * PIECE, 2 * PIECE + 3)


def gates(random: Random, time: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.sigmoid(random(B, H, time, 1))


def outer(g: Tensor, u: Tensor) -> Tensor:
    return g.unsqueeze(-1) * u.unsqueeze(-2)


def check_reads(fold: Fold, states: list[Tensor], random: Random) -> None:
    """`states` are M_0, M_1, …; every kind of read, and the last state."""
    seen = torch.stack(states, 2)
    time = len(states) - 1
    q, back = random(B, H, time, IN), random(B, H, time, OUT)
    for strict, rows in ((False, seen[:, :, 1:]), (True, seen[:, :, :-1])):
        torch.testing.assert_close(fold.read(q, strict), (rows @ q.unsqueeze(-1)).squeeze(-1), rtol=1e-9, atol=1e-10)
        found = fold.read_t(back, strict)
        torch.testing.assert_close(found, (rows.mT @ back.unsqueeze(-1)).squeeze(-1), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(fold.final()[""], states[-1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("erases", [False, True])
@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("keeps", ["one", "constant", "gate", "zero", "negative", "tiny"])
def test_rank_one(random: Random, time: int, erases: bool, pairs: int, keeps: str) -> None:
    """M ← M(α I − η x xᵀ) − w Σ g uᵀ, the first u being x."""
    keep = {
        "one": 1,
        "constant": 0.9,
        "gate": gates(random, time, 0.3, 1),
        "zero": torch.where(torch.arange(time)[:, None] == time // 2, 0.0, gates(random, time, 0.5, 1)),
        "negative": -gates(random, time, 0.3, 1),
        "tiny": torch.full((B, H, time, 1), 1e-30, dtype=torch.float64),
    }[keeps]
    start, x = random(B, H, OUT, IN), random(B, H, time, IN) / 3
    erase = gates(random, time, 0.05, 0.9) if erases else 0.0
    write = gates(random, time, 0.1, 1)
    listed = [(x, random(B, H, time, OUT)), (random(B, H, time, IN), random(B, H, time, OUT))][:pairs]
    decay = decay_over(keep, time, start, positive=keeps in ("one", "constant", "gate", "tiny"), piece=PIECE)
    inverse = triangle(x, erase, decay) if erases else None
    fold = rank_one({"m": start}, "m", listed, decay, write, erase, x, inverse, forward=x @ start.mT)
    assert isinstance(fold, Chained) == (time > PIECE)
    states = [start]
    for t in range(time):
        alpha = keep[:, :, t, :, None] if isinstance(keep, Tensor) else keep
        eta = erase[:, :, t, :, None] if isinstance(erase, Tensor) else 0.0
        moved = alpha * states[-1] - eta * outer((states[-1] @ x[:, :, t, :, None]).squeeze(-1), x[:, :, t])
        for u, g in listed:
            moved = moved - write[:, :, t, :, None] * outer(g[:, :, t], u[:, :, t])
        states.append(moved)
    check_reads(fold, states, random)


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("pairs", [1, 2])
def test_momentum(random: Random, time: int, forgets: bool, pairs: int) -> None:
    """S ← θ S − w Σ g uᵀ; M ← α M + S."""
    start, trace = random(B, H, OUT, IN), random(B, H, OUT, IN)
    keep = gates(random, time, 0.5, 1) if forgets else 1
    theta, write = gates(random, time, 0.1, 0.95), gates(random, time, 0.1, 1)
    listed = [(random(B, H, time, IN), random(B, H, time, OUT)) for _ in range(pairs)]
    chunk = (
        decay_over(keep, time, start, positive=True, piece=PIECE),
        decay_over(theta, time, start, positive=True, piece=PIECE),
    )
    fold = momentum({"m": start, "m.trace": trace}, "m", "trace", listed, *chunk, write)
    states = [start]
    for t in range(time):
        trace = theta[:, :, t, :, None] * trace
        for u, g in listed:
            trace = trace - write[:, :, t, :, None] * outer(g[:, :, t], u[:, :, t])
        alpha = keep[:, :, t, :, None] if isinstance(keep, Tensor) else keep
        states.append(alpha * states[-1] + trace)
    check_reads(fold, states, random)
    torch.testing.assert_close(fold.final()[".trace"], trace, rtol=1e-9, atol=1e-10)


def step(
    self: Tensor, states: tuple[Tensor, ...], grad: Tensor, key: None, err: None, *, lr: Tensor, count: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A rule that is not affine, keeps a state and counts."""
    (m,) = states
    m = 0.8 * m + torch.tanh(grad) / count
    return self - lr * m, (m,)


@pytest.mark.parametrize("window", [1, 3])
def test_generic(random: Random, window: int) -> None:
    time, start = 7, random(B, H, OUT, IN)
    u, g = random(B, H, time + window - 1, IN), random(B, H, time + window - 1, OUT)
    lr = gates(random, time, 0.1, 1)
    s = {"m": start, "m.m": torch.zeros_like(start)}
    fold = Generic(s, "m", [(u, g)], step, ("m",), {"lr": lr}, count=1, window=window)
    states, m = [start], torch.zeros_like(start)
    for t in range(time):
        grad = sum(outer(g[:, :, t + i], u[:, :, t + i]) for i in range(window))
        moved, (m,) = step(states[-1], (m,), grad, None, None, lr=lr[:, :, t, :, None], count=t + 1)
        states.append(moved)
    check_reads(fold, states, random)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("closes", [False, True])
def test_summed(random: Random, window: int, closes: bool) -> None:
    """The rule once, on the plain sum; every window that ends in the chunk counts the tokens that it holds."""
    time, start, before = 6, random(B, H, OUT, IN), random(B, H, OUT, IN)
    u, g = random(B, H, time + window - 1, IN), random(B, H, time + window - 1, OUT)
    s = {"m": start, "m.sum": before, "m.m": torch.zeros_like(start)}
    lr = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    fold = Summed(s, "m", [(u, g)], step, ("m",), {"lr": lr}, closes=closes, count=2, window=window)
    total = before + sum(outer(g[:, :, t + i], u[:, :, t + i]) for t in range(time) for i in range(window))
    q = random(B, H, time, IN)
    wanted = (start @ q.mT).mT
    found = fold.final()
    if closes:
        new, (m,) = step(start, (torch.zeros_like(start),), total, None, None, lr=lr, count=2)
        wanted = torch.cat([wanted[:, :, :-1], (new @ q[:, :, -1:].mT).mT], 2)
        torch.testing.assert_close(found[""], new)
        torch.testing.assert_close(found[".m"], m)
        assert not found[".sum"].any()
    else:
        torch.testing.assert_close(found[".sum"], total)
        assert found[""] is start
    torch.testing.assert_close(fold.read(q, strict=False), wanted)
    torch.testing.assert_close(fold.read(q, strict=True), (start @ q.mT).mT)


@pytest.mark.parametrize("time", [1, 2, 3, 8, 31, 64, 65, 128])
def test_inverse_of_the_triangle(random: Random, time: int) -> None:
    lower = (random(2, time, time) / time**0.5).tril(-1)
    eye = torch.eye(time, dtype=torch.float64)
    wanted = torch.linalg.solve_triangular(eye + lower, eye.expand(2, -1, -1), upper=False)
    torch.testing.assert_close(unit_lower_inverse(lower), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("time", [1, 5, 70])
def test_gradient_of_the_inverse(random: Random, time: int) -> None:
    lower = (random(time, time) / 5).tril(-1).requires_grad_()
    direction = random(time, time)
    (found,) = torch.autograd.grad((unit_lower_inverse(lower) * direction).sum(), lower)
    explicit = torch.linalg.inv(torch.eye(time, dtype=torch.float64) + lower)
    (wanted,) = torch.autograd.grad((explicit * direction).sum(), lower)
    torch.testing.assert_close(found.tril(-1), wanted.tril(-1), rtol=1e-8, atol=1e-9)


def test_gradients_of_a_chunk(random: Random) -> None:
    """Numerical derivatives of everything that goes into a chunk with erasure."""
    time = 3
    tensors = [random(1, 1, 2, 2), random(1, 1, time, 2), random(1, 1, time, 2)]
    tensors += [0.5 + 0.4 * torch.sigmoid(random(1, 1, time, 1)) for _ in range(3)]

    def chunk(start: Tensor, x: Tensor, g: Tensor, keep: Tensor, erase: Tensor, write: Tensor) -> tuple[Tensor, Tensor]:
        decay = decay_over(keep, time, start, positive=True)
        fold = rank_one({"m": start}, "m", [(x, g)], decay, write, erase, x, triangle(x, erase, decay))
        return fold.final()[""], fold.read(x, strict=False)

    assert torch.autograd.gradcheck(chunk, [t.requires_grad_() for t in tensors])


@pytest.mark.parametrize("keep", [1.0, 0.9999, 0.5, 1e-3, 1e-35, 0.0])
def test_decays_of_extreme_gates_are_finite(keep: float) -> None:
    """float32, 128 tokens: no NaN, no infinity, nothing above 1, in values and gradients."""
    gate = torch.full((1, 1, 128, 1), keep, requires_grad=True)
    gamma, between = decays(gate, 128, gate, True)
    assert between.isfinite().all()
    assert 0 <= float(between.detach().min()) <= float(between.detach().max()) <= 1
    (gradient,) = torch.autograd.grad(gamma.sum() + between.sum(), gate)
    assert gradient.isfinite().all()
    torch.testing.assert_close(between[0, 0, 5, 3], gate[0, 0, 0, 0] ** 2)
