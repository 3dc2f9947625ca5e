"""The C++ compiler for bfloat16 on CPU.

GCC 12 at -O3 miscompiles the transposition of bfloat16 tiles in torch's headers (AVX-512): its vectoriser of straight
lines of code loses the tile, and gradients become garbage or NaN. Without that one optimisation the same code is right.
torch has no option for flags, but it can be told which compiler to call: a script that adds the flag.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FLAG = "-fno-tree-slp-vectorize"


def options_for(values: tuple[Tensor, ...]) -> dict[str, Any]:
    """Options of torch.compile for a call with these values: the careful compiler where there is bfloat16 on CPU."""
    half = any(x.dtype == torch.bfloat16 for x in values)
    on_cpu = any(x.device.type == "cpu" for x in values)
    if not on_cpu or not (half or torch.is_autocast_enabled("cpu")):
        return {}
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return {}
    script = compiler()
    return {} if script is None else {"cpp.cxx": (None, script)}


@functools.cache
def compiler() -> str | None:
    """The path of the script, which lies in torch's compilation cache; None if the compiler is not GCC's g++."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    wanted = os.environ.get("CXX", "g++")
    real = shutil.which(wanted)
    if real is None or "g++" not in Path(real).name or "clang" in Path(real).name:
        return None
    script = Path(cache_dir()) / "nsam" / "bin" / "g++"  # torch takes its flags from the name
    script.parent.mkdir(parents=True, exist_ok=True)
    text = f'#!/bin/sh\nexec {shlex.quote(real)} "$@" {FLAG}\n'
    if not script.exists() or script.read_text() != text:
        with tempfile.NamedTemporaryFile("w", dir=script.parent, delete=False) as file:
            file.write(text)
        os.chmod(file.name, 0o755)
        os.replace(file.name, script)
    return str(script)
