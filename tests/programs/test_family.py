"""Members of the family written from their papers alone, against NumPy; and those that cannot be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nsam
from nsam.dsl.diagnostics import ProgramError

TIME = 11


def run(both: Any) -> tuple[Any, Any, dict[str, Any]]:
    """One sequence, what the compiled system gives for it, and the weights."""
    (x,) = both.inputs(1, TIME)
    found, _ = both.compiled(x)
    return x[0].numpy(), found[0].detach().numpy(), {name: w.detach().numpy() for name, w in both.weights.items()}


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def silu(x: Any) -> Any:
    return x * sigmoid(x)


def unit(x: Any) -> Any:
    return x / np.linalg.norm(x)


def newton_schulz(m: Any) -> Any:
    x = m.T / np.linalg.norm(m) if m.shape[0] > m.shape[1] else m / np.linalg.norm(m)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if m.shape[0] > m.shape[1] else x


def test_comba(example: Any, pair: Any) -> None:
    """S <- a S - b' (S k) k' + b v k', o = S (q - d k), per head."""
    x, found, w = run(pair(example("zoo"), "comba", dim=4))
    heads, wanted = np.zeros((2, 2, 2)), []
    for t in x:
        q, k, v = (w[f"{n}.weight"] @ t for n in "qkv")
        a, b, e = sigmoid(6 + w["gate.weight"] @ t), sigmoid(w["beta.weight"] @ t), sigmoid(w["erase.weight"] @ t)
        out = []
        for h in range(2):
            part = slice(2 * h, 2 * h + 2)
            key, query = unit(silu(k[part])), unit(silu(q[part]))
            s = heads[h]
            heads[h] = a[h] * s - b[h] * e[h] * np.outer(s @ key, key) + b[h] * np.outer(v[part], key)
            out.append(heads[h] @ (query - 0.5 * key))
        wanted.append(np.concatenate(out))
    assert abs(found - np.stack(wanted)).max() < 1e-12


def test_mesa_is_ridge_regression_on_the_tokens_so_far(example: Any, pair: Any) -> None:
    """V K' (K K' + I)^-1 q, solved anew at each token."""
    x, found, w = run(pair(example("zoo"), "mesa", dim=4))
    q, k, v = (x @ w[f"{n}.weight"].T for n in "qkv")
    for t in range(TIME):
        keys, values = k[: t + 1], v[: t + 1]
        wanted = values.T @ keys @ np.linalg.solve(keys.T @ keys + np.eye(4), q[t])
        assert abs(found[t] - wanted).max() < 1e-11


def test_lact(example: Any, pair: Any) -> None:
    """W <- rows of W - lr Muon(sum of eta dL), at their first lengths; f(k) = W2 (silu(G k) * W1 k), L = -<f(k), v>."""
    x, found, w = run(pair(example("zoo"), "lact", dim=4, chunk=4))
    w1, w2, g1 = w["m.w1"], w["m.w2"], w["m.g1"]
    sums, wanted = [0.0, 0.0, 0.0], []
    for t, token in enumerate(x):
        query = unit(silu(w["q.weight"] @ token))
        wanted.append(w2 @ (silu(g1 @ query) * (w1 @ query)))
        key, rate = unit(silu(w["k.weight"] @ token)), np.logaddexp(0, w["rate.weight"] @ token)
        target = rate * silu(w["v.weight"] @ token)
        gate, up = g1 @ key, w1 @ key
        back = w2.T @ -target
        slope = sigmoid(gate) * (1 + gate * (1 - sigmoid(gate)))
        pieces = [
            np.outer(back * silu(gate), key),
            np.outer(-target, silu(gate) * up),
            np.outer(back * up * slope, key),
        ]
        sums = [total + piece for total, piece in zip(sums, pieces, strict=True)]
        if (t + 1) % 4 == 0:
            moved = []
            for weight, total in zip((w1, w2, g1), sums, strict=True):
                step = weight - 0.1 * newton_schulz(total)
                length = np.linalg.norm(step, axis=1, keepdims=True) + 1e-6
                moved.append(step / length * np.linalg.norm(weight, axis=1, keepdims=True))
            (w1, w2, g1), sums = moved, [0.0, 0.0, 0.0]
    assert abs(found - np.stack(wanted)).max() < 1e-9


def test_moneta(example: Any, pair: Any) -> None:
    """A <- a A - lr sign(e) |e|^(p-1) k', W = A / ||A||_q^(q-2), gradients at the chunk's start."""
    x, found, w = run(pair(example("zoo"), "moneta", dim=4))
    a, at_start, wanted = np.zeros((4, 4)), np.zeros((4, 4)), []
    for t, token in enumerate(x):
        wanted.append(at_start @ unit(w["q.weight"] @ token))
        key = unit(w["k.weight"] @ token)
        miss = at_start @ key - w["v.weight"] @ token
        rate, keep = sigmoid(w["rate.weight"] @ token), sigmoid(4 + w["gate.weight"] @ token)
        a = keep * a - rate * np.outer(np.sign(miss) * miss**2, key)
        if (t + 1) % 4 == 0:
            at_start = a / ((np.abs(a) ** 4).sum() + 1e-6) ** 0.5
    assert abs(found - np.stack(wanted)).max() < 1e-12


def test_gated_slots(example: Any, pair: Any) -> None:
    """K <- diag(a) K + (1 - a) k', V <- diag(a) V + (1 - a) v', o = V' softmax(K q)."""
    x, found, w = run(pair(example("zoo"), "gated_slots", dim=4))
    keys, values, wanted = np.zeros((4, 4)), np.zeros((4, 4)), []
    for token in x:
        q, k, v = (w[f"{n}.weight"] @ token for n in "qkv")
        a = sigmoid(4 + w["gate.weight"] @ token)[:, None]
        keys, values = a * keys + (1 - a) * k, a * values + (1 - a) * v
        weights = np.exp(keys @ q)
        wanted.append(values.T @ (weights / weights.sum()))
    assert abs(found - np.stack(wanted)).max() < 1e-12


BY_CHANNEL = """nsam 1
rule by_channel(lr, keep) {
  self <- self * keep - lr * (grad + outer(self @ key, key))
}
system s(dim: int) {
  input x: [dim]
  memory k, v, w : linear(dim -> dim)
  memory m : linear(dim -> dim) {
    learn normalize(k(x)) -> v(x); minimize dot; by by_channel(lr = 0.5, keep = sigmoid(w(x))); every 1 token
  }
  output m(x)
}
"""


def test_a_retention_for_each_channel_is_refused_with_the_reason() -> None:
    """RWKV-7 and Kimi Delta Attention forget by channel; an argument of a rule is one number a head."""
    with pytest.raises(ProgramError) as caught:
        nsam.loads(BY_CHANNEL).instantiate("s", {"dim": 4})
    assert caught.value.diagnostics[0].code == "N0241"
    assert "of a rule is a number" in caught.value.diagnostics[0].message
