"""Memory of a process that trains: what a step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`."""
NEVER = -1
LARGEST = 1 << 30
"""Bytes up to which a block is taken from what has been freed."""


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory instead of giving it back to the system; whether it does.

    A step on a CPU allocates what the step before freed: for long sequences gigabytes, whose pages the system would
    clear again and hand out one by one. glibc only; elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST)) and bool(mallopt(TRIM_THRESHOLD, NEVER))
