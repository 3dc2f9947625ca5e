from __future__ import annotations

import ast
import gc
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._functorch._aot_autograd import graph_compile
from torch._functorch._aot_autograd.autograd_cache import AOTAutogradCache
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import LambdaFuture
from torch.utils.flop_counter import FlopCounterMode

import nsam
from nsam.backends.torch.runtime import blocks, compilation
from nsam.backends.torch.runtime.compilation import EARLY, LACKED, LOST, CompilerSettings
from nsam.backends.torch.runtime.later import submit_later, wait_later

LEARNS = """nsam 1
use std.rules (dgd)
system s(dim: int = 4) {
  input x: [dim]
  memory k, v : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn normalize(k(x)) -> v(x); minimize l2; by dgd(lr = 0.2); every 16 tokens }
  output m(x)
}
"""


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("quick_kernels")
def test_views_that_the_cache_loses_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a product of matrices gives, looked at in another way, is a result that torch's cache keeps wrongly."""
    kept: list[Any] = []
    monkeypatch.setattr(AOTAutogradCache, "save", lambda key, entry, remote: kept.append(entry))

    def both(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        product = x @ w
        return product, product.view(2, 3, 2, 4).transpose(1, 2)

    results = []
    torch._dynamo.reset()
    with CompilerSettings(), torch._inductor.config.patch(fx_graph_cache=True):
        for function in (both, torch.compile(both, fullgraph=True)):
            torch.manual_seed(0)
            inputs = [torch.randn(size, dtype=torch.float64).requires_grad_() for size in ((2, 3, 5), (5, 8))]
            first, second = function(*inputs)
            (first.square().sum() + second.sin().sum()).backward()
            results.append((first, second, *(x.grad for x in inputs)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)
    assert kept
    views = [output.view_meta_sequence for entry in kept for output in entry.runtime_metadata.output_info]
    assert not any(type(view).__name__ in LOST for seen in views if seen is not None for view in seen.sequence)


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("quick_kernels")
@pytest.mark.parametrize(("cuda", "graphs"), [(False, 2), (True, 1)])
def test_backward_is_lowered_with_the_forward_on_a_cpu(cuda: bool, graphs: int) -> None:
    torch._dynamo.reset()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    lowered: list[Any] = []
    function = torch.compile(
        lambda x: x.sin().sum(), fullgraph=True, options={"post_grad_custom_post_pass": lowered.append}
    )
    with CompilerSettings(cuda=cuda), torch._inductor.config.patch(force_disable_caches=True):
        y = function(x)
    assert len(lowered) == (graphs if hasattr(functorch_config, EARLY) else 1)
    y.backward()
    torch.testing.assert_close(x.grad, x.cos())


def test_a_kernel_is_waited_for_by_its_first_call() -> None:
    compiled: list[str] = []
    other: Future[str] = Future()
    other.set_result("ready")

    def result() -> Any:
        compiled.append("kernel")
        return max

    scope: dict[str, Any] = {"kernel": LambdaFuture(result), "other": other, "constant": 3}
    with torch._inductor.config.patch(compile_threads=2):
        wait_later()(AsyncCompile(), scope)
    assert scope["other"] == "ready"
    assert scope["constant"] == 3
    assert not compiled
    assert scope["kernel"](1, 2) == 2
    assert scope["kernel"] is max
    assert compiled == ["kernel"]


def test_a_kernel_whose_compiler_was_stopped_is_made_by_its_first_call() -> None:
    """torch's own future would keep the error, and with it the compiled function, for as long as the process lives."""
    tried: list[str] = []

    def worker() -> None:
        tried.append("once")
        if len(tried) == 1:
            raise OSError("died with SIGINT")

    with CompilerSettings(), torch._inductor.config.patch(compile_threads=2):
        future = AsyncCompile().submit(worker)

    def load() -> Any:
        future.result()
        worker()  # as torch does, which finds the file then
        return max

    scope: dict[str, Any] = {"kernel": LambdaFuture(load)}
    with torch._inductor.config.patch(compile_threads=2):
        wait_later()(AsyncCompile(), scope)
    assert scope["kernel"](1, 2) == 2


def test_settings_end_with_the_call() -> None:
    before = AsyncCompile.wait, AsyncCompile.submit, getattr(functorch_config, EARLY, None)
    with CompilerSettings():
        assert AsyncCompile.wait is wait_later()
        assert AsyncCompile.submit is submit_later()
    assert (AsyncCompile.wait, AsyncCompile.submit, getattr(functorch_config, EARLY, None)) == before


@pytest.mark.parametrize("name", LACKED)
def test_what_a_torch_lacks_is_not_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.9 has no setting for lowering the backward graph early; every call would end in an AttributeError."""
    place: Any = functorch_config if name == EARLY else graph_compile
    monkeypatch.delattr(place, name, raising=False)
    with CompilerSettings():
        assert torch._dynamo.config.recompile_limit == compilation.RECOMPILE_LIMIT
        assert not hasattr(place, name)
    assert not hasattr(place, name)


def test_other_settings_are_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(functorch_config, "aggressive_recomputation")
    settings = CompilerSettings(recompute=True)
    with pytest.raises(AttributeError, match="aggressive_recomputation"):
        settings.__enter__()
    settings.__exit__()


def test_no_union_of_types_is_traced() -> None:
    """torch.compile traces what generated functions call; that of torch 2.9 does not know `isinstance(x, A | B)`."""
    files = sorted(Path(blocks.__file__).parent.glob("*.py"))
    calls = [
        (file.name, node.lineno)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and isinstance(node.args[1], ast.BinOp)
    ]
    assert files
    assert calls == []


def test_nothing_is_collected_while_torch_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(torch, "compile", lambda function, **how: lambda *given: seen.append(gc.isenabled()))
    blocks._compile(lambda w, s, at, x: x)({}, {}, blocks.At(0, 0, 64, 1, compiled=True), torch.zeros(1))
    assert seen == [False]
    assert gc.isenabled()


def test_a_mode_that_sees_each_operation_sees_it() -> None:
    """torch.compile of a whole graph refuses to run inside of one; what it would see of a kernel is nothing."""
    program = nsam.loads(LEARNS)
    x, counts = torch.randn(1, 64, 4), []
    for compiled in (True, False):
        with FlopCounterMode(display=False) as counted:
            nsam.compile(program, "s", compiled=compiled)(x)
        counts.append(counted.get_total_flops())
    assert counts[0] == counts[1] > 0


TWO_STAGES = LEARNS.replace("output m(x)", "memory n : linear(dim -> dim)\n  output n(m(x)) + x")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_each_function_has_its_own_limit_of_variants(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond it a function runs as plain PyTorch, which is said: a data loader's lengths must not end a training."""
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: compiler(function, backend="eager", fullgraph=True, dynamic=False)
    )
    monkeypatch.setattr(blocks, "keepable", lambda: False)
    monkeypatch.setattr(compilation, "RECOMPILE_LIMIT", 3)
    blocks._tell_limit.cache_clear()
    module = nsam.compile(nsam.loads(TWO_STAGES), "s").double()
    plain = nsam.compile(nsam.loads(TWO_STAGES), "s", compiled=False).double()
    plain.load_state_dict(module.state_dict())
    said = []
    for length in range(32, 37):
        x = torch.randn(2, length, 4, dtype=torch.float64)
        torch.testing.assert_close(module(x)[0], plain(x)[0])
        said.append(len([record for record in caplog.records if record.name == "nsam"]))
    assert said == [0, 0, 0, 1, 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("quick_kernels")
def test_a_graph_may_be_gone_through_twice() -> None:
    """Two losses of one output, each with a backward pass of its own."""
    program, x = nsam.loads(LEARNS), torch.randn(2, 64, 4, dtype=torch.float64)
    gradients = []
    for compiled in (True, False):
        torch.manual_seed(0)
        module = nsam.compile(program, "s", compiled=compiled).double()
        y, _ = module(x)
        y[:, :20].square().mean().backward(retain_graph=True)
        y[:, 20:].sum().backward()
        gradients.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
