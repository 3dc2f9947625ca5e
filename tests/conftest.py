"""What holds for all tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

SLOWEST = ("long", "slow")
QUICK_KERNELS = {
    "compile_threads": 1,
    "cpp.simdlen": 1,
    "cpp.max_horizontal_fusion_size": 64,
    "aot_inductor.debug_compile": True,
    "pattern_matcher": False,
}


@pytest.fixture
def quick_kernels() -> Iterator[None]:
    """Kernels that g++ neither optimises nor vectorises: what is tested is what inductor was given, not its speed."""
    import torch._inductor

    with torch._inductor.config.patch(QUICK_KERNELS):
        yield


@pytest.fixture
def short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of few chunks: compiled code is the same in kind as that of long ones, and made in a part of the time."""
    monkeypatch.setattr("nsam.compiler.loops.SEGMENT_TOKENS", 8)
    monkeypatch.setattr("nsam.compiler.loops.LONG_TOKENS", 8)


@pytest.hookimpl(optionalhook=True)  # where pytest-xdist is installed
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let a process that has run its tests take over some of another's: none is idle while others have work."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start what takes long first, so that no process ends with it alone; leave out what needs a GPU and has none."""
    items.sort(
        key=lambda item: next((i for i, name in enumerate(SLOWEST) if item.get_closest_marker(name)), len(SLOWEST))
    )
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device here"))


def pytest_collection_finish() -> None:
    """What is loaded stays; that Python's collector looks through it again and again takes a sixth of compiling."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
