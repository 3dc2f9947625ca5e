"""A day in the life of a memory: run it again and again, `python stream.py diary.safetensors`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import nsam

FACTS, DIM = 16, 32


def main(file: Path) -> None:
    """Meet the facts in a new sequence; what earlier processes learnt is in `file`, where there is one."""
    program = nsam.load(Path(__file__).with_name("continual.nsam"))
    torch.manual_seed(0)  # the same cues, facts and weights in every process
    module = nsam.compile(program, "companion", dim=DIM, compiled=False)
    cues, facts = torch.randn(2, 1, FACTS, DIM)
    weights = {name: weight.clone() for name, weight in module.state_dict().items()}

    state = nsam.new_sequence(nsam.load_state(file, module)) if file.exists() else None
    with torch.no_grad():
        recalled, state = module(cues, facts, state)
    nsam.save_state(state, file)

    error = float((recalled - facts).square().mean() / facts.square().mean())
    assert all(torch.equal(weights[name], weight) for name, weight in module.state_dict().items())
    print(f"{state['steps'] // FACTS} days: what is not recalled before it is told, {error:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
