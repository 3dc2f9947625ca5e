"""The pass over torch's graphs, between differentiation and code, that puts native kernels into them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph

from nsam.backends.torch.native.regions import Replaced, replace
from nsam.compiler import instances


class NativeKernels(CustomGraphPass):
    """Replaces the work on instances by kernels; `done` says what was replaced, graph by graph.

    `again`: torch's cache is not to find what it has, whose kernels are gone.
    """

    def __init__(self, *, again: bool = False) -> None:
        self.again = again
        self.done: list[list[Replaced]] = []

    def __call__(self, graph: Graph) -> None:
        """Replace what can be replaced."""
        try:
            self.done.append(replace(graph))
        except Exception as error:
            raise RuntimeError(
                f"nsam internal error: a block could not be made a native kernel ({type(error).__name__}: {error}); "
                'the pass `native` can be switched off (without="native"); please report this with your program'
            ) from error

    def uuid(self) -> Any:
        """What a cached graph depends on: this package's files."""
        here = (*Path(__file__).parent.glob("*.[ph]*"), Path(instances.__file__))
        return get_hash_for_files(tuple(sorted(map(str, here))), "again" if self.again else "")


@functools.cache
def native_kernels() -> NativeKernels:
    """The one pass of this process."""
    return NativeKernels()
