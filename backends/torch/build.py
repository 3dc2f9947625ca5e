"""From a checked unit to a running module: write the source, load it, make an instance."""

from __future__ import annotations

from nsam.backends.torch.emit.module import ModuleSource
from nsam.backends.torch.runtime.end_to_end import EndToEnd
from nsam.backends.torch.runtime.generated import SOURCE, load_source
from nsam.backends.torch.runtime.system import System
from nsam.backends.torch.states import require_state
from nsam.compiler.passes import ALL, Passes
from nsam.compiler.step_keys import Keys
from nsam.dsl import checked as c


def write_source(unit: c.Unit, passes: Passes = ALL, *, keys: Keys = False) -> tuple[str, str]:
    """Return the Python source for `unit` and the name of its class; `keys` as in `build`.

    Raises `ProgramError` if it has no compiled form.
    """
    module = ModuleSource(passes=passes, keys=keys)
    text = module.write(unit)
    return text, module.class_name(unit)


def build(
    unit: c.Unit,
    *,
    compiled: bool = True,
    cpp_wrapper: bool = False,
    truncated: bool = False,
    passes: Passes = ALL,
    keys: Keys = False,
) -> System:
    """Compile `unit` to a module. With `compiled` False its functions run as plain PyTorch.

    With `cpp_wrapper` compiled functions call their kernels from C++: more to compile, less to do in each call.
    With `truncated` gradients end where a call begins (not where memories move by the model's own loss).
    With `keys` it sums up the inputs of its layers, for rules that use `key` on the step clock, with "tokens" it keeps
    input and error of each token; without, only where a memory on that clock has such a rule of its own.

    The module takes the unit's inputs and `state=None`, and returns `(output, state)`.
    """
    text, name = write_source(unit, passes, keys=keys)
    written = load_source(text)
    module: System = getattr(written, name)()
    set_compiled(module, compiled, cpp_wrapper, truncated)
    rules = step_rules(unit)
    for path, part in module.named_modules():
        if isinstance(part, System):
            inside = f"{path}." if path else ""
            own = {name.removeprefix(inside): rule for name, rule in rules.items() if name.startswith(inside)}
            part.__dict__["nsam_rules"] = own
            part.recompute, part.native = "recompute" in passes, "native" in passes
            part.weights()  # finds its memories, before anyone puts other modules in their place
    module.__dict__["nsam_unit"] = unit
    module.__dict__["nsam_source"] = getattr(written, SOURCE)  # the text that all copies and pickles share
    module.__dict__["nsam_check"] = require_state
    module.__dict__["nsam_passes"] = passes
    return module


def set_compiled(module: System, compiled: bool, cpp_wrapper: bool = False, truncated: bool = False) -> None:
    """Switch torch.compile, its C++ wrapper and truncation on or off for a module and all that it calls.

    They stay off where memories move by the model's own loss: torch.compile has no second derivative, and one call of
    the model is several of its parts, with gradients from one to the next.
    """
    whole = not isinstance(module, EndToEnd)
    for part in module.modules():
        if isinstance(part, System):
            part.compiled, part.cpp_wrapper, part.truncated = compiled and whole, cpp_wrapper, truncated and whole


def step_rules(unit: c.Unit, path: str = "") -> dict[str, c.RuleUse]:
    """Rules of memories on the step clock that have one of their own, by parameter name."""
    found: dict[str, c.RuleUse] = {}
    for memory in unit.memories:
        if memory.rule is not None and memory.frequency is not None and memory.frequency.unit == "step":
            found |= {f"{path}{memory.name}.{tensor}": memory.rule for tensor in memory.structure.tensors()}
    for step in unit.children:
        if isinstance(step, c.Call):
            found |= step_rules(step.unit, f"{path}{step.name}.")
        else:
            for index in range(int(step.count)):
                found |= step_rules(step.body, f"{path}{step.name}.{index}.")
    return found
