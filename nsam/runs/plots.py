"""Pictures of a run: the loss, and what the memories of each level do."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from typing import Any

_BITS = 1 / math.log(2)
_SMOOTH = 20


def loss_plot(metrics: Sequence[dict[str, Any]], title: str) -> bytes:
    """Return a PNG of bits per byte over steps: training (raw and smoothed) and held-out."""
    from matplotlib.figure import Figure

    training = [(line["step"], line["loss"] * _BITS) for line in metrics if "loss" in line]
    held_out = [(line["step"], line["held_out"] * _BITS) for line in metrics if "held_out" in line]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    if training:
        steps, losses = zip(*training, strict=True)
        axes.plot(steps, losses, color="#9db8d9", linewidth=0.8, label="training, each step")
        axes.plot(steps, _smoothed(losses), color="#1f4e8c", linewidth=1.8, label="training, smoothed")
    if held_out:
        steps, losses = zip(*held_out, strict=True)
        axes.plot(steps, losses, "o-", color="#c2571a", markersize=4, linewidth=1.2, label="held out")
        axes.annotate(
            f"{losses[-1]:.2f}", (steps[-1], losses[-1]), textcoords="offset points", xytext=(-4, 7), ha="right"
        )
    axes.set_xlabel("step")
    axes.set_ylabel("bits per byte")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return _png(figure)


def levels_plot(metrics: Sequence[dict[str, Any]], title: str) -> bytes | None:
    """Return a PNG with one panel a level: the inner loss of each of its memories over steps; None without any."""
    from matplotlib.figure import Figure

    curves: dict[int, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in metrics:
        for path, values in line.get("memories", {}).items():
            loss = values["inner_loss"]
            if loss is not None and math.isfinite(loss):
                curves[values["level"]][path].append((line["step"], loss))
    if not curves:
        return None
    figure = Figure(figsize=(7, 0.6 + 2.9 * len(curves)), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, level in zip(panels, sorted(curves, reverse=True), strict=True):
        for path in sorted(curves[level]):
            axes.plot(*zip(*curves[level][path], strict=True), marker=".", markersize=3, linewidth=1.2, label=path)
        axes.set_title(f"level {level}", loc="left", fontsize=10)
        axes.set_ylabel("mean inner loss")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        if all(loss > 0 for curve in curves[level].values() for _, loss in curve):
            axes.set_yscale("log")
    panels[-1].set_xlabel("step")
    return _png(figure)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Mean over the last `_SMOOTH` values."""
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - _SMOOTH) : i + 1])]


def _png(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
