"""Folds: how one fast weight moves over the tokens of a chunk, and how it is read on the way.

Rows are tokens. W [B, H, out, in] is the weight before the chunk, X [B, H, T, in] inputs of the layer and
G [B, H, T, out] errors at its output, taken at the last boundary; gates are numbers or [B, H, T, 1]. Gates, decays,
triangle and states stay in float32 or wider whatever the precision of the operands.

Every fold offers `final()` (the new tensors, by suffix of their name), `read(q, strict)` (M_t q, or M_{t-1} q when
strict), `read_t` (the same transposed) and `row` (the state itself, for vectors kept as columns).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from nsam.backends.torch.runtime.triangular import Decay, full_precision, overlaps, shifted, unit_lower_inverse

Gate = Tensor | float
State = Mapping[str, Tensor]
Pair = tuple[Tensor, Tensor]


def running(s: State, name: str) -> Tensor:
    """The state after the latest token; the same tensor as the boundary state between chunks."""
    return s.get(f"{name}.run", s[name])


class Fold:
    """What all folds share: reading at ones."""

    def final(self) -> dict[str, Tensor]:
        """The new tensors, by suffix of their name."""
        raise AssertionError("each fold ends in its own way")

    def read(self, q: Tensor, strict: bool) -> Tensor:
        """M_t q for each token, [B, H, T, out]; M_{t-1} q when `strict`."""
        raise AssertionError("each fold reads in its own way")

    def read_t(self, q: Tensor, strict: bool) -> Tensor:
        """The same with the transposed states: [B, H, T, in]."""
        raise AssertionError("each fold reads in its own way")

    def row(self, strict: bool) -> Tensor:
        """A vector kept as a column [n, 1], after each token: [B, H, T, n]."""
        return self.read(self.ones(), strict)

    def ones(self) -> Tensor:
        """A layer input of 1 for every token."""
        raise AssertionError("each fold knows its tokens")


class RankOne(Fold):
    """M_t = M_{t-1}(α_t I − η_t x_t x_tᵀ) − w_t Σ g_t u_tᵀ over a chunk: gd, dgd and their relatives (eq. 57, 88).

        (I + diag(η)(A ⊙ D₋)) P = diag(η γ₋) X Wᵀ + diag(w) G,      A = X Xᵀ
        M_T = γ_T W − (D[T] ⊙ P)ᵀ X

    `pairs` are (u, g). `inverse` is the inverted triangle for (key, erase); `forward` is X Wᵀ where it is known.
    """

    def __init__(
        self,
        s: State,
        name: str,
        pairs: Sequence[Pair],
        decay: Decay,
        write: Gate,
        erase: Gate = 0.0,
        key: Tensor | None = None,
        inverse: Tensor | None = None,
        *,
        forward: Tensor | None = None,
    ) -> None:
        self.start = running(s, name)
        self.decay = decay
        lead = key if key is not None else pairs[0][0]
        self.batch = lead.shape[:-1]
        self.written = [(u, write * g) for u, g in pairs]
        if inverse is not None and key is not None:
            known = None if f"{name}.run" in s else forward
            self.written = self.erased(key, erase, inverse, key @ self.start.mT if known is None else known)

    def erased(self, key: Tensor, erase: Gate, inverse: Tensor, along: Tensor) -> list[Pair]:
        """Solve for what each token really writes along its key."""
        right = erase * (self.decay.before_gamma * along)
        others = [(u, g) for u, g in self.written if u is not key]
        for u, g in self.written:
            right = right + g if u is key else right - erase * ((key @ u.mT * self.decay.before) @ g)
        return [(key, inverse.to(right.dtype) @ right), *others]

    def ones(self) -> Tensor:
        """A layer input of 1 for every token."""
        return self.start.new_ones(*self.batch, 1)

    def final(self) -> dict[str, Tensor]:
        """The weight after the chunk."""
        gamma = self.decay.gamma
        state = self.start if isinstance(gamma, float) else gamma[..., -1:, :] * self.start
        weight = self.decay.between[..., -1, :, None]
        for u, p in self.written:
            state = state - (p if self.decay.plain else weight * p).mT @ u
        return {"": state.to(self.start.dtype)}

    def read(self, q: Tensor, strict: bool) -> Tensor:
        """M_t q = γ_t W q − Σ_{s≤t} D[t, s] p_s (u_s · q)."""
        gamma, decay = self.view(strict)
        y = gamma * (q @ self.start.mT)
        for u, p in self.written:
            y = y - (q @ u.mT * decay) @ p
        return y

    def read_t(self, q: Tensor, strict: bool) -> Tensor:
        """M_tᵀ q."""
        gamma, decay = self.view(strict)
        y = gamma * (q @ self.start)
        for u, p in self.written:
            y = y - (q @ p.mT * decay) @ u
        return y

    def view(self, strict: bool) -> tuple[Gate, Tensor]:
        """Decays as seen after (`strict`: before) each token."""
        if strict:
            return self.decay.before_gamma, self.decay.before
        return self.decay.gamma, self.decay.between


class Momentum(Fold):
    """S_t = θ_t S_{t-1} − ε_t M_{t-1} x_t x_tᵀ − w_t Σ g_t u_tᵀ, M_t = M_{t-1}(α_t I − φ_t x_t x_tᵀ) + S_t.

    Eq. 33; Titans' surprise and forgetting, with erasure inside (ε) or outside (φ) the momentum where there is any.
    With D from α and H from θ, what token s writes to S reaches M_t by K = D H, what it writes to M by D, and S_0 by
    c = D h. What stands along the keys, V_t = M_{t-1} x_t, comes from one triangle with A = X Xᵀ:

        (I + (A ⊙ K₋) diag(ε) + (A ⊙ D₋) diag(φ)) V = γ₋ X Wᵀ + c₋ X Sᵀ − Σ (X Uᵀ ⊙ K₋) diag(w) G

    The trace is stored multiplied by its factor in the update.
    """

    def __init__(
        self,
        s: State,
        name: str,
        trace: str,
        pairs: Sequence[Pair],
        decay: Decay,
        surprise: Decay,
        write: Gate,
        erase: Gate = 0.0,
        fade: Gate = 0.0,
        key: Tensor | None = None,
        *,
        substitute: bool = False,
    ) -> None:
        self.substitute = substitute
        self.start, self.trace, self.suffix = running(s, name), running(s, f"{name}.{trace}"), f".{trace}"
        lead = key if key is not None else pairs[0][0]
        self.batch, time = lead.shape[:-1], lead.shape[-2]
        one = self.start.new_ones(time, 1)
        self.gamma, self.theta, self.surprise = one * decay.gamma, one * surprise.gamma, surprise.between
        self.between = decay.between
        with full_precision(one):
            self.kernel, self.carried = decay.between @ surprise.between, decay.between @ self.theta
        self.written = [(u, write * g) for u, g in pairs]
        self.faded: list[Pair] = []
        if key is not None:
            along = self.along(key, erase, fade)
            if isinstance(erase, Tensor) or erase != 0:
                self.written.append((key, erase * along))
            if isinstance(fade, Tensor) or fade != 0:
                self.faded.append((key, fade * along))

    def along(self, key: Tensor, erase: Gate, fade: Gate) -> Tensor:
        """V_t = M_{t-1} x_t, [B, H, T, out]."""
        gamma, carried, kernel = self.view(strict=True)
        right = gamma * (key @ self.start.mT) + carried * (key @ self.trace.mT)
        for u, p in self.written:
            right = right - (key @ u.mT * kernel) @ p
        columns = kernel * across(erase) + shifted(self.between, 0.0) * across(fade)
        inverse = unit_lower_inverse(overlaps(key) * columns, substitute=self.substitute)
        return inverse.to(right.dtype) @ right

    def ones(self) -> Tensor:
        """A layer input of 1 for every token."""
        return self.start.new_ones(*self.batch, 1)

    def final(self) -> dict[str, Tensor]:
        """The weight and the trace after the chunk."""
        state = self.gamma[..., -1:, :] * self.start + self.carried[..., -1:, :] * self.trace
        trace = self.theta[..., -1:, :] * self.trace
        for u, p in self.written:
            state = state - (self.kernel[..., -1, :, None] * p).mT @ u
            trace = trace - (self.surprise[..., -1, :, None] * p).mT @ u
        for u, p in self.faded:
            state = state - (self.between[..., -1, :, None] * p).mT @ u
        return {"": state.to(self.start.dtype), self.suffix: trace.to(self.start.dtype)}

    def read(self, q: Tensor, strict: bool) -> Tensor:
        """M_t q."""
        gamma, carried, kernel = self.view(strict)
        y = gamma * (q @ self.start.mT) + carried * (q @ self.trace.mT)
        for (u, p), weight in self.weighted(kernel, strict):
            y = y - (q @ u.mT * weight) @ p
        return y

    def read_t(self, q: Tensor, strict: bool) -> Tensor:
        """M_tᵀ q."""
        gamma, carried, kernel = self.view(strict)
        y = gamma * (q @ self.start) + carried * (q @ self.trace)
        for (u, p), weight in self.weighted(kernel, strict):
            y = y - (q @ p.mT * weight) @ u
        return y

    def weighted(self, kernel: Tensor, strict: bool) -> list[tuple[Pair, Tensor]]:
        """Everything that tokens write, with the weights by which it reaches later tokens."""
        decay = shifted(self.between, 0.0) if strict else self.between
        return [(pair, kernel) for pair in self.written] + [(pair, decay) for pair in self.faded]

    def view(self, strict: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of W, S and the writes to S, as seen after (`strict`: before) each token."""
        if not strict:
            return self.gamma, self.carried, self.kernel
        return shifted(self.gamma, 1.0), shifted(self.carried, 0.0), shifted(self.kernel, 0.0)


def across(gate: Gate) -> Gate:
    """A gate by the token that writes, along the columns of a triangle: [.., T, 1] → [.., 1, T]."""
    return gate.mT if isinstance(gate, Tensor) else gate


Step = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]


class Summed(Fold):
    """The rule applied once, at the closing token, to the sum of the chunk's gradients (eq. 71)."""

    def __init__(
        self,
        s: State,
        name: str,
        pairs: Sequence[Pair],
        step: Step,
        states: Sequence[str],
        arguments: Mapping[str, Gate],
        *,
        closes: bool,
        count: Tensor | int,
        window: int = 1,
        vector: bool = False,
    ) -> None:
        self.start = s[name]
        self.batch, self.time = (*pairs[0][0].shape[:2],), pairs[0][0].shape[2] - window + 1
        total = s[f"{name}.sum"]
        for u, g in pairs:
            weight = window_weights(self.time, window, u) if window > 1 else 1.0
            total = total + (weight * g).mT @ u
        self.tensors = {"": self.start, ".sum": total}
        old = tuple(s[f"{name}.{state}"] for state in states)
        self.tensors |= {f".{state}": tensor for state, tensor in zip(states, old, strict=True)}
        if closes:
            scalars = {k: last_token(v) for k, v in arguments.items()}
            row = as_row(vector)
            new, after = step(row(self.start), tuple(map(row, old)), row(total), None, None, **scalars, count=count)
            # Under autocast a rule's product is narrower than the state.
            self.tensors = {"": row(new).to(self.start.dtype), ".sum": torch.zeros_like(total)}
            found = zip(states, after, old, strict=True)
            self.tensors |= {f".{state}": row(tensor).to(before.dtype) for state, tensor, before in found}

    def ones(self) -> Tensor:
        """A layer input of 1 for every token."""
        return self.start.new_ones(*self.batch, self.time, 1)

    def final(self) -> dict[str, Tensor]:
        """The weight, the gradients added up so far and the rule's states."""
        return self.tensors

    def read(self, q: Tensor, strict: bool) -> Tensor:
        """The boundary state until the closing token, which sees the new one."""
        return self.mixed(q @ self.start.mT, q, strict, lambda rows: rows @ self.tensors[""].mT)

    def read_t(self, q: Tensor, strict: bool) -> Tensor:
        """The same, transposed."""
        return self.mixed(q @ self.start, q, strict, lambda rows: rows @ self.tensors[""])

    def mixed(self, y: Tensor, q: Tensor, strict: bool, new: Callable[[Tensor], Tensor]) -> Tensor:
        """Replace the last row by a read of the new state if the chunk closed."""
        if strict or self.tensors[""] is self.start:
            return y
        return torch.cat([y[..., :-1, :], new(q[..., -1:, :])], -2)


class Generic(Fold):
    """Any rule, applied token by token, with gradients at the last boundary's state: always right, never fast.

    Between chunks the rule's states are kept multiplied by `scale`: so a linear momentum is stored as `Momentum` does.
    """

    def __init__(
        self,
        s: State,
        name: str,
        pairs: Sequence[Pair],
        step: Step,
        states: Sequence[str],
        arguments: Mapping[str, Gate],
        *,
        count: Tensor | int,
        key: Tensor | None = None,
        err: Tensor | None = None,
        window: int = 1,
        vector: bool = False,
        scale: float = 1.0,
    ) -> None:
        self.suffixes = [f".{state}" for state in states]
        self.start = running(s, name)
        self.states = [self.start]
        kept = tuple(running(s, name + suffix) for suffix in self.suffixes)
        kept = kept if scale == 1 else tuple(x / scale for x in kept)
        self.batch, self.time = (*pairs[0][0].shape[:2],), pairs[0][0].shape[2] - window + 1
        row = as_row(vector and key is None)
        for t in range(self.time):
            grad = torch.zeros_like(self.start)
            for u, g in pairs:
                grad = grad + g[:, :, t : t + window].mT @ u[:, :, t : t + window]
            scalars = {k: at_token(v, t) for k, v in arguments.items()}
            layer = (rows_at(key, t, window), rows_at(err, t, window))
            state, kept = step(
                row(self.states[-1]), tuple(map(row, kept)), row(grad), *layer, **scalars, count=count + t
            )
            # Under autocast a rule's product is narrower than the state.
            self.states.append(row(state).to(self.start.dtype))
            kept = tuple(row(new).to(self.start.dtype) for new in kept)
        self.kept = kept if scale == 1 else tuple(x * scale for x in kept)

    def ones(self) -> Tensor:
        """A layer input of 1 for every token."""
        return self.states[0].new_ones(*self.batch, self.time, 1)

    def final(self) -> dict[str, Tensor]:
        """The weight and the rule's states after the chunk."""
        return {"": self.states[-1], **dict(zip(self.suffixes, self.kept, strict=True))}

    def seen(self, strict: bool) -> Tensor:
        """The states after (`strict`: before) each token, [B, H, T, out, in]."""
        return torch.stack(self.states[:-1] if strict else self.states[1:], 2)

    def read(self, q: Tensor, strict: bool) -> Tensor:
        """M_t q."""
        return (self.seen(strict) @ q.unsqueeze(-1)).squeeze(-1)

    def read_t(self, q: Tensor, strict: bool) -> Tensor:
        """M_tᵀ q."""
        return (q.unsqueeze(-2) @ self.seen(strict)).squeeze(-2)


def rows_at(rows: Tensor | None, t: int, window: int) -> Tensor | None:
    """A layer's input or error at token t: one row, or the rows of the window that ends there."""
    if rows is None or window == 1:
        return None if rows is None else rows[:, :, t]
    return rows[:, :, t : t + window]


def _same(x: Tensor) -> Tensor:
    return x


def as_row(vector: bool) -> Callable[[Tensor], Tensor]:
    """Rules see a vector as 1 × n; the runtime keeps it as a column."""
    return (lambda x: x.mT) if vector else _same


def at_token(gate: Gate, t: int) -> Gate:
    """A gate's value at token t, [B, H, 1, 1]."""
    if not isinstance(gate, Tensor) or gate.shape[-2] == 1:
        return gate
    return gate[..., t : t + 1, :]


def last_token(gate: Gate) -> Gate:
    """A gate that does not vary with the token, as [.., 1, 1]."""
    return gate[..., -1:, :] if isinstance(gate, Tensor) else gate


def window_weights(time: int, window: int, like: Tensor) -> Tensor:
    """How many of the chunk's windows hold each of the window − 1 stored and `time` new tokens: [.., 1]."""
    rows = torch.arange(time + window - 1, device=like.device)
    newest = rows.clamp_max(time - 1)
    oldest = (rows - (window - 1)).clamp_min(0)
    return (newest - oldest + 1).to(like.dtype)[:, None]
