"""What training shows, on a terminal and off it."""

from __future__ import annotations

import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from nsam.cli import train_display
from nsam.cli.train_display import LineWatcher, LiveWatcher
from nsam.training.progress import WARM_UP, Progress, Speed

EARLY = Progress(1, 2000, math.log(256), None, None, 3.2, None)
LATE = Progress(
    1500,
    2000,
    math.log(4),
    math.log(8),
    3512.4,
    3725.0,
    65.0,
    {
        "repeat.0.titans.k": {"level": 2, "loss": 0.5},
        "repeat.0.titans.mem": {"level": 1, "loss": 0.012345},
    },
)


def console(width: int = 100) -> tuple[Console, StringIO]:
    out = StringIO()
    return Console(file=out, width=width, highlight=False), out


@pytest.mark.parametrize("width", [40, 100])
def test_the_screen_can_be_drawn_at_any_moment(width: int) -> None:
    """The refreshing thread may draw before the loop has said anything; an exception there would end the display."""
    screen, out = console(width)
    watcher = LiveWatcher(screen, True, 2000)
    screen.print(watcher.screen())
    assert "compiling" in out.getvalue()
    watcher.started(0, 2000)
    screen.print(watcher.screen())
    watcher.stepped(EARLY)
    screen.print(watcher.screen())
    assert "8.000" in out.getvalue()


def test_the_clock_goes_on_during_a_long_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(train_display.time, "monotonic", lambda: now)
    screen, out = console()
    watcher = LiveWatcher(screen, False, 2000)
    watcher.stepped(LATE)
    now += 60
    screen.print(watcher.screen())
    assert "1:03:05" in out.getvalue()


def test_the_screen_shows_losses_speed_and_memories_by_level() -> None:
    screen, out = console()
    watcher = LiveWatcher(screen, False, 2000)
    watcher.started(0, 2000)
    watcher.stepped(LATE)
    watcher.saved(1400, Path("x"))
    screen.print(watcher.screen())
    text = out.getvalue()
    for part in ("step 1,500 of 2,000", "75%", "2.000 bits/byte", "3.000 bits/byte", "3,512 tokens/s", "1:02:05"):
        assert part in text
    for part in ("1:05", "saved at step 1,400", "0.01235"):
        assert part in text
    assert text.index("titans.mem") < text.index("titans.k")


def test_lines_come_at_the_first_step_then_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(train_display.time, "monotonic", lambda: now)
    screen, out = console(200)
    watcher = LineWatcher(screen, False)
    watcher.started(0, 2000)
    watcher.stepped(EARLY)
    watcher.stepped(LATE)
    now += 11
    watcher.stepped(LATE)
    watcher.stepped(LATE)
    now += 11
    watcher.stepped(replace(LATE, evaluates=True))  # the same step, with the held-out loss before this one
    watcher.evaluated(LATE)
    lines = out.getvalue().splitlines()
    assert [line.split()[0:2] for line in lines] == [
        ["running", "the"],
        ["step", "1/2,000"],
        ["step", "1,500/2,000"],
        ["step", "1,500/2,000"],
    ]


def test_what_a_graph_was_recorded_as_is_said_once() -> None:
    said = "a wavefront of 4 segments, 15 ms a step (one layer after the other, 25 ms)"
    screen, out = console()
    watcher = LineWatcher(screen, True)
    for _ in range(2):
        watcher.stepped(replace(LATE, graph=said))
    assert [line for line in out.getvalue().splitlines() if "wavefront" in line] == [f"CUDA graph: {said}"]
    screen, out = console()
    live = LiveWatcher(screen, True, 2000)
    live.stepped(replace(LATE, graph=said))
    screen.print(live.screen())
    assert f"CUDA graph  {said}" in out.getvalue()


def test_speed_leaves_out_the_steps_that_compile() -> None:
    speed = Speed(1000)
    for _ in range(WARM_UP):
        speed.add(100.0)
    assert speed.tokens_per_second is None
    for seconds in (0.4, 0.6):
        speed.add(seconds)
    assert speed.tokens_per_second == 2000
