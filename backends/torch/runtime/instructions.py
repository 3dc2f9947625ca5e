"""Which vector instructions compiled code may use, decided once a process, on a thread of its own where there is time.

torch asks the processor, and then the C++ compiler: for each of four kinds of instructions it compiles and loads
programs with its large header, one after the other, 17 s with an empty cache and 3 s with a full one (2 cores), in the
middle of compiling the first graph. What the processor reports is taken at its word here; that the compiler knows the
instructions beyond the plain ones is still tried, 4 s and 0.6 s.

Where a function is to be compiled, another thread meanwhile asks what torch's cache is keyed by, hashes of all files of
torch's compiler and of Triton (0.7 s), and has torch's header for kernels compiled. By the time that the function is
traced, all that is known.

With a torch whose settings are the process's (`settings_by_thread`) it is decided at once, and no thread has the header
compiled: a thread would set what another one compiles with.
"""

from __future__ import annotations

import contextvars
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import torch

from nsam.backends.torch.runtime.cxx import prepare, settings_by_thread


@functools.cache
def begin() -> Future[None]:
    """Have it decided, in the background where a thread may."""
    future: Future[None] = Future()

    def work() -> None:
        try:
            _decide()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    if settings_by_thread():
        _aside(work)
    else:
        work()
    return future


if hasattr(os, "register_at_fork"):  # a forked process has not the thread that decides, and would wait for ever
    os.register_at_fork(after_in_child=begin.cache_clear)


@functools.cache
def prepare_to_compile() -> None:
    """Begin with what compiling needs, in the background, as far as a thread may."""
    needed = (_keys, prepare) if settings_by_thread() else (_keys,)

    def work() -> None:
        for each in needed:
            with suppress(Exception):  # whoever needs its result asks again, and is told what is wrong
                each()

    _aside(work)


def _aside(work: Callable[[], None]) -> None:
    # With the settings of who asks (torch keeps them by thread). A program that ends does not wait for it.
    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="nsam-instructions", daemon=True).start()


def _keys() -> None:
    from torch._inductor.codecache import CacheBase, torch_key

    torch_key()
    CacheBase.get_system()


def decided() -> None:
    """Wait until it is decided."""
    begin().result()


def _decide() -> None:
    import torch._inductor.config as config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    settings: Any = config
    if settings.cpp.vec_isa_ok is not None:  # whoever set it knows
        pick_vec_isa()
        return
    settings.cpp.vec_isa_ok = True
    try:
        pick_vec_isa()  # torch keeps what it finds
    finally:
        settings.cpp.vec_isa_ok = None


def multiplies_in_bfloat16() -> bool:
    """Whether the processor has instructions for products in bfloat16; True where torch cannot tell."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
