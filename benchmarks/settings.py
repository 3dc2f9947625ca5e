"""What a run of the benchmarks is asked to do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch

from nsam.training.settings import make_current

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Settings:
    """Options of a run. `dtype` is the precision of matrix products; weights, states and gates stay in float32.

    `quick` shrinks every case until it only shows that everything runs. Timing of a case goes on for `rounds` rounds
    of every candidate in turn, or until `seconds` have passed and three rounds are in. `only` leaves out the cases
    that do not have it in their name.
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    quick: bool = False
    rounds: int = 15
    seconds: float = 30.0
    shortest: float = 0.05
    compiled: bool = True
    memory: bool = True
    only: str = ""

    def text(self) -> str:
        """Return these settings as JSON, for the subprocess that measures a candidate's memory."""
        return json.dumps(asdict(self))

    def apply(self) -> None:
        """Set the number of threads, and of several GPUs the current one."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        make_current(torch.device(self.device))

    def build(self) -> Build:
        """How candidates are built for timing."""
        return Build(torch.device(self.device), DTYPES[self.dtype], self.compiled)


@dataclass(frozen=True)
class Build:
    """How a candidate is built: where, in which precision, and whether through torch.compile."""

    device: torch.device
    dtype: torch.dtype
    compiled: bool

    @property
    def stored(self) -> torch.dtype:
        """Precision of weights and inputs: bfloat16 is a matter of autocast only."""
        return torch.float64 if self.dtype is torch.float64 else torch.float32

    def precision(self) -> torch.autocast:
        """Autocast to bfloat16 where that is asked for."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16)

    def put(self, x: torch.Tensor) -> torch.Tensor:
        """Return x on the device, floating-point numbers in the stored precision."""
        return x.to(self.device, self.stored) if x.is_floating_point() else x.to(self.device)


EXACT = Build(torch.device("cpu"), torch.float64, compiled=False)
"""How the correctness checks are run that do not depend on the machine."""
