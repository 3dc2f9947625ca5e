"""C++ kernels of compiled code that are waited for when they are called, not when their code is loaded.

torch waits for the C++ compiler at the end of each graph. Before a kernel runs there is more to do meanwhile: the
backward graph is lowered, the next function traced.

A kernel that the compiler was kept from making, by Ctrl-C say, which ends it too, is made again when it is called.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import suppress
from types import MethodType
from typing import Any


class Later:
    """A kernel that is being compiled; the first call waits for it, and puts it into its place."""

    __slots__ = ("future", "name", "scope")

    def __init__(self, future: Any, scope: dict[str, Any], name: str) -> None:
        self.future, self.scope, self.name = future, scope, name

    def __call__(self, *arguments: Any) -> Any:
        """Run the kernel."""
        kernel = self.scope[self.name] = self.future.result()
        return kernel(*arguments)


@functools.cache
def wait_later() -> Callable[[Any, dict[str, Any]], None]:
    """Instead of torch's `AsyncCompile.wait`, with which the code of a graph ends. Only where all kernels are C++."""
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codecache import LambdaFuture

    wait = AsyncCompile.wait

    def run(compiling: Any, scope: dict[str, Any]) -> None:
        for name, value in scope.items():
            if isinstance(value, LambdaFuture):
                scope[name] = Later(value, scope, name)
        wait(compiling, scope)

    return run


@functools.cache
def submit_later() -> MethodType:
    """Instead of torch's `AsyncCompile.submit`, whose future keeps an error for ever.

    What waits for a kernel makes it where the file is not there, and says then what is wrong.
    """
    from torch._inductor.async_compile import AsyncCompile

    if hasattr(os, "register_at_fork"):  # a forked process has none of the pool's threads
        os.register_at_fork(after_in_child=AsyncCompile.pool.cache_clear)
    submit = AsyncCompile.submit

    def run(_: type, task: Callable[[], Any]) -> Any:
        return submit(functools.partial(_tried, task))

    return MethodType(run, AsyncCompile)  # a class method, as torch's is


def _tried(task: Callable[[], Any]) -> None:
    with suppress(Exception):
        task()
