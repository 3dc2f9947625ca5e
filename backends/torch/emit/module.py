"""Writes the whole file: one class a system, children before parents, each with the functions of its loops."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass, field

from nsam.backends.torch.emit.classes import ClassSource, signature
from nsam.backends.torch.emit.end_to_end import (
    end_to_end_steps,
)
from nsam.backends.torch.emit.functions import UnitSource
from nsam.backends.torch.emit.names import identifier
from nsam.backends.torch.emit.resets import Resets
from nsam.backends.torch.rule_source import KERNELS
from nsam.compiler.end_to_end import learns_end_to_end
from nsam.compiler.passes import ALL, Passes
from nsam.compiler.schedule import UnitPlan, plan
from nsam.compiler.step_keys import Keys, kept_by_token, recorded
from nsam.compiler.wavefront import segments_of
from nsam.dsl import checked as c

HEADER = '''"""{title}

Written by nsam {version}. Parameters and states are named by memory path, as in the program.
Shapes: B sequences, T tokens, H heads; rows are tokens.{passes}
"""

from __future__ import annotations

{imports}

Weights = dict[str, Tensor]
Result = tuple[dict[str, Tensor], tuple[Tensor, ...]]
'''

TAKEN = frozenset({"Tensor", "F", "Weights", "Result"})
"""Names of a written file that a class must not take."""


@dataclass
class ModuleSource:
    """The source of a unit and of everything it calls."""

    version: str = "0.1.0"
    passes: Passes = ALL
    keys: Keys = False
    """What is told of the inputs of every layer, for rules of the step clock that use `key`."""
    end_to_end: bool = False
    units: list[tuple[c.Unit, str]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    plans: dict[str, UnitPlan] = field(default_factory=dict)

    def write(self, unit: c.Unit) -> str:
        """Return the file. The class of `unit` is the last one; `class_name` gives its name."""
        self.end_to_end = learns_end_to_end(unit)
        name = self.add(unit, root=True)
        title = f"{name}: {signature(unit)}"
        off = self.passes.without
        passes = f"\nPasses switched off: {', '.join(off)}." if off else ""
        needed = imports("\n".join(self.parts))
        header = HEADER.format(title=title, version=self.version, passes=passes, imports=needed)
        return "\n\n".join([header, *self.parts])

    def class_name(self, unit: c.Unit) -> str:
        """The class that was written for `unit`."""
        return next(name for known, name in self.units if known == unit)

    def add(self, unit: c.Unit, *, root: bool = False, repeated: bool = False) -> str:
        """Write `unit` unless an equal one has been written; returns its class name.

        `root`: it is the whole model; `repeated`: it is the body of a repeat.
        """
        for known, name in self.units:
            if known == unit:
                return name
        planned = plan(unit, self.passes)
        steps = planned.unit.children
        children = {
            step.name: self.add(step.unit) if isinstance(step, c.Call) else self.add(step.body, repeated=True)
            for step in steps
        }
        name = self.fresh_class(unit.name)
        self.units.append((unit, name))
        self.plans[name] = planned
        of_layers = [found(planned.unit, self.keys, self.end_to_end) for found in (recorded, kept_by_token)]
        source = UnitSource(planned, identifier(name_to_prefix(name)), *of_layers)
        segments = segments_of(planned, self.plan_of, end_to_end=self.end_to_end) if repeated else None
        self.parts += [
            *self.functions(source),
            ClassSource(source, name, children, root and learns_end_to_end(unit), segments).write(),
        ]
        return name

    def plan_of(self, unit: c.Unit) -> UnitPlan:
        """The plan of a unit that was written."""
        return self.plans[next(name for known, name in self.units if known == unit)]

    def functions(self, source: UnitSource) -> list[str]:
        """All functions of one unit: rules, resets, loops, stages."""
        steps = source.folds.functions()
        resets = Resets(source).functions()
        stages = [source.stage_function(i) for i, st in enumerate(source.plan.stages) if st.nodes]
        return [*steps, *end_to_end_steps(source), *resets, *source.loop_functions(), *stages]

    def fresh_class(self, path: str) -> str:
        """A class name that nothing else has."""
        base = "".join(word.capitalize() for part in path.split(".") for word in part.split("_"))
        base = base if base.isidentifier() else f"System{base}"
        name, number = base, 2
        while name in TAKEN or keyword.iskeyword(name) or any(name == taken for _, taken in self.units):
            name, number = f"{base}{number}", number + 1
        return name


def name_to_prefix(name: str) -> str:
    """`HopeRepeat` → `hope_repeat`."""
    return "".join(f"_{ch.lower()}" if ch.isupper() else ch for ch in name).lstrip("_")


def imports(text: str) -> str:
    """The imports that `text` needs."""
    kernels = [name for name in KERNELS if re.search(rf"(?<![\w.]){name}\(", text)]
    lines = ["import math", ""] if "math." in text else []
    lines += ["import torch"] if "torch." in text else []
    lines += ["from torch import Tensor, nn" if "nn." in text else "from torch import Tensor"]
    lines += ["from torch.nn import functional as F"] if "F." in text else []
    lines += ["", "from nsam.backends.torch import runtime as rt"]
    if kernels:
        lines.append(f"from nsam.backends.torch.orthogonalize import {', '.join(kernels)}")
    return "\n".join(lines)
