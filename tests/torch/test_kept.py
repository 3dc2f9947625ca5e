"""Compiled functions on disk: what their keys tell apart, and what becomes of files that do not fit."""

from __future__ import annotations

import itertools
import json
import os
import types
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from nsam.backends.torch.native import registry
from nsam.backends.torch.native.kernel import Kernel, Layout
from nsam.backends.torch.runtime import blocks, kept
from nsam.backends.torch.runtime.blocks import At, _ending
from nsam.backends.torch.runtime.files import put
from nsam.backends.torch.runtime.kept import Kept

AT = At(0, 0, 4, 2, compiled=True)
TEXT = """
import torch
FACTOR = 2.0

def inner(x):
    return x * 3

def outer(w, s, at, x):
    return {"m": s["m"] + inner(x).sum() * FACTOR}, (x @ w["a"],)
"""


stores = pytest.mark.skipif(not kept.keepable(), reason="this torch stores no compiled functions, or caches are off")


def function(text: str = TEXT, name: str = "nsam_generated_test") -> Callable[..., Any]:
    module = types.ModuleType(name)
    exec(compile(text, "<test>", "exec"), module.__dict__)
    return module.outer  # type: ignore[no-any-return]


def arguments(**changed: Any) -> tuple[Any, ...]:
    given = {"a": torch.ones(3, 3), "m": torch.ones(3), "x": torch.ones(4, 3), "at": AT} | changed
    return {"a": given["a"]}, {"m": given["m"]}, given["at"], given["x"]


def key(text: str = TEXT, options: dict[str, Any] | None = None, **changed: Any) -> str | None:
    w, s, at, *values = arguments(**changed)
    return Kept(function(text), options or {})._key(w, s, at, tuple(values))


def test_the_same_function_has_the_same_key() -> None:
    assert key() == key()
    assert key() == key("\n\n" + TEXT + "\nUNUSED = 1\n")  # not its place in the file, nor what it does not reach


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("x * 3", "x * 4"),
        TEXT.replace("x * 3", "x / 3"),
        TEXT.replace("FACTOR = 2.0", "FACTOR = 2.5"),
        TEXT.replace('s["m"]', 's["n"]'),
        TEXT.replace("def inner(x):", "def inner(x, y=1):"),
        TEXT.replace("inner(x).sum()", "(lambda y: inner(y).sum())(x)"),
    ],
)
def test_other_code_has_another_key(text: str) -> None:
    assert text != TEXT
    assert key(text) is not None
    assert key(text) != key()


@pytest.mark.parametrize(
    "changed",
    [
        {"at": AT._replace(observe=True)},
        {"x": torch.ones(5, 3)},
        {"x": torch.ones(3, 4).mT},
        {"x": torch.ones(4, 3, dtype=torch.float64)},
        {"m": torch.ones(3, requires_grad=True)},
        {"a": nn.Parameter(torch.ones(3, 3), requires_grad=False)},
        {"options": {"pattern_matcher": False}},
    ],
)
def test_other_arguments_have_another_key(changed: dict[str, Any]) -> None:
    assert key(**changed) is not None
    assert key(**changed) != key()


def test_the_same_tensor_twice_has_another_key() -> None:
    square = torch.ones(3, 3)
    assert key(a=square, x=square) != key(a=square, x=square.clone())


def test_modes_have_other_keys() -> None:
    found = {key()}
    with torch.no_grad():
        found.add(key())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.add(key())
    with torch._inductor.config.patch({"cpp.simdlen": 1}):
        found.add(key())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        found.add(key())
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 5
    assert None not in found


def test_what_cannot_be_told_apart_is_not_kept() -> None:
    assert key("import json\n" + TEXT.replace("x * 3", "json.loads(x)")) is None  # code that no key knows
    assert key("class Open:\n    pass\n" + TEXT.replace("FACTOR =", "FACTOR = Open() #")) is None
    assert key(x=torch.ones(4, 3, device="meta")) is None
    assert key(x=torch.ones(4, 3).as_subclass(type("Own", (Tensor,), {}))) is None
    seen = []
    torch.func.vmap(lambda x: seen.append(key(x=x)) or x)(torch.ones(2, 4, 3))
    assert seen == [None]


@pytest.mark.slow
@stores
@pytest.mark.filterwarnings("default")  # torch's compiler imports what is deprecated
def test_loads_what_it_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_folder", lambda: tmp_path)
    options, numbers = {"cpp.simdlen": 1}, itertools.count()

    def run(w: Tensor, *, disturb: Callable[[bytes], bytes] | None = None) -> int:
        """How many graphs the first call traces, in a module of another name; values and gradients are checked."""
        for path in tmp_path.iterdir() if disturb else ():
            path.write_bytes(disturb(path.read_bytes()))  # type: ignore[misc]
        outer = _ending(function(name=f"nsam_generated_{next(numbers)}"))
        once = Kept(outer, options)
        counters.clear()
        for x in (torch.randn(4, 3), torch.randn(4, 3)):
            found, wanted = (f(*arguments(a=w, x=x))[1][0] for f in (once, outer))
            torch.testing.assert_close(found, wanted)
            if w.requires_grad:
                gradients = [torch.autograd.grad(y.square().sum(), w)[0] for y in (found, wanted)]
                torch.testing.assert_close(*gradients)
        return int(counters["stats"]["unique_graphs"])

    learnt = torch.randn(3, 3, requires_grad=True)
    assert run(learnt) == 1
    assert run(learnt) == 0
    assert len(list(tmp_path.iterdir())) == 1
    assert run(learnt, disturb=lambda data: data[: len(data) // 2]) == 1  # damaged: made again
    assert run(learnt) == 0
    rest = torch.randn(3, 3, requires_grad=True)
    rest.grad = torch.ones(3, 3)  # gradients that are there while it is compiled are none of its business
    assert run(rest, disturb=lambda data: b"") == 1
    assert run(learnt) == 0
    torch.testing.assert_close(rest.grad, torch.ones(3, 3))
    assert run(torch.randn(3, 3)) == 1  # nothing to learn: another function
    assert len(list(tmp_path.iterdir())) == 2
    kept._told.cache_clear()


@pytest.mark.slow
@stores
@pytest.mark.filterwarnings("default")  # torch's compiler imports what is deprecated
def test_says_once_why_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(kept, "_folder", lambda: tmp_path / "file" / "within")
    kept._told.cache_clear()
    for number in (3.0, 4.0):
        outer = function(TEXT.replace("2.0", str(number)))
        found = Kept(outer, {"cpp.simdlen": 1})(*arguments())[0]["m"]
        torch.testing.assert_close(found, outer(*arguments())[0]["m"])
    assert [record.message.split(":")[0] for record in caplog.records if record.name == "nsam"] == [
        "compiled code is not kept for the next start, which will take longer"
    ]
    kept._told.cache_clear()


def test_stored_code_is_lost_with_a_kernel_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_path", lambda name: tmp_path / name)
    kernel = Kernel("int run;", (Layout((2, 3), (3, 1), "float32"),), ())
    name = registry._name(kernel)
    monkeypatch.setattr(registry, "KNOWN", {})
    code = f"buf1 = torch.ops.nsam.kernel.default('{name}', [primals_1])".encode()
    assert registry.lost(code)
    assert not registry.lost(b"no kernel at all")
    whole = json.dumps(kernel).encode()
    for damaged in (b"[]", whole[:30], whole.replace(b"3, 1", b"1, 3"), b"\xff"):
        put(tmp_path / name, damaged)
        assert registry.lost(code), damaged
    put(tmp_path / name, whole)
    assert not registry.lost(code)
    assert registry.find(name) == kernel


def test_others_may_read_what_is_kept_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        put(tmp_path / "data", b"x")
        put(tmp_path / "library", b"x", executable=True)
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("data", "library")] == [0o640, 0o750]


@pytest.mark.slow
@stores
@pytest.mark.filterwarnings("default")  # torch's compiler imports what is deprecated
def test_a_kernel_that_cannot_be_written_is_there_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(registry, "KNOWN", {})
    monkeypatch.setattr(registry, "_path", lambda name: tmp_path / "file" / f"{name}.json")
    monkeypatch.setattr(registry, "_pool", lambda: types.SimpleNamespace(submit=lambda *given: None))
    monkeypatch.setattr(registry, "_LIBRARIES", {})
    name = registry.register(Kernel("// no room", (), ()))
    assert registry.find(name).source == "// no room"
    assert f"cannot be kept in {tmp_path / 'file'}" in caplog.text
    registry.KNOWN.clear()
    assert registry.lost(f"torch.ops.nsam.kernel.default('{name}', [])".encode())


@stores
@pytest.mark.filterwarnings("default")  # torch's compiler imports what is deprecated
def test_code_that_lost_a_kernel_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From our file, then from torch's own cache, whose answer would lack the kernel as well."""
    monkeypatch.setattr(kept, "_folder", lambda: tmp_path)
    asked: list[bytes] = []
    monkeypatch.setattr(registry, "lost", lambda data: not asked.append(data))  # whatever there is has lost one
    once = Kept(function(), {"cpp.simdlen": 1})
    torch.testing.assert_close(once(*arguments())[1][0], function()(*arguments())[1][0])
    assert len(asked) == 2  # what was compiled, and what was compiled again
    assert once.options[kept.PASS].again
    Kept(function(), {"cpp.simdlen": 1})(*arguments())
    assert len(asked) == 5  # what was stored as well


@pytest.mark.slow
@stores
@pytest.mark.filterwarnings("default")  # torch's compiler imports what is deprecated
def test_threads_compile_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's settings are the process's: what one thread sets, another one's compiler would see."""
    monkeypatch.setattr(kept, "_folder", lambda: tmp_path)
    plain, found = function(), list[Tensor | BaseException]()
    compiled = blocks._compile(plain)

    def run(rows: int) -> None:
        given = arguments(x=torch.ones(rows, 3))
        try:
            found.append(compiled(*given)[1][0] - plain(*given)[1][0])
        except BaseException as error:
            found.append(error)

    threads = [Thread(target=run, args=(rows,)) for rows in range(4, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(x, Tensor) and not x.any() for x in found), found
    assert len(found) == len(threads)


def test_keys_depend_on_the_files_of_this_package() -> None:
    names = {path.name for path in kept._files()}
    assert {"blocks.py", "kept.py", "instances.py", "products.h"} <= names


def test_torch_compiles_what_has_too_many_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_folder", lambda: tmp_path)
    monkeypatch.setattr(kept, "RECOMPILE_LIMIT", 0)
    once = Kept(function(), {})
    once.__dict__["compiled"] = lambda *given: "by torch"
    assert once(*arguments()) == "by torch"
    assert not list(tmp_path.iterdir())


def test_torch_decides_where_it_was_told_how_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_folder", lambda: tmp_path)
    once = Kept(function(), {})
    once.__dict__["compiled"] = lambda *given: "by torch"
    with torch.compiler.set_stance("force_eager"):
        assert once(*arguments()) == "by torch"
    assert once.ready(*arguments()[:3], arguments()[3:]) is None
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a", b"old")
    monkeypatch.setattr("os.replace", lambda *names: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        put(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]
