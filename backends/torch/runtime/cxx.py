"""The C++ compiler that torch calls for a CPU: g++, by a script that adds what torch has no options for.

Linking. A kernel is linked with torch's libraries, and the linker reads the names of everything in half a gigabyte to
find a handful: 0.4 s for each kernel, as much as compiling a small one takes (2 cores). At run time they are loaded
anyway, and names are looked up there. So the linker is shown empty libraries of the same names.

bfloat16. GCC 12 at -O3 miscompiles the transposition of bfloat16 tiles in torch's headers (AVX-512): its vectoriser of
straight lines of code loses the tile, and gradients become garbage or NaN. Without that one optimisation the same code
is right.
"""

from __future__ import annotations

import contextvars
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsam.backends.torch.runtime.files import put

FLAG = "-fno-tree-slp-vectorize"
HEADER = "torch/csrc/inductor/cpp_prefix.h"
_REAL: dict[str, str] = {}
"""The compiler that each script calls."""
LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libtorch_python.so")


def care(values: tuple[Tensor, ...]) -> bool | None:
    """Whether a call with these values takes the careful script, as bfloat16 does; None where none is on a CPU."""
    if not any(x.device.type == "cpu" for x in values):
        return None
    half = torch.is_autocast_enabled("cpu") or any(x.dtype == torch.bfloat16 for x in values)
    return half and "AVX512" in torch.backends.cpu.get_cpu_capability()


def compiler_options(careful: bool | None = False) -> dict[str, Any]:
    """What torch is to be told: the script, and not to try out vector instructions (`instructions.py`).

    Nothing where `careful` is None, off the CPU.
    """
    if careful is None:
        return {}
    cpp: Any = torch._inductor.config.cpp
    wanted = cpp.cxx
    script = compiler(careful, wanted if isinstance(wanted, str) else tuple(wanted))
    options: dict[str, Any] = {} if script is None else {"cpp.cxx": (None, script)}
    if cpp.vec_isa_ok is None:
        options["cpp.vec_isa_ok"] = True
    return options


@functools.cache
def compiler(careful: bool, wanted: str | tuple[str | None, ...]) -> str | None:
    """The path of the script over the compiler that torch's setting `cpp.cxx` names, which may be such a script.

    None if that is not GCC's g++, nothing is to be added or no script can be run. It lies where torch keeps its
    precompiled headers, which are made for one path of the compiler: each compiler has its own.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    names = (wanted,) if isinstance(wanted, str) else wanted
    real = next((_REAL.get(path, path) for path in (shutil.which(name) for name in names if name) if path), None)
    if real is None or "g++" not in Path(real).name or "clang" in Path(real).name:
        return None
    here = Path(default_cache_dir()) / "nsam"
    own = "" if real == shutil.which("g++") else "-" + hashlib.sha256(real.encode()).hexdigest()[:16]
    try:
        linked, more = linking(here / "lib", real), [FLAG] if careful else []
        if not linked and not more:
            return None
        script = _written(here / (("careful" if careful else "bin") + own), real, linked, more)
    except OSError:  # no room, or not ours to write
        return None
    _REAL[str(script)] = real
    return str(script) if os.access(script, os.X_OK) else None


def _written(folder: Path, real: str, linked: list[str], more: list[str]) -> Path:
    """The script that calls the compiler `real` with `more` options, and others where it links."""
    command, rest = f"exec {shlex.quote(real)}", f'"$@" {shlex.join(more)}'.rstrip()
    lines = ["#!/bin/sh", f"{command} {rest}", ""]
    if linked:  # options of the linker would make a program of a header
        lines.insert(1, f'for word in "$@"; do [ "$word" = -shared ] && {command} {shlex.join(linked)} {rest}; done')
    text, script = "\n".join(lines), folder / "g++"  # torch takes its flags from the name
    if not script.exists() or script.read_text() != text:
        put(script, text.encode(), executable=True)
    return script


@functools.cache
def settings_by_thread() -> bool:
    """Whether torch keeps its compiler's settings by thread, as 2.13 does; with 2.9 and 2.10 they are the process's.

    There a thread that changes them changes what another one compiles meanwhile, and where the two end in another order
    than they began, what was set for a while stays set. So no thread of this package may change them then.
    """
    from torch.utils import _config_module

    return hasattr(_config_module, "ContextVar")


def library(source: str) -> Any:
    """A library of C++ that begins like torch's own kernels: with its header, compiled ahead once for a machine."""
    settings: Any = torch._inductor.config
    with settings.patch(compiler_options()):
        return _libraries().load(source)


def library_later(source: str, pool: Executor) -> Any:
    """The same, made by a thread of `pool` while this one goes on; `result()` of what is returned waits for it.

    Where settings are the process's the thread only runs the C++ compiler; the command is put together here.
    """
    from torch._inductor.codecache import LambdaFuture

    if settings_by_thread():
        return pool.submit(contextvars.copy_context().run, library, source)  # with the settings of this thread
    settings: Any = torch._inductor.config
    try:
        with settings.patch(compiler_options()):
            return LambdaFuture(_libraries().load_async(source, submit_fn=pool.submit))
    except Exception as error:  # said where the library is needed, as that of a thread is
        failed: Future[Any] = Future()
        failed.set_exception(error)
        return failed


@functools.cache
def _libraries() -> Any:
    from torch._inductor.codecache import CppCodeCache, CppPythonBindingsCodeCache

    class Cache(CppCodeCache):
        # As for torch's own kernels: the header is compiled, and looked for in a later process, once for both.
        cpp_compile_command_flags = CppPythonBindingsCodeCache.cpp_compile_command_flags

        @classmethod
        def _get_uncompiled_header(cls, device: str) -> str | None:
            return HEADER

    return Cache


def prepare() -> None:
    """Have torch's header compiled, which takes several seconds the first time on a machine."""
    library(f'#include <{HEADER}>\nextern "C" void nothing() {{}}\n')


def linking(folder: Path, real: str) -> list[str]:
    """Options with which the linker finds empty libraries in `folder` where torch's are asked for.

    None of them unless torch's are loaded under these very names: a kernel looks its names up there.
    """
    if not sys.platform.startswith("linux") or not set(LIBRARIES) <= _loaded():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for name in LIBRARIES:
        if not (folder / name).exists():
            with tempfile.TemporaryDirectory(dir=folder) as aside:
                made = Path(aside) / name
                command = [real, "-shared", "-nostdlib", f"-Wl,-soname,{name}", "-x", "c", os.devnull, "-o", str(made)]
                if subprocess.run(command, capture_output=True).returncode != 0:
                    return []
                made.replace(folder / name)
    # Some systems' linkers leave out libraries of which they need nothing, and of these they need nothing.
    return ["-Wl,--no-as-needed", f"-L{folder}"]


def _loaded() -> set[str]:
    """The file names of the libraries of this process."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return set()
    return {Path(line.split(maxsplit=5)[5]).name for line in lines if "/" in line}
