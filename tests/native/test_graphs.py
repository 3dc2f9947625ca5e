"""Random graphs of what blocks are made of, forward and backward, as native kernels and as torch has them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from nsam.backends.torch.native import regions, registry
from nsam.backends.torch.native.kernel import Kernel, Layout
from nsam.backends.torch.native.logistic import share_sigmoids

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

Step = Callable[[random.Random, list[Tensor]], Tensor]


SUM = """#include <initializer_list>
extern "C" void run(void** p, long) {
    const double* x = static_cast<const double*>(p[0]);
    double* y = static_cast<double*>(p[1]);
    for (long i = 0; i < 12; i++) y[i] = x[i % 3] + 1;
}"""


def pick(rng: random.Random, values: list[Tensor], like: Callable[[Tensor], bool] = lambda x: True) -> Tensor:
    return rng.choice([x for x in values if like(x)] or values[:1])


def product(rng: random.Random, values: list[Tensor]) -> Tensor:
    a = pick(rng, values, lambda x: x.dim() == 4)
    if rng.random() < 0.5:
        a = a.transpose(-1, -2)
    fitting = [b for x in values for b in (x, x.mT) if x.dim() == 4 and b.shape[-2] == a.shape[-1]]
    return torch.tanh(a @ rng.choice([*fitting, a.mT]) / a.shape[-1] ** 0.5)


def function(rng: random.Random, values: list[Tensor]) -> Tensor:
    name = rng.choice(["silu", "sigmoid", "tanh", "exp", "norm", "gelu", "softplus"])
    x = pick(rng, values)
    if name == "norm":
        return x / x.square().sum(-1, keepdim=True).add(1e-3).sqrt()
    if name == "exp":
        return torch.exp(-x.abs())
    return getattr(F if name in ("silu", "gelu", "softplus") else torch, name)(x)


def combine(rng: random.Random, values: list[Tensor]) -> Tensor:
    a = pick(rng, values)
    b = pick(
        rng, values, lambda x: x.dim() == a.dim() and all(m in (1, n) for m, n in zip(x.shape, a.shape, strict=True))
    )
    if any(m not in (1, n) for m, n in zip(b.shape, a.shape, strict=False)) or a.dim() != b.dim():
        b = a.sin()
    return rng.choice([torch.add, torch.sub, torch.mul, torch.maximum])(a, b)


def parts(rng: random.Random, values: list[Tensor]) -> Tensor:
    x = pick(rng, values, lambda x: x.shape[-2] > 2)
    size, half = x.shape[-2], x.shape[-2] // 2
    return rng.choice(
        [
            lambda: torch.cat([x[..., half:, :], x[..., :half, :] * 2], -2),
            lambda: x[..., 1:, :].sin(),
            lambda: torch.cat([x[..., :1, :], x], -2).sum(-2, keepdim=True),
            lambda: x.flip(-2),
            lambda: torch.where(x > 0.1, x, 0.3 * x),
            lambda: torch.where((x > 0).sum(-1, keepdim=True) > 1, x, 0.5 - x),
            lambda: torch.tril(x @ x.mT) @ x / size,
        ]
    )()


def totals(rng: random.Random, values: list[Tensor]) -> Tensor:
    x = pick(rng, values)
    dim = rng.choice([-1, -2])
    return rng.choice(
        [lambda: x.sum(dim, keepdim=True), lambda: x.mean(dim, keepdim=True), lambda: 0.1 * x.cumsum(-2)]
    )()


def tokens(rng: random.Random, values: list[Tensor]) -> Tensor:
    """Through the layout of tokens and back, as values come from outside of a block."""
    x = pick(rng, values, lambda x: x.dim() == 4)
    batch, heads, time, width = x.shape
    flat = x.transpose(1, 2).reshape(batch, time, heads * width).sin()
    return flat.view(batch, time, heads, width).transpose(1, 2)


STEPS: list[Step] = [product, product, function, combine, combine, parts, totals, tokens]


def graph(seed: int) -> Callable[..., list[Tensor]]:
    def run(*inputs: Tensor) -> list[Tensor]:
        rng = random.Random(seed)
        values = [x.transpose(1, 2) if i == 0 else x for i, x in enumerate(inputs)]
        for _ in range(24):
            made = rng.choice(STEPS)(rng, values)
            if made.numel() <= 1 << 15:
                values.append(made)
        return values[-6:]

    return run


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kernels_give_what_torch_gives(seed: int, dtype: torch.dtype, check: Callable[..., list[object]]) -> None:
    if dtype == torch.float32 and seed > 2:
        pytest.skip("a few seeds in single precision")
    torch.manual_seed(seed)
    batch, heads = random.Random(seed).choice([(2, 3), (3, 1), (1, 4), (5, 2)])
    shapes = [(batch, 7, heads, 18), (batch, heads, 18, 20), (batch, heads, 20, 7), (batch, heads, 1, 18)]
    if seed % 2:
        shapes += [(batch, 1, 18, 20), (batch, 1, 18, 1)]  # all heads share them
    inputs = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]
    found = check(graph(seed), *inputs, tolerance=1e-9 if dtype == torch.float64 else 3e-4)
    assert found, "nothing was replaced"


def test_large_and_odd_sizes(check: Callable[..., list[object]]) -> None:
    """Products beyond one tile, with rests of rows and columns, and operands that lie in any way."""

    def run(a: Tensor, b: Tensor) -> list[Tensor]:
        out = [a @ b, a.mT @ b.mT[..., :33, :].mT.contiguous()[..., :65, :].mT[..., :65].mT]
        out.append(out[0].mT @ a)
        return [*out, out[0].cumsum(-2) @ out[0].mT, (a @ b)[..., 0:1] * b.sum(-2, keepdim=True)]

    a, b = (torch.randn(2, 2, *s, dtype=torch.float64).requires_grad_() for s in ((65, 131), (131, 47)))
    found = check(run, a, b)
    assert found


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.float32, torch.bool])
def test_numbers_of_another_kind(kind: torch.dtype, check: Callable[..., list[object]]) -> None:
    """A kernel reads its inputs as what it computes with: counts and other precisions are turned before it."""

    def run(a: Tensor, b: Tensor, other: Tensor) -> list[Tensor]:
        more = b + other.to(b.dtype) * a
        return [a @ more.mT, torch.where(other >= 2, a, more) @ b.mT, (a * other).sum(-1, keepdim=True) * b]

    a, b = (torch.randn(2, 3, 5, 6, dtype=torch.float64).requires_grad_() for _ in range(2))
    other = torch.arange(180).reshape(2, 3, 5, 6).remainder(4).to(kind)
    assert check(run, a, b, other)


def test_what_heads_share_is_kept_apart(check: Callable[..., list[object]]) -> None:
    """Several results that all heads have in common, and that each of them reads again."""

    def run(a: Tensor, b: Tensor, gates: Tensor) -> list[Tensor]:
        decays = gates.cumsum(-2)
        sums = torch.exp(decays).cumsum(-2)
        return [decays, sums, (a * decays) @ b, (a * sums) @ b]

    shapes = [(2, 3, 5, 6), (2, 3, 6, 4), (2, 1, 5, 1)]
    assert check(run, *(torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes))


def test_one_sigmoid_for_all(check: Callable[..., list[object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """silu, its derivative and the sigmoid of some rows: the exponentials of one tensor, where that is less work."""
    sources: list[str] = []
    real = registry.register

    def register(kernel: Kernel) -> str:
        sources.append(kernel.source)
        return real(kernel)

    monkeypatch.setattr(regions, "register", register)

    def run(a: Tensor, b: Tensor) -> list[Tensor]:
        z = a @ b
        rows = torch.sigmoid(z[..., 2:5, :])
        return [F.silu(z) @ b.mT, (rows * z[..., 2:5, :]) @ b.mT]

    a, b = (torch.randn(2, 3, *s, dtype=torch.float64).requires_grad_() for s in ((8, 16), (16, 32)))
    assert check(run, a, b)
    forward, backward = (len(re.findall(r"sigmoid_of\(v\d", source)) for source in sources)
    assert (forward, backward) == (4, 2), "each twice: for whole vectors and for rests"


def test_the_sigmoid_of_an_input_comes_after_all_inputs() -> None:
    graph = make_fx(lambda z, w: (z / (1 + torch.exp(-z)) + torch.sigmoid(z)) * w)(torch.ones(3), torch.ones(3)).graph
    for node in graph.nodes:
        node.meta.setdefault("val", torch.empty(3))
    share_sigmoids(graph)
    graph.lint()
    assert [node.target for node in graph.nodes if "exp" in str(node.target)] == []
    assert [node.target for node in graph.nodes].count(torch.ops.aten.sigmoid.default) == 1
    kinds = [node.op for node in graph.nodes]
    assert kinds.index("call_function") == kinds.count("placeholder")


def test_inputs_whose_values_repeat(ran: list[str]) -> None:
    """A kernel compiled for repeated values is given them one by one, or the other way round."""
    name = registry.register(Kernel(SUM, (Layout((4, 3), (0, 1), "float64"),), (Layout((4, 3), (3, 1), "float64"),)))
    repeated = torch.randn(3, dtype=torch.float64).expand(4, 3)
    for x in (repeated, repeated.contiguous(), repeated.mT.contiguous().mT):
        torch.testing.assert_close(registry.run(name, [x])[0], repeated + 1)
