"""What `nsam train` shows: a live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from nsam.training.progress import Progress
from nsam.training.report import bits

LINE_SECONDS = 10.0
"""How often a line is printed where there is no terminal."""

COMPILING = "compiling the first step; this takes a minute or two the first time, seconds after that"
UNCOMPILED = "running the first step"


class LineWatcher:
    """Prints a line at the first step, every ten seconds, and at every held-out loss."""

    def __init__(self, console: Console, compiled: bool) -> None:
        self._console, self._compiled = console, compiled
        self._printed = -LINE_SECONDS
        self._told: dict[str, str | None] = {}

    def __enter__(self) -> LineWatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind: lines need no cleaning up."""

    def started(self, step: int, steps: int) -> None:
        """Say that the first step may take long."""
        if step < steps:
            self._print(COMPILING if self._compiled else UNCOMPILED)
            self._printed = -LINE_SECONDS

    def stepped(self, progress: Progress) -> None:
        """Print a line when it is time and no held-out loss brings one.

        Before it what a budget or a CUDA graph led to, when that is known or changes.
        """
        for name, said in (("memory", progress.budget), ("CUDA graph", progress.graph)):
            if said != self._told.get(name):
                self._told[name] = said
                self._print(f"{name}: {said}")
                self._printed = -LINE_SECONDS
        if not progress.evaluates and time.monotonic() - self._printed >= LINE_SECONDS:
            self._print(_line(progress))

    def evaluated(self, progress: Progress) -> None:
        """Print a line."""
        self._print(_line(progress))

    def saved(self, step: int, path: Path) -> None:
        """Say nothing: the folder tells."""

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveWatcher:
    """Keeps one screen up to date: progress, losses, speed, and a table of memories."""

    def __init__(self, console: Console, compiled: bool, steps: int) -> None:
        self._compiled = compiled
        self._bar = Bar(
            TextColumn("step {task.completed:,} of {task.total:,}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("train", total=steps)
        self._progress: Progress | None = None
        self._begun = self._kept = time.monotonic()
        self._saved: int | None = None
        self._live = Live(get_renderable=self.screen, console=console, refresh_per_second=2)

    def __enter__(self) -> LiveWatcher:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def started(self, step: int, steps: int) -> None:
        """Set the bar."""
        self._begun = time.monotonic()
        self._bar.update(self._task, total=steps, completed=step)

    def stepped(self, progress: Progress) -> None:
        """Keep the numbers for the next refresh."""
        self._keep(progress)
        self._bar.update(self._task, completed=progress.step)

    def evaluated(self, progress: Progress) -> None:
        """Keep the numbers for the next refresh."""
        self._keep(progress)

    def saved(self, step: int, path: Path) -> None:
        """Remember the last checkpoint."""
        self._saved = step

    def _keep(self, progress: Progress) -> None:
        self._progress, self._kept = progress, time.monotonic()

    def screen(self) -> RenderableType:
        """Return what to show now; called by the refreshing thread at any moment, also before `started`."""
        if self._progress is None:
            seconds = time.monotonic() - self._begun
            note = COMPILING if self._compiled else UNCOMPILED
            return Group(self._bar, Text(f"{note}  {_clock(seconds)}", style="yellow"))
        # The clock goes on during a long step, so that nobody takes it for a hang.
        now = replace(self._progress, elapsed=self._progress.elapsed + time.monotonic() - self._kept)
        parts: list[RenderableType] = [self._bar, _numbers(now, self._saved)]
        if self._progress.budget is not None:
            parts.append(Text(f"memory  {self._progress.budget}", style="dim"))
        if self._progress.graph is not None:
            parts.append(Text(f"CUDA graph  {self._progress.graph}", style="dim"))
        if self._progress.memories:
            parts.append(memory_table(self._progress.memories))
        return Group(*parts)


def memory_table(memories: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the fast memories, fastest level first, with their inner losses."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("level", justify="right")
    table.add_column("memory")
    table.add_column("inner loss", justify="right")
    for path, values in sorted(memories.items(), key=lambda item: (item[1]["level"], item[0])):
        loss = values["loss"]
        table.add_row(str(values["level"]), path, "-" if loss is None else f"{loss:.4g}")
    return table


def _numbers(progress: Progress, saved: int | None) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 3, 0, 0))
    table.add_row(
        f"[dim]training[/] [bold]{bits(progress.loss):.3f}[/] bits/byte",
        f"[dim]held out[/] [bold]{_held_out(progress)}[/]",
        f"[bold]{_speed(progress)}[/]",
    )
    table.add_row(
        f"[dim]elapsed[/] {_clock(progress.elapsed)}",
        f"[dim]remaining[/] {_remaining(progress)}",
        "" if saved is None else f"[dim]saved at step {saved:,}[/]",
    )
    return table


def _line(progress: Progress) -> str:
    return (
        f"step {progress.step:,}/{progress.steps:,}  training {bits(progress.loss):.3f} bits/byte  "
        f"held out {_held_out(progress)}  {_speed(progress)}  elapsed {_clock(progress.elapsed)}  "
        f"remaining {_remaining(progress)}"
    )


def _held_out(progress: Progress) -> str:
    return "-" if progress.held_out is None else f"{bits(progress.held_out):.3f} bits/byte"


def _speed(progress: Progress) -> str:
    return "- tokens/s" if progress.tokens_per_second is None else f"{progress.tokens_per_second:,.0f} tokens/s"


def _remaining(progress: Progress) -> str:
    return "-" if progress.remaining is None else _clock(progress.remaining)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
