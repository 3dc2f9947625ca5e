"""Where one training step of hope_bytes goes: operations by time, and the share of matrix products."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe, matrix_product, synchronize
from benchmarks.models import HOPE, random_tokens
from benchmarks.report import duration, wide_console
from benchmarks.settings import Settings

PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::_mm", "mkl", "mkldnn", "gemm", "cutlass")
ROWS = 30
PHASE = "phase: "


@dataclass(frozen=True)
class Share:
    """One operation: how often it ran, its own time, and whether it multiplies matrices."""

    name: str
    calls: int
    seconds: float
    product: bool


def hope_step(settings: Settings) -> tuple[Any, float, int]:
    """Return the training step of hope_bytes (forward, backward, optimizer), its least FLOPs, and its tokens."""
    import nsam
    from benchmarks.b3_hope import minimum_flops
    from nsam import api
    from nsam.training.objective import next_byte_loss

    build = settings.build()
    overrides: dict[str, Any] = {}
    train = nsam.load(HOPE).train("hope_bytes", overrides)
    options: Any = train.data[1]
    context, batch = (64, 2) if settings.quick else (options["context"], options["batch"])
    torch.manual_seed(0)
    module = api.compile_unit(train.model, compiled=settings.compiled).to(build.device)
    optimizer = api.train_optimizer(train, module)
    rows = random_tokens(batch, context + 1).to(build.device)

    def step() -> None:
        with torch.profiler.record_function(PHASE + "forward"):
            loss, _ = next_byte_loss(module, rows, None, build.dtype)
        with torch.profiler.record_function(PHASE + "backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with torch.profiler.record_function(PHASE + "optimizer"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step, 3.0 * batch * context * minimum_flops(), batch * context


def run(settings: Settings, out: Path | None) -> None:
    """Profile one step and print the table; with `out`, write it and a trace for a viewer there."""
    import torch._inductor.config as inductor

    inductor.cpp.enable_kernel_profile = True  # names for the kernels that torch.compile writes
    settings.apply()
    console = wide_console()
    build = settings.build()
    step, flops, tokens = hope_step(settings)
    console.print("one training step of hope_bytes; the first step compiles", style="dim")
    for _ in range(1 if settings.quick else 3):
        step()
    seconds = min(_seconds(step, build.device) for _ in range(1 if settings.quick else 5))
    product, product_flops = matrix_product(build, settings.quick)
    product()
    rate = product_flops / min(_seconds(product, build.device) for _ in range(5))
    activities = [torch.profiler.ProfilerActivity.CPU]
    if build.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
        synchronize(build.device)
    text = _report(console, list(profile.key_averages()), seconds, flops, tokens, rate, build.device)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        machine = "\n".join(f"- {key}: {value}" for key, value in describe(settings).items())
        (out / "profile.md").write_text(f"# One step of hope_bytes\n\n{machine}\n\n{text}")
        profile.export_chrome_trace(str(out / "profile.json"))
        console.print(f"written to {out}")


def _seconds(step: Any, device: torch.device) -> float:
    synchronize(device)
    begun = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - begun


def shares(events: Iterable[Any], device: torch.device) -> list[Share]:
    """Own time by operation, largest first; the marked phases are left out."""
    own: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for event in events:
        if event.key.startswith((PHASE, "##")):  # torch marks its compiled graphs with ##
            continue
        micros = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        entry = own[event.key]
        entry[0] += event.count
        entry[1] += micros / 1e6
    found = [Share(name, int(n), s, name.startswith(PRODUCTS)) for name, (n, s) in own.items()]
    return sorted(found, key=lambda share: -share.seconds)


def _report(
    console: Console, events: list[Any], seconds: float, flops: float, tokens: int, rate: float, device: torch.device
) -> str:
    found = shares(events, device)
    total = sum(share.seconds for share in found) or 1e-9
    phases = {e.key: e.cpu_time_total / 1e6 for e in events if e.key.startswith(PHASE)}
    lines = [
        f"step {duration(seconds)}, {tokens / seconds:,.0f} tokens/s, "
        f"{flops / seconds / 1e9:,.0f} GFLOP/s of the least FLOPs, {flops / seconds / rate:.1%} of the matrix-product "
        f"rate ({rate / 1e9:,.0f} GFLOP/s)",
        "phases (profiled): " + ", ".join(f"{key.removeprefix(PHASE)} {duration(s)}" for key, s in phases.items()),
        f"in matrix products: {sum(s.seconds for s in found if s.product) / total:.1%} "
        f"of {duration(total)} of own time; "
        f"{sum(s.calls for s in found if s.product):,} products, {sum(s.calls for s in found):,} operations",
    ]
    table = Table()
    for column in ("operation", "calls", "own time", "share", "a call"):
        table.add_column(column, justify="left" if column == "operation" else "right", overflow="fold")
    rows = [
        (
            s.name[:72],
            f"{s.calls:,}",
            duration(s.seconds),
            f"{s.seconds / total:.1%}",
            duration(s.seconds / max(1, s.calls)),
        )
        for s in found[:ROWS]
    ]
    for cells in rows:
        table.add_row(*cells)
    for line in lines:
        console.print(line, highlight=False)
    console.print(table)
    written = ["| operation | calls | own time | share | a call |", "| --- | --- | --- | --- | --- |"]
    written += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([*(f"- {line}" for line in lines), "", *written]) + "\n"
