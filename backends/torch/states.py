"""Whether a state belongs to a system: the names and shapes of its tensors.

A state that is given to a call is looked at each time, so what is found out about a name is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nsam.dsl.checked import Call, Memory, Unit

PARTS = ("position", "steps", "sequence", "kept", "children")
"""What each state has."""
RETURNED = "give the state that this module returned, or none"
Shape = tuple[int, ...]


class Expected:
    """What the state of one unit, and of what it calls, may hold; `shapes` are of one sequence, None where any fits."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.shapes: dict[str, Shape | None] = {}
        self.children = {child.name: Expected(body_of(child)) for child in unit.children}
        self.passes = {child.name: 1 if isinstance(child, Call) else int(child.count) for child in unit.children}
        self.holds: bool = any(memory.fast for memory in unit.memories) or any(c.holds for c in self.children.values())

    def difference(self, state: Mapping[str, Any], width: torch.dtype, path: str = "") -> str | None:
        """Return what `state` has that a state of the unit has not, and a way out; None where there is nothing.

        `width` is the precision in which memories are kept.
        """
        for part in ("sequence", "kept"):
            for name, tensor in state[part].items():
                if name not in self.shapes:
                    memory = owner(self.unit, name)
                    if memory is None and not name.startswith("input."):
                        return f"it has a memory `{path}{name}`; {RETURNED}"
                    self.shapes[name] = None if memory is None or not memory.fast else own_shape(memory, name)
                wanted = self.shapes[name]
                if wanted is not None and tensor.shape[1:] != wanted:
                    return f"`{path}{name}` is {list(tensor.shape[1:])} there and {list(wanted)} here; {RETURNED}"
                if wanted is not None and tensor.dtype is not width:
                    return (
                        f"`{path}{name}` is {short(tensor.dtype)} there and {short(width)} here, as which this module "
                        f"keeps memories; cast the state's tensors to {short(width)}, or begin without it"
                    )
        for name, inside in state["children"].items():
            if name not in self.children:
                return f"it has a part `{path}{name}`; {RETURNED}"
            # The passes of a repeat are alike: the first one tells.
            several = isinstance(inside, list)
            if several and len(inside) != self.passes[name]:
                return f"`{path}{name}` has {len(inside)} passes there and {self.passes[name]} here; {RETURNED}"
            below = f"{path}{name}.0." if several else f"{path}{name}."
            found = self.children[name].difference(inside[0] if several else inside, width, below)
            if found is not None:
                return found
        return None


def require_state(module: nn.Module, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Check the state that a call of a compiled module is given; ValueError where it is none, or another system's."""
    unit: Unit = module.__dict__["nsam_unit"]
    count = len(unit.inputs)
    state = arguments[count] if len(arguments) > count else named.get("state")
    if state is None or torch.compiler.is_compiling():
        return
    if not isinstance(state, Mapping) or not all(part in state for part in PARTS):
        other = isinstance(state, Mapping) and "sequences" in state
        kind = "one of the reference backend" if other else f"a {type(state).__name__}"
        raise ValueError(
            f"the state given to `{unit.name}` is {kind}: a state is what this module returned beside its output, "
            "or what nsam.load_state returned"
        )
    expected: Expected = module.__dict__.get("nsam_states") or Expected(unit)
    module.__dict__["nsam_states"] = expected
    given = next((x for x in (*arguments, *named.values()) if isinstance(x, torch.Tensor)), None)
    found = expected.difference(state, kept_width(module, given))
    if found is None and expected.holds and state["position"] and not any(state[part] for part in PARTS[2:]):
        found = f"it has no memories; {RETURNED}"
    if found is not None:
        raise ValueError(f"the state is not one of `{unit.name}`: {found}")


def kept_width(module: nn.Module, given: torch.Tensor | None = None) -> torch.dtype:
    """The precision in which a module keeps its memories: that of its weights (of an input where it has none), widened.

    It is float32 at least.
    """
    like = next(module.parameters(), given)
    return torch.float32 if like is None else torch.promote_types(like.dtype, torch.float32)


def short(dtype: torch.dtype) -> str:
    """The name of a type without that of its package."""
    return str(dtype).removeprefix("torch.")


def require_returned(function: str, state: Any) -> None:
    """Check that `function` is given a state of either backend; TypeError otherwise."""
    if isinstance(state, Mapping) and ("sequences" in state or all(part in state for part in PARTS)):
        return
    found = f"a {type(state).__name__}" + (" without a state's entries" if isinstance(state, Mapping) else "")
    way = "; a module that is called without a state begins new sequences" if state is None else ""
    raise TypeError(f"{function} takes the state that a module returned beside its output, not {found}{way}")


def sequence_numbers(sequences: Sequence[int] | torch.Tensor, batch: int | None) -> torch.Tensor:
    """Numbers of sequences, as int64 [n]; negative ones count from the end of the `batch` (None: not known).

    Raises ValueError when they are none, or not in the batch. Numbers on another device than the CPU are not looked at,
    which would make the host wait: one that is not in the batch is an error of torch there.
    """
    try:
        found = torch.as_tensor(sequences)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is not None and not found.numel():
        found = found.to(torch.int64)
    if found is None or found.dim() != 1 or found.is_floating_point() or found.dtype is torch.bool:
        raise ValueError(
            f"take_sequences takes the numbers of sequences, as in [0, 2] or torch.tensor([0, 2]), not {sequences!r}"
            + ("; of a mask, mask.nonzero()[:, 0]" if found is not None and found.dtype is torch.bool else "")
        )
    found = found.to(torch.int64)
    if batch is not None and found.device.type == "cpu":
        for number in found.tolist():
            if not -batch <= number < batch:
                raise ValueError(f"there is no sequence {number}: the state is of {batch}, from 0 to {batch - 1}")
    return found


def body_of(child: Any) -> Unit:
    """The unit that a call or a repeat runs."""
    unit: Unit = child.unit if isinstance(child, Call) else child.body
    return unit


def owner(unit: Unit, name: str) -> Memory | None:
    """The memory that a state's tensor belongs to, in `unit` or in a call of it that is written out in its loops."""
    memories = {memory.name: memory for memory in unit.memories}
    parts = name.split(".")
    for n in range(len(parts) - 1, 0, -1):
        if (path := ".".join(parts[:n])) in memories:
            return memories[path]
    for child in unit.children:
        if name.startswith(f"{child.name}."):
            rest = name.removeprefix(f"{child.name}.")
            return owner(body_of(child), rest if isinstance(child, Call) else rest.partition(".")[2])
    return None


def own_shape(memory: Memory, name: str) -> Shape | None:
    """Shape of one sequence's state, [H, out, in]; None when `name` is not of one of the memory's own tensors."""
    shape = next((s for t, s in memory.structure.tensors().items() if f".{name}".endswith(f".{memory.name}.{t}")), None)
    if shape is None:
        return None
    found = tuple(int(size) for size in shape)
    found = found if memory.structure.heads is not None else (1, *found)
    return found if len(found) == 3 else (*found, 1)
