"""Ctrl-C and SIGTERM during training: finish the step, save, stop; a second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """While entered and `patient`, the first Ctrl-C or SIGTERM sets `asked`; else it raises KeyboardInterrupt.

    The loop is patient once a step is done, and not while the first one compiles. Outside the main thread
    nothing is installed: Python delivers signals to the main thread only.
    """

    def __init__(self) -> None:
        self.asked = False
        self.patient = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self.patient:
            raise KeyboardInterrupt
        self.asked = True
