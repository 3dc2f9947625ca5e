"""The state of memories on disk: one file, tensors in safetensors and their arrangement as JSON in its header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from nsam.backends.torch.states import body_of, kept_width, own_shape, owner, require_returned, short
from nsam.dsl.checked import Unit
from nsam.dsl.diagnostics import fail
from nsam.runs.atomic import write_atomic
from nsam.runs.encoding import decode, encode

FORMAT = "1"


def save_state(state: Any, path: str | os.PathLike[str]) -> None:
    """Write the state that a module returned to the file `path`, whole or not at all; N0514 when that is impossible.

    Tensors are copied without their gradients. Raises TypeError when it is no state.
    """
    require_returned("save_state", state)
    tensors: dict[str, torch.Tensor] = {}
    arrangement = json.dumps(encode(state, "state", tensors))
    write_atomic(Path(path), save(tensors, {"nsam_state": FORMAT, "arrangement": arrangement}))


def load_state(path: str | os.PathLike[str], module: nn.Module | None = None) -> Any:
    """Return the state in the file `path`, on the device of `module` (the CPU without one).

    With a module, the state is checked to be one of its system. Raises `ProgramError` N0519 when it is not, or when
    the file is not a whole saved state.
    """
    file = Path(path)
    try:
        with safe_open(file, "pt") as found:
            metadata = found.metadata() or {}
            tensors = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
        if metadata.get("nsam_state") != FORMAT:
            raise ValueError("it was not written by nsam.save_state")
        device = torch.device("cpu") if module is None else next((p.device for p in module.parameters()), "cpu")
        state = decode(json.loads(metadata["arrangement"]), tensors, device)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise fail("N0519", f"{file} is not a saved state: {error}") from None
    if module is not None:
        require_state_of(module, state, file)
    return state


def require_state_of(module: nn.Module, state: Any, file: Path) -> None:
    """Check that `state` belongs to the system that `module` was compiled from; N0519 names the first difference."""
    unit = getattr(module, "nsam_unit", None) or getattr(module, "unit", None)
    if not isinstance(unit, Unit) or not isinstance(state, dict):
        return
    width = kept_width(module)
    records = [(unit, record, "") for record in state["sequences"]] if "sequences" in state else [(unit, state, "")]
    while records:
        here, record, path = records.pop()
        difference = _difference(here, record, path, width)
        if difference is not None:
            raise fail(
                "N0519",
                f"the state in {file} is not one of `{unit.name}`: {difference}",
                help="load it into the system, with the sizes, that it was saved from",
            )
        for child in here.children:
            inside = record["children"].get(child.name)
            several = inside if isinstance(inside, list) else [] if inside is None else [inside]
            records += [(body_of(child), one, f"{path}{child.name}.") for one in several]


def _difference(unit: Unit, record: dict[str, Any], path: str, width: torch.dtype) -> str | None:
    memories = {memory.name: memory for memory in unit.memories}
    for child in record["children"]:
        if child not in {known.name for known in unit.children}:
            return f"it has a part `{path}{child}`"
    for name in record.get("memories", {}):
        if name not in memories:
            return f"it has a memory `{path}{name}`"
    for name, tensor in {**record.get("sequence", {}), **record.get("kept", {})}.items():
        memory = owner(unit, name)
        if memory is None and not name.startswith("input."):
            return f"it has a memory `{path}{name}`"
        wanted = None if memory is None or not memory.fast else own_shape(memory, name)
        if wanted is not None and tuple(tensor.shape[1:]) != wanted:
            return f"`{path}{name}` is {list(tensor.shape[1:])} there and {list(wanted)} here"
        if wanted is not None and tensor.dtype is not width:
            return f"`{path}{name}` is {short(tensor.dtype)} there and {short(width)} here"
    return None
