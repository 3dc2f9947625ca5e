"""Which C++ compiler is asked for, and what is added to its options: linking, and care with bfloat16."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch._inductor.codecache import CppCodeCache

from nsam.backends.torch.runtime import cxx

HALF = torch.zeros(2, dtype=torch.bfloat16)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cxx.compiler.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    yield tmp_path
    cxx.compiler.cache_clear()


def script(*values: torch.Tensor) -> str:
    found: str = cxx.compiler_options(cxx.care(values))["cpp.cxx"][1]
    return found


def commands(path: str, *options: str) -> str:
    """What the compiler says that it runs."""
    return subprocess.run([path, "-###", *options], capture_output=True, text=True, check=True).stderr


def test_care_is_only_taken_for_bfloat16(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = script(torch.zeros(2))
    assert script(torch.zeros(2), HALF) != plain
    with torch.autocast("cpu", torch.bfloat16):
        assert script(torch.zeros(2)) != plain
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert script(HALF) == plain


def test_other_devices_have_other_compilers() -> None:
    assert cxx.compiler_options(cxx.care((torch.zeros(2, device="meta"),))) == {}


def test_the_script_is_the_compiler_with_more_options(cache: Path) -> None:
    assert Path(script(HALF)).is_relative_to(cache)
    for path, careful in ((script(torch.zeros(2)), False), (script(HALF), True)):
        for shared in (["-shared"], ["-c"]):
            said = commands(path, *shared, "x.cpp", "-ltorch", "-o", "x.so")
            assert (cxx.FLAG in said) is careful
            assert ("--no-as-needed" in said) is (shared == ["-shared"])


def test_a_kernel_finds_in_torch_what_the_linker_was_not_shown(cache: Path, tmp_path: Path) -> None:
    """An empty library stands for torch's; at run time its functions are those of the process."""
    source = 'namespace at { int get_num_threads(); }\nextern "C" int threads() { return at::get_num_threads(); }\n'
    (tmp_path / "x.cpp").write_text(source)
    made = tmp_path / "x.so"
    libraries = [f"-l{name.removeprefix('lib').removesuffix('.so')}" for name in cxx.LIBRARIES]
    command = [script(torch.zeros(2)), "-shared", "-fPIC", str(tmp_path / "x.cpp"), *libraries, "-o", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    assert ctypes.CDLL(str(made)).threads() == torch.get_num_threads()


def test_without_torchs_libraries_nothing_stands_for_them(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cxx, "_loaded", lambda: set(cxx.LIBRARIES[1:]))
    assert cxx.linking(cache / "lib", "g++") == []
    assert "cpp.cxx" not in cxx.compiler_options()
    assert "cpp.cxx" in cxx.compiler_options(careful=True)


def test_another_compiler_is_left_alone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = cache / "clang++"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    for wanted in ((None, str(other)), str(other), [str(other), "g++"]):
        with torch._inductor.config.patch({"cpp.cxx": wanted}):
            assert "cpp.cxx" not in cxx.compiler_options()


def test_another_path_of_the_compiler_has_a_script_of_its_own(cache: Path) -> None:
    """As torch's precompiled headers are one compiler's; and no script calls a script."""
    other = cache / "other" / "g++"
    other.parent.mkdir()
    other.write_text('#!/bin/sh\nexec g++ "$@"\n')
    other.chmod(0o755)
    plain = script(HALF)
    with torch._inductor.config.patch({"cpp.cxx": (None, str(other))}):
        own = script(HALF)
        assert Path(own).parent != Path(plain).parent
        assert str(other) in Path(own).read_text()
        with torch._inductor.config.patch({"cpp.cxx": (None, own)}):  # as while a kernel is compiled
            assert script(HALF) == own
    with torch._inductor.config.patch({"cpp.cxx": ("nowhere/g++", other.name)}):
        assert script(HALF) == plain


def test_where_nothing_can_be_written_torch_goes_on_as_it_does(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(cache / "file"))
    assert "cpp.cxx" not in cxx.compiler_options()


def test_where_no_script_can_be_run_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "cpp.cxx" not in cxx.compiler_options()


@pytest.mark.parametrize("known", [None, True, False])
def test_what_the_user_says_of_instructions_holds(known: bool | None) -> None:
    settings: Any = torch._inductor.config
    with settings.patch({"cpp.vec_isa_ok": known}):
        assert cxx.compiler_options().get("cpp.vec_isa_ok") is (True if known is None else None)


def test_no_thread_changes_the_settings_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch 2.9 what is compiled meanwhile would be called with them: bfloat16 without the careful script."""
    settings: Any = torch._inductor.config
    places: list[tuple[threading.Thread, bool]] = []

    def load_async(source: str, *, submit_fn: Callable[..., Any]) -> Callable[[], Any]:
        places.append((threading.current_thread(), settings.cpp.vec_isa_ok))
        return submit_fn(source.upper).result  # type: ignore[no-any-return]

    monkeypatch.setattr(cxx, "settings_by_thread", lambda: False)
    monkeypatch.setattr(CppCodeCache, "load_async", load_async)
    with ThreadPoolExecutor(1) as pool, settings.patch({"cpp.vec_isa_ok": None}):
        assert cxx.library_later("source", pool).result() == "SOURCE"
        assert settings.cpp.vec_isa_ok is None
    assert places == [(threading.current_thread(), True)]


def test_a_library_that_cannot_be_begun_says_so_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_async(source: str, *, submit_fn: Callable[..., Any]) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr(cxx, "settings_by_thread", lambda: False)
    monkeypatch.setattr(CppCodeCache, "load_async", load_async)
    with ThreadPoolExecutor(1) as pool:
        later = cxx.library_later("source", pool)
    with pytest.raises(OSError, match="no compiler"):
        later.result()
