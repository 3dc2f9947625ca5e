"""Python's collector of cycles, kept out of the way.

What a check makes lives until its end. The collector would look through it over and over, and through everything else
that the process holds: where torch's compiler is loaded, a third of the time of a check. Compiling is the same.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Nothing is collected inside, and afterwards as before. Also a decorator: `@paused()`."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
