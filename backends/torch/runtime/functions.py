"""Functions that generated code calls on tensors of values. Reductions keep the last axis with size 1.

Shapes: flat [B, T, n], heads [B, H, T, n]; see `nsam.compiler.expressions` for the layouts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

NORMALIZE_FLOOR = 1e-6
NORM_EPS = 1e-6
ROOT_FLOOR = 1e-12
GELU_TANH_FLAT = 10.0
"""Where the slope of `gelu_tanh` is 0 or 1 to the last digit of any precision."""


def wide(x: Tensor) -> Tensor:
    """x in float32 or wider: gates and states keep their digits where matrix products do not."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def roomy(x: Tensor) -> Tensor:
    """x in a precision that has room for squares and their sums: float16 ends at 65504, and at 6e-8.

    bfloat16 has the range of float32.
    """
    return x.float() if x.dtype == torch.float16 else x


def split(x: Tensor, heads: int) -> Tensor:
    """[B, T, H n] → [B, H, T, n]."""
    batch, time, width = x.shape
    return x.view(batch, time, heads, width // heads).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    """[B, H, T, n] → [B, T, H n]."""
    return x.transpose(1, 2).flatten(2)


def gate(x: Tensor) -> Tensor:
    """One scalar a head: [.., T, H] → [.., H, T, 1] (from [H], [H, 1, 1])."""
    return x[:, None, None] if x.dim() == 1 else x.transpose(-1, -2).unsqueeze(-1)


def rows(*xs: Tensor) -> Tensor:
    """The rows of several values of all tokens, [B, H, T, n] each, below each other: [B, H, k T, n]."""
    lead = [max(sizes) for sizes in zip(*(x.shape[:-2] for x in xs), strict=True)]
    return torch.cat([x.expand(*lead, -1, -1) for x in xs], -2)


def part(x: Tensor, index: int, count: int) -> Tensor:
    """Number `index` of `count` equal parts of the rows of x."""
    size = x.shape[-2] // count
    return x[..., index * size : (index + 1) * size, :]


def concat(*parts: Tensor | float) -> Tensor:
    """Vectors one after the other; what is the same for all tokens or sequences is repeated for each."""
    like = next(x for x in parts if isinstance(x, Tensor))
    values = [x if isinstance(x, Tensor) else like.new_full((1,), x) for x in parts]
    lead = torch.broadcast_shapes(*(x.shape[:-1] for x in values))  # type: ignore[no-untyped-call]
    return torch.cat([x.expand(*lead, x.shape[-1]) for x in values], -1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over the last axis, kept; in float32 where a or b is float16."""
    return (roomy(a) * roomy(b)).sum(-1, keepdim=True)


def outer(a: Tensor, b: Tensor) -> Tensor:
    """All products of two vectors: [.., n] and [.., m] → [.., n, m]."""
    return a.unsqueeze(-1) * b.unsqueeze(-2)


def sqrt(x: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0, in float32 or wider, whatever torch's default type is."""
    positive, kind = x > 0, torch.promote_types(x.dtype, torch.float32)
    other = torch.where(x == 0, 0.0, math.nan).to(kind)
    return torch.where(positive, torch.sqrt(torch.where(positive, x, 1.0)), other)


def sqrt_slope(x: Tensor) -> Tensor:
    """Derivative of `sqrt`: 1/(2√x), 0 at 0."""
    positive = x > 0
    return torch.where(positive, 0.5 * torch.rsqrt(torch.where(positive, x, 1.0)), 0.0)


def power(x: Tensor, exponent: Tensor | float) -> Tensor:
    """x to a power; in float32 where x is float16."""
    return roomy(x) ** exponent


def root(x: Tensor, exponent: float) -> Tensor:
    """x to a power between 0 and 1, whose gradient at 0 is 0."""
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x) ** exponent)


def root_slope(x: Tensor, exponent: float) -> Tensor:
    """Derivative of `root`: exponent · x^(exponent − 1), 0 at 0."""
    zero = x == 0
    return torch.where(zero, 0.0, exponent * torch.where(zero, 1.0, x) ** (exponent - 1))


def norm(x: Tensor) -> Tensor:
    """Euclidean length over the last axis, kept, as wide as `dot`; gradient 0 at 0."""
    return sqrt(dot(x, x))


def length(x: Tensor, floor: float) -> Tensor:
    """`norm`, at least `floor`."""
    return norm(x).clamp_min(floor)


def normalize(x: Tensor, heads: int = 1) -> Tensor:
    """x / max(|x|, 1e-6) over the last axis, for each of `heads` slices of it."""
    if heads > 1:
        return normalize(torch.unflatten(x, -1, (heads, -1))).flatten(-2)
    return x / length(x, NORMALIZE_FLOOR)


def normalize_pullback(x: Tensor, g: Tensor, heads: int = 1) -> Tensor:
    """The derivative of `normalize` at x, transposed, times g."""
    if heads > 1:
        return normalize_pullback(torch.unflatten(x, -1, (heads, -1)), torch.unflatten(g, -1, (heads, -1))).flatten(-2)
    size = norm(x)
    y = x / size.clamp_min(NORMALIZE_FLOOR)
    inside = torch.where(size > NORMALIZE_FLOOR, g - y * dot(g, y), g)
    return inside / size.clamp_min(NORMALIZE_FLOOR)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """gain · x / √(mean(x²) + eps) over the last axis; what fast memories give may be wider than the gain."""
    return F.rms_norm(x, gain.shape, gain.to(torch.promote_types(x.dtype, gain.dtype)), eps)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """gain · (x − mean) / √(variance + eps) + bias over the last axis, gain and bias at least as wide as x."""
    dtype = torch.promote_types(x.dtype, gain.dtype)
    return F.layer_norm(x, gain.shape, gain.to(dtype), bias.to(dtype), eps)


def root_mean_square(x: Tensor) -> Tensor:
    """Root mean square over the last axis, kept, at least 1e-12; in float32 where x is float16."""
    x = roomy(x)
    return sqrt((x * x).mean(-1, keepdim=True)).clamp_min(ROOT_FLOOR)


def maximum(a: Tensor | float, b: Tensor | float) -> Tensor:
    """Elementwise maximum; one of the two may be a number."""
    return _pair(torch.maximum, a, b)


def minimum(a: Tensor | float, b: Tensor | float) -> Tensor:
    """Elementwise minimum; one of the two may be a number."""
    return _pair(torch.minimum, a, b)


def _pair(function: object, a: Tensor | float, b: Tensor | float) -> Tensor:
    like = a if isinstance(a, Tensor) else b
    assert isinstance(like, Tensor)
    a = a if isinstance(a, Tensor) else torch.full_like(like, a)
    b = b if isinstance(b, Tensor) else torch.full_like(like, b)
    return function(a, b)  # type: ignore[operator,no-any-return]


def silu_slope(x: Tensor) -> Tensor:
    """Derivative of silu."""
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def gelu_slope(x: Tensor) -> Tensor:
    """Derivative of the exact gelu."""
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def gelu_tanh(x: Tensor) -> Tensor:
    """gelu by its tanh approximation."""
    return F.gelu(x, approximate="tanh")


def gelu_tanh_slope(x: Tensor) -> Tensor:
    """Derivative of `gelu_tanh`."""
    rate, cubic = math.sqrt(2 / math.pi), 0.044715
    x = x.clamp(-GELU_TANH_FLAT, GELU_TANH_FLAT)  # 0 or 1 beyond, and no square that is infinite
    t = torch.tanh(rate * (x + cubic * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * rate * (1 + 3 * cubic * x * x)


def step_at(x: Tensor) -> Tensor:
    """Derivative of relu: 1 above 0, else 0."""
    return (x > 0).to(x.dtype)


def inside(x: Tensor, low: float, high: float) -> Tensor:
    """Derivative of clip: 1 between the bounds, else 0."""
    return ((x >= low) & (x <= high)).to(x.dtype)


def lp(e: Tensor, p: float) -> Tensor:
    """(1/p) Σ |e|^p."""
    return roomy(e).abs().pow(p).sum(-1, keepdim=True) / p


def huber(e: Tensor, delta: float) -> Tensor:
    """Σ e²/2 within delta, delta (|e| − delta/2) beyond."""
    e = roomy(e)
    size = e.abs()
    return torch.where(size <= delta, 0.5 * e * e, delta * (size - 0.5 * delta)).sum(-1, keepdim=True)


def pseudo_huber(e: Tensor, delta: float) -> Tensor:
    """delta² (√(1 + ‖e‖²/delta²) − 1), written so that a large delta (`inf` too) loses no digits."""
    square = dot(e, e)
    return square / (torch.sqrt(1 + square / (delta * delta)) + 1)


def conv(x: Tensor, weight: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
    """Causal depth-wise convolution, last tap on the current token.

    x [B, T, n], weight [n, width], stored [B, width − 1, n] (the inputs before x; zeros at the start of a sequence).
    Returns y [B, T, n] and the inputs to store.
    """
    width = weight.shape[1]
    time = x.shape[1]
    padded = torch.cat([stored.to(x.dtype), x], 1)
    y = sum(padded[:, i : i + time] * weight[:, i] for i in range(width))
    # A copy: a slice would keep all tokens alive, and tell their number by its strides.
    return y, padded[:, time:].contiguous()  # type: ignore[return-value]


def rope(x: Tensor, position: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary positions, half-split. x [B, H, T, n]; `position` is the first token's (from 0), 0-dim."""
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    rate = torch.exp(torch.arange(half, device=x.device, dtype=wide) * (-math.log(base) / half))
    angle = (position + torch.arange(x.shape[-2], device=x.device)).to(wide)[:, None] * rate
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = torch.split(x, half, -1)  # its backward is one concatenation, that of two slices a sum of padded halves
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def position(x: Tensor, first: Tensor) -> Tensor:
    """Numbers of the tokens of x [B, T, …] in their sequence: [B, T], the first one's is `first`, 0-dim."""
    return (first + torch.arange(x.shape[1], device=x.device)).expand(x.shape[0], -1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, stored_k: Tensor, stored_v: Tensor, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal softmax attention (eq. 62-63), scale 1/√d.

    q [B, H, T, n]; k, v [B, H_kv, T, n]; stored_k, stored_v those of earlier tokens.

    Returns the output [B, H, T, n] and the keys and values to store (the last window − 1 where there is a window).
    """
    if stored_k.shape[2]:
        k, v = torch.cat([stored_k.to(k.dtype), k], 2), torch.cat([stored_v.to(v.dtype), v], 2)
    time, total = q.shape[2], k.shape[2]
    grouped = k.shape[1] != q.shape[1]
    if time == total and (window is None or window >= total):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    else:
        row = torch.arange(total - time, total, device=q.device)[:, None]
        column = torch.arange(total, device=q.device)
        mask = column <= row
        if window is not None:
            mask = mask & (column > row - window)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    if window is not None:
        kept = min(window - 1, total)
        k, v = k[:, :, total - kept :], v[:, :, total - kept :]
        # A copy: a slice would keep all tokens alive, and tell their number by its strides. Token by token there is
        # little to let go, and nothing is copied.
        if total > 2 * kept:
            k, v = k.clone(memory_format=torch.contiguous_format), v.clone(memory_format=torch.contiguous_format)
    return y, k, v


def carry(x: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
    """Put the stored rows before x [B, H, T, n]; returns the longer tensor and the rows to store."""
    longer = torch.cat([stored.expand(x.shape[0], x.shape[1], -1, -1).to(x.dtype), x], 2)
    return longer, longer[:, :, longer.shape[2] - stored.shape[2] :]
