"""The Hope language model by hand: what examples/hope/hope.nsam says, in batched operations and compiled segments.

The four slow memories (k, v, eta, alpha) share keys, rates and retention: one Gram matrix and one inverted triangle for
their first layers, their products stacked. Shapes: B sequences, H heads, n slow memories, T tokens of a segment,
d width of a head, h hidden width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines.triangle import Decay, unit_lower_inverse
from benchmarks.case import compile_if
from benchmarks.settings import Build

CHUNK, SLOW = 16, 64
MEMORIES = ("k", "v", "eta", "alpha")


class State(NamedTuple):
    """Fast weights: slow_1 [B, H, n, h, d], slow_2 [B, H, n, d, h], mem_1 [B, H, h, d], mem_2 [B, H, d, h]."""

    slow_1: Tensor
    slow_2: Tensor
    mem_1: Tensor
    mem_2: Tensor


class Gates(NamedTuple):
    """Slow readouts of the rate and the retention, [H, dim] each."""

    rate: Tensor
    keep: Tensor


def wide(x: Tensor) -> Tensor:
    """x in float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor) -> Tensor:
    """x divided by its length, in float32 or wider."""
    x = wide(x)
    return x / x.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-6)


def silu_slope(x: Tensor) -> Tensor:
    """Derivative of silu."""
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def bounded(error: Tensor) -> Tensor:
    """Gradient of pseudo_huber(1)."""
    error = wide(error)
    return error * torch.rsqrt(1 + error.square().sum(-1, keepdim=True))


def per_head(x: Tensor, heads: int) -> Tensor:
    """[B, T, H d] to [B, H, T, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def gate(rows: Tensor, weight: Tensor) -> Tensor:
    """One number a head and token: rows [B, H, T, d] of a memory's read, weight [H, H d]; returns [B, H, T, 1]."""
    return wide(F.linear(rows.transpose(1, 2).flatten(2), weight)).transpose(1, 2).unsqueeze(-1)


def move(
    weight: Tensor, x: Tensor, forward: Tensor, error: Tensor, step: Tensor, decay: Decay, inverse: Tensor
) -> Tensor:
    """The weight [.., out, in] after a chunk; x [.., T, in], forward = x weight', error [.., T, out]."""
    written = inverse @ (step * (decay.gamma_before * forward + error))
    return decay.gamma[..., -1:, :] * weight - (decay.last * written).mT @ x


def slow_step(w1: Tensor, w2: Tensor, key: Tensor, value: Tensor, rate: Tensor, decay: Decay) -> tuple[Tensor, Tensor]:
    """Move the n slow memories over a segment; key, value [B, H, T, d]."""
    time, n, hidden = key.shape[2], w1.shape[2], w1.shape[3]
    rows = torch.cat([key, value], 2)
    inner = (rows @ w1.flatten(2, 3).mT).unflatten(-1, (n, hidden)).transpose(2, 3)  # [B, H, n, 2T, h]
    active = F.silu(inner)
    out = active @ w2.mT
    z1, x2, z2 = inner[..., :time, :], active[..., :time, :], out[..., :time, :]
    error = bounded((key - value).unsqueeze(2) + z2 - out[..., time:, :])
    behind = (error @ w2) * silu_slope(z1)
    step1 = rate / (1 + rate * key.square().sum(-1, keepdim=True))
    inverse1 = unit_lower_inverse(step1 * (key @ key.mT) * decay.before)
    side = (z1 * decay.gamma_before.unsqueeze(2) + behind).transpose(2, 3).flatten(3)  # [B, H, T, n h]
    written = decay.last * (inverse1 @ (step1 * side))
    w1 = decay.gamma[..., -1:, :].unsqueeze(2) * w1 - (written.mT @ key).unflatten(2, (n, hidden))
    per_memory = decay.unsqueeze(2)
    rate = rate.unsqueeze(2)
    step2 = rate / (1 + rate * wide(x2).square().sum(-1, keepdim=True))
    inverse2 = unit_lower_inverse(step2 * (x2 @ x2.mT) * per_memory.before)
    return w1, move(w2, x2, z2, error, step2, per_memory, inverse2)


def mem_step(
    w1: Tensor, w2: Tensor, rows: Tensor, rate: Tensor, step1: Tensor, inverse1: Tensor, decay: Decay
) -> tuple[Tensor, Tensor, Tensor]:
    """Read the memory with q and move it over a chunk; rows [B, H, 3 C, d] are key, value and q."""
    time = rate.shape[2]
    inner = rows @ w1.mT
    active = F.silu(inner)
    out = rows + active @ w2.mT
    key, z1, x2 = rows[:, :, :time], inner[:, :, :time], active[:, :, :time]
    target, y = out[:, :, time : 2 * time], out[:, :, 2 * time :]
    error = bounded(out[:, :, :time] - target)
    step2 = rate / (1 + rate * wide(x2).square().sum(-1, keepdim=True))
    inverse2 = unit_lower_inverse(step2 * (x2 @ x2.mT) * decay.before)
    new_1 = move(w1, key, z1, (error @ w2) * silu_slope(z1), step1, decay, inverse1)
    new_2 = move(w2, x2, out[:, :, :time] - key, error, step2, decay, inverse2)
    return new_1, new_2, y


def segment(state: State, gates: Gates, k_in: Tensor, v_in: Tensor, x: Tensor, q: Tensor) -> tuple[State, Tensor]:
    """SLOW tokens: read the slow memories, run mem chunk by chunk, move the slow memories. Rows [B, H, T, d]."""
    rows = torch.stack([k_in, v_in, x, x], 2)
    reads = rows + F.silu(rows @ state.slow_1.mT) @ state.slow_2.mT
    key, value = unit(reads[:, :, 0]), unit(reads[:, :, 1])
    rate = torch.sigmoid(gate(reads[:, :, 2], gates.rate)) / 4
    log_keep = F.logsigmoid(10 + gate(reads[:, :, 3], gates.keep)).clamp_min(-80.0)
    # All that mem needs and its own state does not enter, for all of its chunks at once: [B, H, T / C, C, .].
    short = tuple(z.unflatten(2, (-1, CHUNK)) for z in (key, value, q, rate, log_keep))
    s_key, s_rate = short[0], short[3]
    decay = Decay.of(short[4])
    step1 = s_rate / (1 + s_rate * s_key.square().sum(-1, keepdim=True))
    inverse1 = unit_lower_inverse(step1 * (s_key @ s_key.mT) * decay.before)
    stacked = torch.cat(short[:3], 3)
    mem_1, mem_2, outputs = state.mem_1, state.mem_2, []
    for i in range(s_key.shape[2]):
        mem_1, mem_2, y = mem_step(
            mem_1, mem_2, stacked[:, :, i], s_rate[:, :, i], step1[:, :, i], inverse1[:, :, i], decay.chunk(i)
        )
        outputs.append(y)
    slow_1, slow_2 = slow_step(state.slow_1, state.slow_2, key, value, rate, Decay.of(log_keep))
    return State(wide(slow_1), wide(slow_2), wide(mem_1), wide(mem_2)), torch.cat(outputs, 2)


class Weight(nn.Module):
    """One tensor, called `weight`."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))


class TwoLayers(nn.Module):
    """Two weights, `w1` [.., h, d] and `w2` [.., d, h]."""

    def __init__(self, *lead: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(*lead, hidden, dim))
        self.w2 = nn.Parameter(torch.empty(*lead, dim, hidden))


class Titans(nn.Module):
    """Parameters of self-modifying Titans."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.q, self.o = Weight(dim, dim), Weight(dim, dim)
        self.taps_q, self.taps_k, self.taps_v = Weight(dim, 4), Weight(dim, 4), Weight(dim, 4)
        self.rate_of, self.keep_of = Weight(heads, dim), Weight(heads, dim)
        for name in (*MEMORIES, "mem"):
            self.add_module(name, TwoLayers(heads, dim=dim // heads, hidden=4 * dim // heads))

    def initial(self, batch: int) -> State:
        """The learnt initial states, one copy a sequence."""
        slow = [self.get_submodule(name) for name in MEMORIES]
        both = [torch.stack([getattr(m, w) for m in slow], 1) for w in ("w1", "w2")]
        both += [getattr(self.get_submodule("mem"), w) for w in ("w1", "w2")]
        return State(*(wide(z).expand(batch, *z.shape).contiguous() for z in both))


class Cms(nn.Module):
    """Parameters of the continuum memory system."""

    def __init__(self, dim: int, levels: int) -> None:
        super().__init__()
        self.level = nn.ModuleList(TwoLayers(dim=dim, hidden=4 * dim) for _ in range(levels))


class Layer(nn.Module):
    """Parameters of one pass of the repeat."""

    def __init__(self, dim: int, heads: int, levels: int) -> None:
        super().__init__()
        self.n1, self.n2 = Weight(dim), Weight(dim)
        self.titans, self.cms = Titans(dim, heads), Cms(dim, levels)


def before(
    h: Tensor, norm: Tensor, q: Tensor, taps: Tensor, stored: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Norm, the three local convolutions as one, the query; whole sequence. Returns rows per head and new taps."""
    x = F.rms_norm(h, norm.shape, norm, 1e-6)
    padded = torch.cat([stored.to(x.dtype), x], 1)
    time, width = x.shape[1], taps.shape[-1]
    local = sum(padded[:, i : i + time].unsqueeze(0) * taps[:, None, None, :, i] for i in range(width))
    assert isinstance(local, Tensor)
    query = unit(per_head(F.linear(local[0], q), heads))
    rows = [per_head(z, heads) for z in (local[1], local[2], x)]
    return query, rows[0], rows[1], rows[2], padded[:, time:]


def after(h: Tensor, y: Tensor, o: Tensor, norm: Tensor, *levels: Tensor) -> Tensor:
    """Output projection, residual, then the chain of MLP blocks; whole sequence."""
    h = h + F.linear(y.transpose(1, 2).flatten(2), o)
    x = F.rms_norm(h, norm.shape, norm, 1e-6)
    for w1, w2 in zip(levels[::2], levels[1::2], strict=True):
        x = x + F.linear(F.gelu(F.linear(x, w1)), w2)
    return h + x


class HopeByHand(nn.Module):
    """Hope with the parameter names of `nsam.compile(program, "hope")`. Lengths are multiples of 64."""

    def __init__(
        self, vocab: int = 256, dim: int = 128, layers: int = 2, heads: int = 4, levels: int = 3, *, build: Build
    ) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.nf = Weight(vocab, dim), Weight(dim)
        self.repeat = nn.ModuleList(Layer(dim, heads, levels) for _ in range(layers))
        self.before, self.segment, self.after = (compile_if(build, f) for f in (before, segment, after))

    def forward(
        self, tokens: Tensor, states: list[tuple[Tensor, State]] | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, State]]]:
        """Tokens [B, T]; returns scores [B, T, vocab] and the state of every layer."""
        if tokens.shape[1] % SLOW:
            raise ValueError(f"the length must be a multiple of {SLOW}, not {tokens.shape[1]}")
        h = F.embedding(tokens, self.embed.weight)
        new = []
        for i, layer in enumerate(self.repeat):
            h, state = self.layer(layer, h, None if states is None else states[i])
            new.append(state)
        return F.linear(F.rms_norm(h, self.nf.weight.shape, self.nf.weight, 1e-6), self.embed.weight), new

    def layer(
        self, layer: nn.Module, h: Tensor, carried: tuple[Tensor, State] | None
    ) -> tuple[Tensor, tuple[Tensor, State]]:
        """One pass of the repeat."""
        titans = layer.titans
        assert isinstance(titans, Titans)
        taps = torch.stack([titans.taps_q.weight, titans.taps_k.weight, titans.taps_v.weight])
        if carried is None:
            carried = h.new_zeros(h.shape[0], taps.shape[-1] - 1, h.shape[2]), titans.initial(h.shape[0])
        stored, state = carried
        gates = Gates(titans.rate_of.weight, titans.keep_of.weight)
        q, k_in, v_in, x, stored = self.before(h, layer.n1.weight, titans.q.weight, taps, stored, self.heads)  # type: ignore[union-attr]
        outputs = []
        for rows in zip(*(z.split(SLOW, 2) for z in (k_in, v_in, x, q)), strict=True):
            state, y = self.segment(state, gates, *rows)
            outputs.append(y)
        levels = [w for level in layer.cms.level for w in (level.w1, level.w2)]  # type: ignore[union-attr]
        h = self.after(h, torch.cat(outputs, 2), titans.o.weight, layer.n2.weight, *levels)  # type: ignore[union-attr]
        return h, (stored, state)
