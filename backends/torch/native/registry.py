"""The operator that runs a native kernel: `nsam::kernel(name, inputs) -> outputs`.

A kernel is kept by name in torch's compilation cache, where the graphs that call it are kept too.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from nsam.backends.torch.native.kernel import Kernel, Layout
from nsam.backends.torch.runtime.cxx import library, library_later
from nsam.backends.torch.runtime.files import put

# As torch's own generated code makes tensors: three times as fast, and there are a hundred in a call.
_empty: Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor] = torch._C._dynamo.guards._empty_strided_cpu  # type: ignore[attr-defined]

KNOWN: dict[str, Kernel] = {}
_LOG = logging.getLogger("nsam")


def register(kernel: Kernel) -> str:
    """Keep a kernel, and begin with its C++. Returns the name under which the operator finds it.

    Where it cannot be written, this process has it, and the next one finds it lost and makes it anew.
    """
    name = _name(kernel)
    if name not in KNOWN:
        KNOWN[name] = kernel
        _LIBRARIES[name] = library_later(kernel.source, _pool())  # while torch goes on with the rest of the graph
        try:
            put(_path(name), json.dumps(kernel).encode())
        except OSError as error:  # no room, or not ours to write
            _not_kept(_path(name).parent, error.strerror or str(error))
    return name


@functools.cache  # once, however many kernels there are
def _not_kept(folder: Path, why: str) -> None:
    _LOG.warning("native kernels cannot be kept in %s for the next start, which will take longer: %s", folder, why)


def find(name: str) -> Kernel:
    """A kernel by its name; one that another process made is read from the cache."""
    if not _known(name):
        _lost(name)
    return KNOWN[name]


def lost(code: bytes) -> bool:
    """Whether a kernel that some stored code calls is gone or damaged: a folder may be cleaned, a disk be full."""
    names = {name.decode() for name in re.findall(rb"nsam\.kernel(?:\.default)?\(\s*'([0-9a-f]{32})'", code)}
    return not all(map(_known, names))


def _known(name: str) -> bool:
    """Whether there is a kernel of this name, read from the cache where that has to be."""
    if name not in KNOWN:
        try:
            source, inputs, outputs = json.loads(_path(name).read_bytes())
            layouts = [tuple(Layout(tuple(s), tuple(t), d) for s, t, d in each) for each in (inputs, outputs)]
        except (OSError, ValueError, TypeError):  # not there, not to be read, or not what was written
            return False
        kernel = Kernel(source, *layouts)
        if _name(kernel) != name:
            return False
        KNOWN[name] = kernel
    return True


def _name(kernel: Kernel) -> str:
    return hashlib.sha256(repr(kernel).encode()).hexdigest()[:32]


def _lost(name: str) -> NoReturn:
    raise RuntimeError(
        f"nsam internal error: the native kernel {name} is missing from torch's compilation cache "
        f"({_path(name).parent.parent}); remove that folder to have everything compiled anew, and please report this"
    )


def _path(name: str) -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "nsam" / f"{name}.json"


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, thread_name_prefix="nsam-kernels")


_LIBRARIES: dict[str, Any] = {}


def _after_fork() -> None:
    """A forked process has none of the threads, and nobody finishes in it what they had begun."""
    _pool.cache_clear()
    _LIBRARIES.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _loaded(name: str) -> Callable[..., None]:
    begun, made = _LIBRARIES.pop(name, None), None
    if begun is not None:
        with suppress(Exception):  # it is made again, which succeeds or tells what is wrong: Ctrl-C ends g++ too
            made = begun.result()
    run = (library(find(name).source) if made is None else made).run
    run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_long], None
    return run  # type: ignore[no-any-return]


@functools.cache
def _types(name: str) -> tuple[list[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]], ...]:
    kernel = find(name)
    return tuple([(s, t, getattr(torch, d)) for s, t, d in each] for each in (kernel.inputs, kernel.outputs))


def run(name: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run a kernel. Inputs that do not lie as it expects are copied."""
    expected, given = _types(name)
    placed = [
        x if x.stride() == strides else _placed(x, sizes, strides)
        for x, (sizes, strides, _) in zip(inputs, expected, strict=True)
    ]
    outputs = [_empty(sizes, strides, dtype) for sizes, strides, dtype in given]
    pointers = (ctypes.c_void_p * (len(placed) + len(outputs)))(*[x.data_ptr() for x in (*placed, *outputs)])
    _loaded(name)(pointers, torch.get_num_threads())
    return outputs


def _placed(x: Tensor, sizes: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """The values as strides say: where one is 0 they repeat, and where there is but one it says nothing."""
    if all(n == 1 or s == t for n, s, t in zip(sizes, x.stride(), strides, strict=True)):
        return x
    once = x[tuple([slice(None) if stride else slice(1) for stride in strides])]
    return torch.empty_strided(once.shape, strides, dtype=x.dtype).copy_(once).expand(sizes)


def _shapes(name: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_strided(s, t, dtype=d, device=inputs[0].device) for s, t, d in _types(name)[1]]


LIBRARY = torch.library.Library("nsam", "FRAGMENT")  # type: ignore[no-untyped-call]
LIBRARY.define("kernel(str name, Tensor[] inputs) -> Tensor[]", tags=(torch.Tag.needs_fixed_stride_order,))  # type: ignore[no-untyped-call]
LIBRARY.impl("kernel", run, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("nsam::kernel", _shapes, lib=LIBRARY)
