"""Vector instructions are decided once, without torch's long test, and without leaving a setting behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch._inductor.config
from torch._inductor import cpu_vec_isa

from nsam.backends.torch.runtime import instructions

SETTINGS: Any = torch._inductor.config


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """What the setting is each time that torch decides."""
    found: list[object] = []
    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", lambda: found.append(SETTINGS.cpp.vec_isa_ok))
    instructions.begin.cache_clear()
    yield found
    instructions.begin.cache_clear()


def test_the_processor_is_taken_at_its_word(taken: list[object]) -> None:
    assert SETTINGS.cpp.vec_isa_ok is None
    instructions.begin()
    instructions.decided()
    instructions.decided()
    assert taken == [True]
    assert SETTINGS.cpp.vec_isa_ok is None


@pytest.mark.parametrize("own", [True, False])
def test_a_setting_of_the_user_stays(taken: list[object], own: bool) -> None:
    with SETTINGS.patch({"cpp.vec_isa_ok": own}):
        instructions.decided()
        assert SETTINGS.cpp.vec_isa_ok is own
    assert taken == [own]


def test_what_goes_wrong_is_said_where_it_is_waited_for(taken: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no space left")

    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", broken)
    instructions.begin()
    with pytest.raises(OSError, match="no space left"):
        instructions.decided()
    assert SETTINGS.cpp.vec_isa_ok is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_decides_itself(taken: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "_aside", lambda work: None)  # the thread is not there yet, or any more
    waiting = instructions.begin()
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(instructions, "_aside", lambda work: work())
        try:
            os._exit(0 if instructions.begin() is not waiting and instructions.begin().done() else 9)
        finally:
            os._exit(8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert instructions.begin() is waiting


def test_what_goes_wrong_ahead_does_not_stop_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(instructions, "_keys", lambda: 1 / 0)
    monkeypatch.setattr(instructions, "prepare", done.set)
    monkeypatch.setattr(instructions, "settings_by_thread", lambda: True)
    instructions.prepare_to_compile.cache_clear()
    instructions.prepare_to_compile()
    assert done.wait(10)


@pytest.mark.usefixtures("taken")
def test_no_thread_changes_the_settings_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch 2.9 another thread, which compiles meanwhile, would see them, or leave them set at its end."""
    places: list[threading.Thread] = []
    done = threading.Event()
    monkeypatch.setattr(instructions, "settings_by_thread", lambda: False)
    monkeypatch.setattr(instructions, "_decide", lambda: places.append(threading.current_thread()))
    monkeypatch.setattr(instructions, "prepare", lambda: places.append(threading.current_thread()))
    monkeypatch.setattr(instructions, "_keys", done.set)
    instructions.decided()
    instructions.prepare_to_compile.cache_clear()
    instructions.prepare_to_compile()
    assert done.wait(10)
    instructions.prepare_to_compile.cache_clear()
    assert places == [threading.current_thread()]
