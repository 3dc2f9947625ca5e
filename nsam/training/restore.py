"""A trained model out of its run folder alone."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from nsam import api
from nsam.dsl.program import Program
from nsam.runs.checkpoint import latest_checkpoint, load_checkpoint, require_same_tensors
from nsam.runs.folder import open_run
from nsam.training.settings import require_device


def trained_model(path: Path, device: str = "cpu") -> nn.Module:
    """Return the model of the run in `path` with the weights of its last checkpoint, uncompiled.

    Raises `ProgramError`: N0509 when `path` is not a run, N0507 when its checkpoint is not of its program.
    """
    where = require_device(device)
    folder, description = open_run(path)
    train = Program.load(folder.program / description.main).train(description.train, description.overrides)
    module: nn.Module = api.compile_unit(train.model, compiled=False).to(where)
    checkpoint = latest_checkpoint(folder.checkpoints)
    weights = load_checkpoint(checkpoint, where).model
    require_same_tensors(weights, module.state_dict(), checkpoint)
    module.load_state_dict(dict(weights))
    return module
