"""Requests that no machine can serve: said plainly, before or when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nsam.dsl.diagnostics import fail

MAX_STEP_BYTES = 2**28
"""Bytes of text in the rows of one step: far above what a machine trains on at once."""

_ALLOCATION = ("can't allocate memory", "not enough memory", "out of memory")


def require_reasonable_step(context: int, batch: int) -> None:
    """Check that the rows of a step are not absurdly many; N0517 otherwise."""
    if batch * (context + 1) > MAX_STEP_BYTES:
        raise fail(
            "N0517",
            f"a step of {batch:,} rows of {context + 1:,} bytes is more than {MAX_STEP_BYTES:,} bytes",
            help="use a smaller batch: --set batch=8",
        )


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's and Python's out-of-memory errors into N0517."""
    try:
        yield
    except MemoryError:
        raise _out_of_memory("the machine has no memory left") from None
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        if isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _ALLOCATION):
            raise _out_of_memory(reason) from None
        raise


def _out_of_memory(reason: str) -> Exception:
    return fail(
        "N0517",
        "training needs more memory than there is",
        notes=(reason,),
        help="use a smaller batch, context or model, e.g. --set batch=1; the last checkpoint of the run stays",
    )
