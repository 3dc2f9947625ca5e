"""Pictures of a run: the loss, and what the memories of each level do."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from typing import Any, TypeAlias

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
        axes.plot(
            steps,
            losses,
            "o-",
            color="#c2571a",
            markersize=4,
            linewidth=1.2,
            label=f"held out, {losses[-1]:.3f} at the end",
        )
    axes.set_xlabel("step")
    axes.locator_params(axis="x", integer=True)
    axes.set_ylabel("bits per byte")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    if training or held_out:
        axes.legend(frameon=False)
    return _png(figure)


def levels_plot(metrics: Sequence[dict[str, Any]], title: str) -> bytes:
    """Return a PNG: a panel a level with the inner loss of each of its memories, and how far each level has moved."""
    from matplotlib.figure import Figure

    losses = _inner_losses(metrics)
    figure = Figure(figsize=(8, 0.6 + 2.7 * (len(losses) + 1)), layout="constrained")
    figure.suptitle(title)
    *panels, last = figure.subplots(len(losses) + 1, 1, sharex=True, squeeze=False)[:, 0]
    for axes, level in zip(panels, sorted(losses), strict=True):
        _curves(axes, losses[level], f"level {level}", "inner loss")
    _curves(last, _movements(metrics), "weights and initial states of each level", "‖W − W₀‖ / ‖W₀‖")
    last.set_xlabel("step")
    last.locator_params(axis="x", integer=True)
    return _png(figure)


Curves: TypeAlias = dict[str, list[tuple[int, float]]]


def _inner_losses(metrics: Sequence[dict[str, Any]]) -> dict[int, Curves]:
    found: dict[int, Curves] = defaultdict(lambda: defaultdict(list))
    for line in metrics:
        for path, values in line.get("memories", {}).items():
            loss = values["loss"]
            if loss is not None and math.isfinite(loss):
                found[values["level"]][path].append((line["step"], loss))
    return found


def _movements(metrics: Sequence[dict[str, Any]]) -> Curves:
    found: Curves = defaultdict(list)
    for line in metrics:
        for level, distance in line.get("moved", {}).items():
            found[f"level {level}"].append((line["step"], distance))
    return found


def _curves(axes: Any, curves: Curves, title: str, unit: str) -> None:
    """Draw curves with a legend beside them; logarithmic where they span more than a factor of ten."""
    for name in sorted(curves):
        axes.plot(*zip(*curves[name], strict=True), marker=".", markersize=3, linewidth=1.2, label=name)
    values = [value for curve in curves.values() for _, value in curve]
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_ylabel(unit)
    axes.grid(alpha=0.25)
    if curves:
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _smoothed(values: Sequence[float]) -> list[float]:
    """Mean over the `_SMOOTH` values around each.

    At the start, where losses fall fast, as many on either side as there are before; at the end those that are there,
    for the last one alone would be as unsteady as the line that this is to smooth.
    """
    result = []
    for i in range(len(values)):
        reach = min(_SMOOTH // 2, i)
        part = values[i - reach : i + reach + 1]
        result.append(sum(part) / len(part))
    return result


def _png(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
