"""Which C++ compiler is asked for: without one optimisation where there is bfloat16 on a CPU with AVX-512."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nsam.backends.torch.runtime import cxx


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    cxx.compiler.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    yield tmp_path
    cxx.compiler.cache_clear()


def test_only_for_bfloat16(cache: Path) -> None:
    assert cxx.options_for((torch.zeros(2),)) == {}
    assert cxx.options_for((torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16))) != {}
    with torch.autocast("cpu", torch.bfloat16):
        assert cxx.options_for((torch.zeros(2),)) != {}


def test_other_processors_need_no_care(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert cxx.options_for((torch.zeros(2, dtype=torch.bfloat16),)) == {}


def test_the_script_is_the_compiler_with_one_more_flag(cache: Path) -> None:
    script = cxx.options_for((torch.zeros(2, dtype=torch.bfloat16),))["cpp.cxx"][1]
    assert Path(script).is_relative_to(cache)
    source = cache / "x.cpp"
    source.write_text("int main() { return 0; }\n")
    done = subprocess.run([script, "-v", "-c", str(source), "-o", str(cache / "x.o")], capture_output=True, text=True)
    assert done.returncode == 0
    assert cxx.FLAG in done.stderr


def test_another_compiler_is_left_alone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = cache / "clang++"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("CXX", str(other))
    assert cxx.compiler() is None
