"""Memory that a process frees and takes again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from nsam.training.allocator import keep_freed_memory
assert keep_freed_memory()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = [torch.ones(1 << 22) for _ in range(12)]  # 16 MiB each: 49,152 pages
    del x
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_taken_again_without_new_pages() -> None:
    """Without it there are all of them, in each round, or now and then none; with some versions of glibc a few stay."""
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 49_152 / 4
