"""Kernels by themselves: their functions, their names in the cache, and programs that run by them."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nsam import Program
from nsam.backends.torch.build import build
from nsam.backends.torch.native import registry
from nsam.backends.torch.native.kernel import Kernel, Layout, prelude
from nsam.backends.torch.runtime import cxx
from nsam.backends.torch.runtime.cxx import library as compiled
from nsam.compiler.passes import passes_without

EXAMPLES = Path(__file__).parents[2] / "examples"

by_thread = pytest.mark.skipif(not cxx.settings_by_thread(), reason="with this torch a thread makes no whole library")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("kind", "dtype"), [("float", torch.float32), ("double", torch.float64)])
def test_exponential_and_sigmoid(kind: str, dtype: torch.dtype) -> None:
    from torch._inductor.codecache import CppCodeCache

    body = "exponential_of(Vec::loadu(x + i)).store(e + i); sigmoid_of(Vec::loadu(x + i)).store(s + i);"
    function = f'extern "C" void run(const T* x, T* e, T* s, long n) {{ for (long i = 0; i < n; i += L) {{ {body} }} }}'
    run = CppCodeCache.load(f"using T = {kind};\n{prelude()}\n{function}\n").run
    special = [
        float("inf"),
        -float("inf"),
        float("nan"),
        0.0,
        -0.0,
        1e-30,
        88.7,
        89.5,
        -87.3,
        -103.0,
        -110.0,
        1e30,
        -1e30,
    ]
    x = torch.cat([torch.linspace(-86, 88, 4083), torch.tensor(special)]).to(dtype)
    e, s = torch.empty_like(x), torch.empty_like(x)
    run(*(ctypes.c_void_p(t.data_ptr()) for t in (x, e, s)), ctypes.c_long(x.numel()))
    close = {"rtol": 4e-7 if dtype == torch.float32 else 1e-14, "atol": 2e-38, "equal_nan": True}
    torch.testing.assert_close(e, x.double().exp().to(dtype), **close)  # type: ignore[arg-type]
    torch.testing.assert_close(s, torch.sigmoid(x.double()).to(dtype), **close)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["float", "double"])
def test_truth_values_in_bytes(kind: str) -> None:
    """From bytes to a vector and back: beside each other, apart, the same for all, and fewer than a vector."""
    from torch._inductor.codecache import CppCodeCache

    function = (
        'extern "C" void run(const bool* x, bool* y, long step, long n) {'
        "  if (n == L || n == 0) bytes(mask(x, step), y, 1); else bytes(mask(x, step, n), y, step, n);"
        "}"
        'extern "C" long lanes() { return L; }'
    )
    library = CppCodeCache.load(f"using T = {kind};\n{prelude()}\n{function}\n")
    lanes = library.lanes()
    x = torch.arange(3 * lanes) % 5 % 2 == 1
    for step, n in ((1, lanes), (1, lanes - 1), (1, 1), (3, 0), (0, 0), (2, lanes - 1)):
        count, out = n or lanes, step if n not in (0, lanes) else 1
        y = torch.zeros(3 * lanes, dtype=torch.bool)
        library.run(*(ctypes.c_void_p(t.data_ptr()) for t in (x, y)), ctypes.c_long(step), ctypes.c_long(n))
        wanted = torch.zeros_like(y)
        for i in range(count):
            wanted[i * out] = x[i * step]
        assert torch.equal(y, wanted), (step, n)


@pytest.mark.filterwarnings("default")
def test_halves_are_rounded_as_torch_rounds_them() -> None:
    """To bfloat16 and back: ties, what overflows, and what is no number; beside each other and apart."""
    function = (
        'extern "C" void run(const T* x, at::BFloat16* y, T* z, long step, long n) {'
        "  for (long i = 0; i < n; i += L) {"
        "    narrow(Vec::loadu(x + i), y + i * step, step); wide(y + i * step, step).store(z + i);"
        "  } }"
    )
    run = compiled(f"using T = float;\n{prelude()}\n{function}\n").run
    ties = torch.tensor([0x3F808000, 0x3F818000, 0x3F80FFFF, 0x3F807FFF, 0x7F7FFFFF, 0x00000001], dtype=torch.int32)
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), -float("nan"), 0.0, -0.0])
    x = torch.cat([ties.view(torch.float32), -ties.view(torch.float32), special, torch.randn(494) * 1e3])
    payloads = torch.tensor([0x7FFFFFFF, 0x7F800001], dtype=torch.int32).view(torch.float32)
    x[-2:] = payloads  # not numbers either: rounded up, the first would be -0, the second infinite
    for step in (1, 3):
        y, z = torch.zeros(step * len(x), dtype=torch.bfloat16), torch.empty_like(x)
        run(*(ctypes.c_void_p(t.data_ptr()) for t in (x, y, z)), ctypes.c_long(step), ctypes.c_long(len(x)))
        wanted = x.bfloat16()
        torch.testing.assert_close(y[::step], wanted, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(z, wanted.float(), rtol=0, atol=0, equal_nan=True)
        assert torch.equal(torch.signbit(y[::step][~x.isnan()]), torch.signbit(x[~x.isnan()]))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("kind", "dtype"), [("float", torch.float32), ("double", torch.float64)])
def test_matrices_are_turned(kind: str, dtype: torch.dtype) -> None:
    """Whole blocks of vectors, what is left of them, and matrices with any strides."""
    sizes = [(64, 32, 1, 64), (20, 33, 1, 23), (3, 5, 1, 3), (17, 18, 40, 2)]  # rows, columns, and their strides
    calls = [
        f'extern "C" void t{i}(T* a, T* b) {{ turn<{", ".join(map(str, s))}>(a, b); }}' for i, s in enumerate(sizes)
    ]
    library = compiled("\n".join([f"using T = {kind};", prelude(), *calls]))
    for i, (rows, columns, *strides) in enumerate(sizes):
        a = torch.randn(rows * strides[0] + columns * strides[1], dtype=dtype).as_strided((rows, columns), strides)
        b = torch.full((rows, columns), torch.nan, dtype=dtype)
        getattr(library, f"t{i}")(ctypes.c_void_p(a.data_ptr()), ctypes.c_void_p(b.data_ptr()))
        assert torch.equal(a, b)


ONE = """extern "C" void run(void** p, long) {{ *static_cast<double*>(p[0]) = {number}; }}"""


def small_kernel(number: int) -> Kernel:
    return Kernel(ONE.format(number=number), (), (Layout((1,), (1,), "float64"),))


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


@by_thread
@pytest.mark.usefixtures("own_folder")
def test_a_kernel_whose_compiler_was_stopped_is_made_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at a terminal ends the C++ compiler too; the same cell runs when it is run again."""

    def stopped(source: str) -> Any:
        raise OSError("died with SIGINT")

    for module in (registry, cxx):
        monkeypatch.setattr(module, "library", stopped)
    name = registry.register(small_kernel(7))
    with pytest.raises(OSError, match="SIGINT"):
        registry.run(name, [])
    monkeypatch.undo()
    assert registry.run(name, []) == [torch.tensor([7.0], dtype=torch.float64)]


@by_thread
@pytest.mark.usefixtures("own_folder")
def test_the_settings_of_who_asks_hold_for_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config

    seen: list[object] = []
    monkeypatch.setattr(cxx, "library", lambda source: seen.append(torch._inductor.config.cpp.cxx))
    with torch._inductor.config.patch({"cpp.cxx": (None, "own-g++")}):
        name = registry.register(small_kernel(8))
    registry._LIBRARIES.pop(name).result()
    assert seen == [(None, "own-g++")]


@by_thread
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.usefixtures("own_folder")
def test_a_forked_process_makes_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has none of the threads: neither what they had begun is finished there, nor are they given more."""
    begun: Future[Any] = Future()
    monkeypatch.setattr(cxx, "library", lambda source: source)
    registry._pool().submit(int).result()  # so that there is a thread
    registry._LIBRARIES["begun"] = begun
    child = os.fork()
    if child == 0:
        try:
            left = len(registry._LIBRARIES)
            name = registry.register(small_kernel(9))
            os._exit(left if registry._LIBRARIES[name].result(20) == small_kernel(9).source else 9)
        finally:
            os._exit(8)
    registry._LIBRARIES.pop("begun")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_kernel_that_is_gone_is_an_internal_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"nsam internal error: the native kernel gone .* report this"):
        registry.find("gone")


SYSTEMS = [
    ("zoo", "gated_deltanet", {"dim": 16}, 128, torch.float64),
    ("zoo", "gated_deltanet", {"dim": 32}, 128, torch.float32),
    ("zoo", "gated_deltanet", {"dim": 32}, 128, torch.bfloat16),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("program", "system", "parameters", "time", "dtype"), SYSTEMS, ids=[str(s[4]) for s in SYSTEMS]
)
def test_programs_run_by_kernels(
    program: str, system: str, parameters: dict[str, int], time: int, dtype: torch.dtype, ran: list[str]
) -> None:
    found = Program.load(EXAMPLES / program / f"{program}.nsam")
    unit = found.instantiate(system, parameters)
    torch.manual_seed(1)
    fast, plain = build(unit), build(unit, compiled=False)
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(3, time, parameters["dim"])
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    results: list[list[Tensor]] = []
    for module in (fast.to(exact), plain.to(torch.float64 if dtype == torch.bfloat16 else exact)):
        inputs = x.detach().clone().to(next(module.parameters()).dtype).requires_grad_()
        low = dtype == torch.bfloat16 and module is fast
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            y, _ = module(inputs)
        y.double().square().mean().backward()
        results.append([y, *(p.grad for p in (inputs, *module.parameters()) if p.grad is not None)])
    assert ran, "no block became a kernel"
    for got, wanted in zip(*results, strict=True):
        scale = wanted.double().abs().max().item() + 1e-6
        error = (got.double() - wanted.double()).abs().max().item() / scale
        assert error < {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 0.15}[dtype]


def test_the_pass_can_be_switched_off() -> None:
    unit = Program.load(EXAMPLES / "zoo" / "zoo.nsam").instantiate("titans_memory", {"dim": 8})
    on, off = build(unit), build(unit, passes=passes_without("native, recompute"))
    assert (on.native, on.recompute, off.native, off.recompute) == (True, True, False, False)
    same = [line for line in str(off.nsam_source).splitlines() if "Passes switched off" not in line]
    assert str(on.nsam_source).splitlines() == same
