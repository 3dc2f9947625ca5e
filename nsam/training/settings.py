"""How a run is carried out, apart from what the program says."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nsam.backends.torch.runtime import instructions
from nsam.dsl.checked import Repeat, Train, Unit
from nsam.dsl.diagnostics import fail

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of the loop. `dtype` is the precision of matrix products (autocast); weights stay float32.

    `checkpoint_seconds` and `checkpoint_steps`: whichever comes first. `evaluations` held-out losses are taken over a
    run, each on `held_out_batches` batches. `without` names passes of the compiler that are switched off. `memory` is a
    budget in bytes for weights, gradients, optimizer states and activations. `cpp_wrapper`: compiled code calls its
    kernels from C++. `cuda_graph`: whether a step is recorded as one CUDA graph; None: where it can be.
    """

    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    compiled: bool = True
    threads: int | None = None
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None
    evaluations: int = 6
    held_out_batches: int = 4
    report_every: int = 10
    without: tuple[str, ...] = ()
    memory: int | None = None
    cuda_graph: bool | None = None
    cpp_wrapper: bool = False

    @property
    def precision(self) -> torch.dtype:
        """The precision of matrix products."""
        return DTYPES[self.dtype]


def require_device(name: str) -> torch.device:
    """Return the device called `name`, and make it the current one where it is one of several GPUs.

    N0512 when this machine does not have it, or it does not compute.
    """
    try:
        device = torch.device(name)
        (torch.ones(1, device=device) + 1).item()  # `meta` has tensors, and no values
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]  # torch may go on at length
        known = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
        raise fail(
            "N0512",
            f"there is no device `{name}` here",
            notes=(reason,),
            help=f"devices on this machine: {', '.join(known)}",
        ) from None
    make_current(device)
    return device


def make_current(device: torch.device) -> None:
    """Make a GPU the current one: kernels, streams and memory that nobody gives a device are then its own."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def why_slow(settings: Settings) -> str | None:
    """Why products in the precision of `settings` are slow on its device; None where they are not known to be."""
    if settings.precision is not torch.bfloat16 or multiplies_in_bfloat16(torch.device(settings.device)):
        return None
    return (
        "this processor has no instructions for bfloat16, and multiplies many times slower in it than in float32 "
        "(leave --dtype out)"
    )


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16, as far as torch can tell."""
    return device.type != "cpu" or instructions.multiplies_in_bfloat16()


def why_no_graph(train: Train, settings: Settings) -> str | None:
    """Why a step of `train` is not one CUDA graph; None where it is. N0522 when one is asked for and cannot be."""
    device = torch.device(settings.device)
    if device.type != "cuda":
        if settings.cuda_graph:
            raise fail("N0522", f"a CUDA graph runs on a CUDA device, not on `{device}`", help="--device cuda")
        return f"the device is `{device}`"
    if keeps_state(train.model):
        reason = f"`{train.name}` has a memory that is never reset, so no step is like the one before it"
        if settings.cuda_graph:
            raise fail("N0522", reason, train.span, help="leave --cuda-graph out")
        return reason
    if settings.cuda_graph is None and settings.memory is not None:
        return "under a budget of memory a step is measured first (--cuda-graph records it all the same)"
    return "--no-cuda-graph" if settings.cuda_graph is False else None


def keeps_state(unit: Unit) -> bool:
    """Whether a memory of `unit`, or of a unit inside it, is declared `reset never`."""
    bodies = [child.body if isinstance(child, Repeat) else child.unit for child in unit.children]
    return any(memory.reset.kind == "never" for memory in unit.memories) or any(map(keeps_state, bodies))


def require_compiler(device: str) -> None:
    """Check that torch.compile can build for the CPU; N0516 when there is no C++ compiler."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if device == "cpu" and not any(shutil.which(name.split()[0]) for name in candidates):
        raise fail(
            "N0516",
            f"there is no C++ compiler here (looked for {', '.join(candidates)})",
            help="install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install), or run uncompiled, "
            "several times slower, with --no-compile",
        )


def require_cache(environment: Mapping[str, str] = os.environ) -> None:
    """Check that the folder named for compiled code can be written; N0514 otherwise."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    folder = environment.get(name)
    if not folder:
        return
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise fail(
            "N0514",
            f"cannot keep compiled code in {folder}: {error.strerror}",
            help=f"set {name} to a folder that can be written, or leave it unset; or run uncompiled with --no-compile",
        ) from None
