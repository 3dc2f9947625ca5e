"""Nested state as plain tensors and JSON, and back: what optimizers and memories keep, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_TENSOR = "$tensor"
_TUPLE = "$tuple"
_PAIRS = "$pairs"


def encode(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return `value` as JSON; its tensors go into `tensors` under names below `path`.

    Knows None, bool, int, float, str, tensors, lists, tuples and mappings whose keys are str, int or tuples of those.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        # A copy: several entries may share storage, which safetensors refuses.
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(value, list | tuple):
        items = [encode(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if isinstance(value, Mapping):
        return {_PAIRS: [[_key(key), encode(item, f"{path}.{key}", tensors)] for key, item in value.items()]}
    raise TypeError(f"a state holds a {type(value).__name__} at {path}, which checkpoints cannot store")


def _key(key: object) -> Any:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return key
    if isinstance(key, tuple):
        return {_TUPLE: [_key(part) for part in key]}
    raise TypeError(f"a state has the key {key!r}, which checkpoints cannot store")


def decode(value: Any, tensors: Mapping[str, torch.Tensor], device: torch.device | str) -> Any:
    """Return what `encode` was given, tensors on `device`."""
    if isinstance(value, list):
        return [decode(item, tensors, device) for item in value]
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]].to(device)
        if _TUPLE in value:
            return tuple(decode(item, tensors, device) for item in value[_TUPLE])
        return {decode(key, tensors, device): decode(item, tensors, device) for key, item in value[_PAIRS]}
    return value
