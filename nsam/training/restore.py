"""A trained model out of its run folder alone, and the state in which it goes on learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from nsam import api
from nsam.dsl.diagnostics import fail
from nsam.dsl.program import Program
from nsam.runs.checkpoint import latest_checkpoint, load_checkpoint, require_same_tensors
from nsam.runs.folder import open_run
from nsam.runs.states import load_state
from nsam.training.settings import keeps_state, require_device


def trained_model(path: Path, device: str = "cpu") -> tuple[nn.Module, Any]:
    """Return the model of the run in `path` with the weights of its last checkpoint, uncompiled, and its last state.

    The state is of as many sequences as a batch of the run and holds what memories with `reset never` have learnt, at
    the start of new sequences; None where the model has no such memory.

    Raises `ProgramError`: N0509 when `path` is not a run, N0507 when its checkpoint is not of its program.
    """
    where = require_device(device)
    folder, description = open_run(path)
    train = Program.load(folder.program / description.main).train(description.train, description.overrides)
    module: nn.Module = api.compile_unit(train.model, compiled=False, without=description.without).to(where)
    checkpoint = latest_checkpoint(folder.checkpoints)
    found = load_checkpoint(checkpoint, where)
    weights = found.model
    require_same_tensors(weights, module.state_dict(), checkpoint)
    module.load_state_dict(dict(weights))
    return module, found.memory


def starting_state(module: nn.Module, last: Any, file: Path | None, stream: int, fresh: bool) -> Any:
    """Return the state of one sequence that a text starts from, or None for learnt initial states.

    That is the state in `file`, where there is one yet; else, unless `fresh`, that of sequence `stream` of the run's
    batch, `last`. Raises `ProgramError`: N0519 when the file holds something else, N0515 when nothing is kept between
    sequences or there is no such sequence.
    """
    if file is not None and not keeps_state(module.nsam_unit):  # type: ignore[arg-type]
        raise fail(
            "N0515", "no memory of this model is `reset never`: there is nothing to keep", help="leave --state out"
        )
    if file is not None and file.exists():
        return load_state(file, module)
    if fresh or last is None:
        return None
    batch = _sequences(last)
    if stream >= batch:
        raise fail("N0515", f"there is no stream {stream}: the run has {batch}, from 0 to {batch - 1}")
    return api.take_sequences(last, [stream])


def _sequences(state: Any) -> int:
    """How many sequences a state is of; 1 for one without any tensor."""
    for tensor in (*state["kept"].values(), *state["sequence"].values()):
        return int(tensor.shape[0])
    parts = [one for child in state["children"].values() for one in (child if isinstance(child, list) else [child])]
    return max(map(_sequences, parts), default=1)
