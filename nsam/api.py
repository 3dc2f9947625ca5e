"""The public functions: load a program, look at it, compile it, train it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from nsam.dsl.checked import Train, Unit
from nsam.dsl.diagnostics import fail
from nsam.dsl.program import Program

if TYPE_CHECKING:
    import networkx
    import torch

    from nsam.backends.torch.budget import Budget
    from nsam.backends.torch.optim_rules import RuleOptimizer
    from nsam.compiler.step_keys import Keys
    from nsam.verification import Report

Backend: TypeAlias = Literal["torch", "reference"]


def load(path: str | os.PathLike[str]) -> Program:
    """Read and check a program. Raises `ProgramError`, which carries every diagnostic."""
    return Program.load(path)


def loads(text: str, name: str = "<text>") -> Program:
    """Check a program given as text. Raises `ProgramError`."""
    return Program.loads(text, name)


def graph(program: Program, name: str, /, **parameters: object) -> networkx.MultiDiGraph:
    """The level graph of a system, or of a `train` declaration: a node per memory, an edge per transfer.

    Raises `ProgramError` when parameters are missing or wrong, TypeError when `program` is none.
    """
    from nsam.compiler.checks import require_levels
    from nsam.compiler.graph import build_graph

    _require_program(program)
    train = program.train(name, parameters) if name in program.trains else None
    unit = program.instantiate(name, parameters) if train is None else train.model
    require_levels(unit, train)
    return build_graph(unit, train)


def compile(
    program: Program,
    system: str,
    /,
    *,
    backend: Backend = "torch",
    compiled: bool = True,
    cpp_wrapper: bool = False,
    truncated: bool = False,
    without: str | Iterable[str] = (),
    memory: str | int | None = None,
    keys: Keys = False,
    **parameters: object,
) -> torch.nn.Module:
    """Compile a system to a `torch.nn.Module`: `y, state = module(x, state=None)`, x [batch, time, …].

    `backend="reference"` gives the token-by-token reference in float64 with the same parameters. `compiled=False` runs
    the generated code without torch.compile, `cpp_wrapper=True` with one that calls its kernels from C++ (it compiles
    longer, and a step on a CPU is shorter). `truncated=True`: gradients end where a call begins, its state has none (a
    little faster; models whose own loss moves memories leave it out). `without=("share", "hoist")` switches passes of
    the compiler off (`nsam explain` lists them; values stay the same). `memory="8GB"` trains within a budget for
    weights, gradients and activations; what does not fit is computed again in the backward pass (values stay the same,
    bit for bit).
    `keys=True` lets the backward pass bring the inputs of layers too, for an optimizer whose rule uses `key` (dgd);
    `keys="tokens"` keeps input and error of each token, for one that needs those (generalized_huber).
    Raises `ProgramError` (N0520 at the first call with gradients where the budget is too small); ValueError for other
    `keys`; TypeError when `program` is none.
    """
    unit = _checked(program, system, parameters)
    how = {"compiled": compiled, "cpp_wrapper": cpp_wrapper, "truncated": truncated}
    module = compile_unit(unit, backend=backend, without=without, keys=keys, **how)
    if memory is not None and backend == "torch":
        set_memory(module, memory)
    return module


def set_memory(module: torch.nn.Module, memory: str | int) -> Budget:
    """Train a compiled module within a budget of memory, `"8GB"` or bytes. Raises `ProgramError`."""
    from nsam.backends.torch.budget import set_budget
    from nsam.sizes import parse_size

    return set_budget(module, parse_size(memory))


def compile_unit(
    unit: Unit,
    *,
    backend: Backend = "torch",
    compiled: bool = True,
    cpp_wrapper: bool = False,
    truncated: bool = False,
    observe: bool = False,
    without: str | Iterable[str] = (),
    keys: Keys = False,
) -> torch.nn.Module:
    """Compile a checked unit. With `observe`, states carry the inner losses that `memory_report` reads.

    `keys`: as in `compile`; for a `train` declaration `nsam.compiler.step_keys.train_needs_keys` says what it takes.
    """
    from nsam.compiler.passes import passes_without
    from nsam.compiler.step_keys import check_keys

    passes = passes_without(without)
    check_keys(keys)
    if backend == "reference":
        from nsam.backends.reference.module import ReferenceModule

        return ReferenceModule(unit)
    if backend != "torch":
        raise fail("N0402", f"there is no backend `{backend}`", help="torch or reference")
    from nsam.backends.torch.build import build

    how = {"compiled": compiled, "cpp_wrapper": cpp_wrapper, "truncated": truncated}
    module = build(unit, passes=passes, keys=keys, **how)
    if observe:
        for part in module.modules():
            part.observe = True  # type: ignore[assignment]
    return module


def source(
    program: Program,
    system: str,
    /,
    *,
    without: str | Iterable[str] = (),
    keys: Keys = False,
    **parameters: object,
) -> str:
    """The Python source of a system, readable and runnable without the compiler; options as in `compile`.

    Raises `ProgramError`.
    """
    from nsam.backends.torch.build import write_source
    from nsam.compiler.passes import passes_without
    from nsam.compiler.step_keys import check_keys

    check_keys(keys)
    return write_source(_checked(program, system, parameters), passes_without(without), keys=keys)[0]


def _checked(program: Program, system: str, parameters: Mapping[str, object]) -> Unit:
    """Instantiate a system, and check its levels and that it has tokens to go through."""
    from nsam.compiler.checks import require_levels, require_tokens

    _require_program(program)
    unit = program.instantiate(system, parameters)
    require_levels(unit)
    require_tokens(unit)
    return unit


def _require_program(program: object) -> None:
    """Raise TypeError for what is no program, the path of one for example."""
    if not isinstance(program, Program):
        shown = repr(program) if isinstance(program, str) else f"a {type(program).__name__}"
        raise TypeError(f'a program is what nsam.load("file.nsam") or nsam.loads(text) returns, not {shown}')


def new_sequence(state: Any) -> Any:
    """Begin a new sequence: per-sequence memories restart, those with `reset never` go on.

    Raises TypeError when it is given no state.
    """
    from nsam.backends.torch.states import require_returned

    require_returned("new_sequence", state)
    if isinstance(state, dict) and "steps" in state:
        from nsam.backends.torch.runtime.system import new_sequence as restart

        return restart(state)
    from nsam.backends.reference.run import new_sequence as restart_reference

    return restart_reference(state)


def take_sequences(state: Any, sequences: Sequence[int] | torch.Tensor) -> Any:
    """The state of some of a batch's sequences, by their numbers, in that order; one may be taken several times.

    The numbers are a list or a tensor [n] of whole numbers. Raises TypeError when it is given no state, ValueError for
    what are no numbers of its sequences (a tensor's are looked at on the CPU only).
    """
    from nsam.backends.torch.states import require_returned, sequence_numbers

    require_returned("take_sequences", state)
    if isinstance(state, dict) and "steps" in state:
        from nsam.backends.torch.runtime.system import batch_of
        from nsam.backends.torch.runtime.system import take_sequences as take

        return take(state, sequence_numbers(sequences, batch_of(state)))
    records = state["sequences"]
    return {"sequences": [records[i] for i in sequence_numbers(sequences, len(records)).tolist()]}


def save_state(state: Any, path: str | os.PathLike[str]) -> None:
    """Write a state to the file `path` (safetensors, no pickle), for another process to go on from.

    Raises `ProgramError` N0514 when it cannot be written, TypeError when it is no state.
    """
    from nsam.runs.states import save_state as save

    save(state, path)


def load_state(path: str | os.PathLike[str], module: torch.nn.Module | None = None) -> Any:
    """The state in the file `path`; with `module`, on its device and checked to belong to its system.

    Raises `ProgramError` N0519 when the file is no saved state, or one of another system.
    """
    from nsam.runs.states import load_state as load_file

    return load_file(path, module)


def optimizer(
    library: str | Program,
    rule: str,
    target: torch.nn.Module | Iterable[torch.Tensor],
    /,
    *,
    compiled: bool = False,
    sharded: bool = False,
    products: torch.dtype | None = None,
    **arguments: float,
) -> torch.optim.Optimizer:
    """A torch optimizer from a learning rule: `optimizer("std.rules", "m3", module, lr=0.004)`.

    `library` is a module of the standard library, or a program that declares the rule. `target`: a module, which may
    hold compiled ones or be a part of one (a system, a memory, a list of memories), or tensors, or torch's parameter
    groups. Only modules tell what a program says of their parameters: of tensors, `module.parameters()` for example,
    all move at every step by this rule, `every n steps`, `every inf steps` and rules of memories of their own are lost,
    and those with two axes or more are the matrices (the last two axes are one, those before them heads, each moved
    by itself, so that the kernel of a convolution is one matrix for each pair of channels). `compiled` sends the rule's
    steps through torch.compile, which takes its time at the first step; the steps are the same to rounding.
    `products=torch.bfloat16` orthogonalises (muon, m3) in bfloat16, as torch.optim.Muon does, instead of in the
    precision of the weights. `sharded` spreads the states over the processes of torch.distributed's default group (a
    ZeroRedundancyOptimizer, see there for saving);
    each process then moves its part of the parameters and sends it to the others. A rule that uses `key` needs a module
    compiled with `keys=True`, one that uses it (or `err`) token by token one with `keys="tokens"`. Raises
    `ProgramError` when there is no such rule, it cannot serve as an optimizer, or `sharded` is asked for without a
    process group.
    """
    from nsam.backends.torch.optim import optimizer as make
    from nsam.dsl.imports import standard_modules
    from nsam.dsl.program import standard_rule

    if isinstance(library, Program):
        use = library.rule(rule, arguments)
    elif library in standard_modules():
        use = standard_rule(rule, arguments, library)
    else:
        raise fail(
            "N0402",
            f"there is no library `{library}`",
            help=f"{', '.join(standard_modules())}, or a program from nsam.load",
        )
    made = make(use, target, compiled=compiled, products=products)
    if not sharded:
        return made
    from nsam.backends.torch.optim_sharded import sharded as spread

    return spread(made)


def train_optimizer(
    train: Train, module: torch.nn.Module, *, compiled: bool = False, products: torch.dtype | None = None
) -> RuleOptimizer:
    """The optimizer that a `train` declaration asks for; options as in `optimizer`. Raises `ProgramError`.

    It is stepped when the level moves: once in `train.every` steps.
    """
    from nsam.backends.torch.optim import optimizer as make

    return make(train.rules, module, compiled=compiled, products=products, every=int(train.every))


def verify(program: Program, system: str, /, *, without: str | Iterable[str] = (), **parameters: object) -> Report:
    """Compare the compiled system with the reference: values, gradients, the six invariants. See `Report.ok`."""
    from nsam.compiler.passes import passes_without
    from nsam.verification import verify_unit

    return verify_unit(_checked(program, system, parameters), passes=passes_without(without))


def memory_report(module: torch.nn.Module, state: Any) -> dict[str, dict[str, float]]:
    """Mean inner loss and level of every fast memory, by path, from a state of a module that observes."""
    unit = getattr(module, "nsam_unit", None)
    if unit is None:
        return {}
    from nsam.compiler.graph import levels_of, ordered

    levels = levels_of(ordered(unit))
    # In the level graph the passes of a repeat are one: `repeat.*.titans.mem`.
    shared = {path: re.sub(r"(^|\.)(repeat(?:_[0-9]+)?)\.[0-9]+\.", r"\1\2.*.", path) for path, _ in _losses(state, "")}
    return {path: {"loss": float(loss), "level": levels[shared[path]]} for path, loss in _losses(state, "")}


def _losses(state: Any, path: str) -> Iterable[tuple[str, Any]]:
    """Yield (path, loss) of the fast memories of a state."""
    for name, loss in state.get("losses", {}).items():
        yield path + name, loss
    for name, child in state["children"].items():
        if isinstance(child, list):
            for i, one in enumerate(child):
                yield from _losses(one, f"{path}{name}.{i}.")
        else:
            yield from _losses(child, f"{path}{name}.")
