"""Checkpoints: one folder each, complete or absent; tensors in safetensors, the rest in JSON."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from nsam.dsl.diagnostics import fail
from nsam.runs.atomic import cannot_write, sync_folder, write_durably
from nsam.runs.encoding import decode, encode

KEEP = 2
"""How many checkpoints a run keeps: the last one and the one before."""

_FOLDER = re.compile(r"step-([0-9]{6,})\Z")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that the rest of a run depends on.

    `model` is a `state_dict`, `memory` the carried state or None, `gradients` the sums of a level that has not closed
    its period, by parameter name.
    """

    step: int
    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    memory: Any = None
    gradients: Mapping[str, torch.Tensor] = field(default_factory=dict)
    generators: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sampler: Mapping[str, int] = field(default_factory=dict)
    progress: Mapping[str, float] = field(default_factory=dict)
    moved: Sequence[Sequence[str]] = ()


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` as `folder/step-NNNNNN` and drop all but the last two; N0514 when that is impossible.

    The new folder appears by one rename after everything in it is on disk, so a run killed at any moment leaves its
    last checkpoint whole; what such a run had half written goes with the next one saved.
    """
    target = folder / f"step-{checkpoint.step:06d}"
    for left in folder.glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    if target.exists():
        return target
    beside = folder / f".{target.name}.tmp"
    tensors: dict[str, torch.Tensor] = {}
    rest = {
        "step": checkpoint.step,
        "optimizer": encode(checkpoint.optimizer, "optimizer", tensors),
        "memory": encode(checkpoint.memory, "memory", tensors),
        "gradients": encode(checkpoint.gradients, "gradients", tensors),
        "generators": encode(checkpoint.generators, "generators", tensors),
        "sampler": dict(checkpoint.sampler),
        "progress": dict(checkpoint.progress),
        "moved": [list(names) for names in checkpoint.moved],
    }
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in checkpoint.model.items()}
    try:
        beside.mkdir(parents=True)
        write_durably(beside / "model.safetensors", save(weights, {"format": "pt"}))
        write_durably(beside / "state.safetensors", save(tensors))
        write_durably(beside / "state.json", json.dumps(rest).encode())
        sync_folder(beside)
        beside.replace(target)
        sync_folder(folder)
    except BaseException as error:  # a second Ctrl-C too
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError):
            raise cannot_write(target, error) from None
        raise
    for _, old in checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of every whole checkpoint in `folder`, the earliest first."""
    if not folder.is_dir():
        return []
    found = ((_FOLDER.match(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def latest_checkpoint(folder: Path) -> Path:
    """Return the last checkpoint in `folder`; N0509 when there is none."""
    found = checkpoints(folder)
    if not found:
        raise fail(
            "N0509", f"there is no checkpoint in {folder}", help="train first: nsam train FILE --out DIR --resume"
        )
    return found[-1][1]


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Return the checkpoint at `path`, tensors on `device`; N0509 when its files are damaged."""
    try:
        model = load_file(path / "model.safetensors")
        tensors = load_file(path / "state.safetensors")
        rest = json.loads((path / "state.json").read_bytes())
        return Checkpoint(
            step=rest["step"],
            model={name: value.to(device) for name, value in model.items()},
            optimizer=decode(rest["optimizer"], tensors, device),
            memory=decode(rest["memory"], tensors, device),
            gradients=decode(rest["gradients"], tensors, device),
            generators=decode(rest["generators"], tensors, "cpu"),
            sampler=rest["sampler"],
            progress=rest["progress"],
            moved=rest.get("moved", ()),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> Exception:
    """Return the diagnostic for a checkpoint that lacks what belongs into it."""
    reason = f"there is no {error}" if isinstance(error, KeyError) else error
    return fail("N0509", f"the checkpoint {path} is damaged: {reason}", help="delete that folder to use the one before")


def require_same_tensors(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], path: Path) -> None:
    """Check that a checkpoint's tensors are those of the program's model; N0507 names the first difference."""
    difference = _first_difference(found, wanted)
    if difference is not None:
        raise fail(
            "N0507",
            f"the checkpoint {path} does not belong to this program: {difference}",
            help="use the program that the run was started with; the run folder keeps a copy in `program/`",
        )


def _first_difference(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str | None:
    for name, tensor in wanted.items():
        if name not in found:
            return f"it has no tensor `{name}`, which the program's model needs"
        if found[name].shape != tensor.shape:
            return f"`{name}` is {list(found[name].shape)} there and {list(tensor.shape)} in the program's model"
    extra = next((name for name in found if name not in wanted), None)
    return None if extra is None else f"it has a tensor `{extra}`, which the program's model does not have"
