"""The base of generated modules, and the state that is carried between calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nsam.backends.torch.runtime.blocks import At
from nsam.backends.torch.runtime.functions import wide
from nsam.backends.torch.runtime.generated import reduced
from nsam.backends.torch.runtime.inputs import require_batch, whole
from nsam.backends.torch.runtime.keys import hand_over, nothing_seen, square, sums
from nsam.backends.torch.runtime.modules import Holder, Place, places
from nsam.backends.torch.runtime.replay import recorder, run_pass
from nsam.backends.torch.runtime.rows import Rows, new_slot, reached, row_size
from nsam.backends.torch.runtime.tasks import Tasks, separate
from nsam.backends.torch.runtime.wavefront import goes_on, wavefront

State = dict[str, Any]
CLOCKS = ("clock", "clock.never", "start")


class System(Holder):
    """Base of a generated module.

    `forward(*inputs, state=None)` returns `(output, state)`. A state is a plain dict:

        position, steps   tokens since the sequence began, and since the very beginning
        sequence          tensors that a new sequence forgets, by memory path
        kept              tensors of memories with `reset never`
        children          states of called systems (a list for a repeat)
        losses            mean inner loss of each fast memory in the latest call, where `observe` is set
        task              the open chunk, where memories move by the model's own loss (`end_to_end.py`)
    """

    compiled = True
    """Whether blocks and stages run through torch.compile."""
    cpp_wrapper = False
    """Whether what torch.compile makes of them calls its kernels from C++ instead of Python."""
    recompute = True
    """Whether elementwise results of a block are computed again in the backward pass."""
    native = True
    """Whether a block's work on CPU is done sequence by sequence and head by head, in a kernel of our own."""
    truncated = False
    """Whether gradients end where a call begins: the state that it returns has none."""
    observe = False
    """Whether the mean inner loss of each fast memory is recorded, under `losses` of the state."""

    fast_memories: tuple[str, ...] = ()
    tasks: Tasks = MappingProxyType({})
    """Memories that move by the model's own loss, see `end_to_end.py`."""

    kept_memories: frozenset[str] = frozenset()
    matrices: frozenset[str] = frozenset()
    """This unit's weights of linear and mlp memories, by path."""
    step_periods: Mapping[str, float] = {}
    """This unit's parameters that move every so many steps of the training level (default 1)."""
    with_rules: frozenset[str] = frozenset()
    """This unit's parameters whose memory has a rule of its own; which one, only the program says."""
    layer_reads: Mapping[str, int] = {}
    """This unit's weights whose inputs are summed up for rules of the step clock, and how many places read each."""
    token_reads: Mapping[str, int] = {}
    """This unit's weights for which each token's input and error are kept (`rows.py`), and the reads of each."""
    block_tokens: int = 0
    """Of the body of a repeat: its pattern of blocks repeats after so many tokens (0: not known)."""
    timeless: frozenset[int] = frozenset()
    """Of the body of a repeat: the inputs, by number, that have no time axis."""
    undivided: str | None = None
    """Of the body of a repeat: why its sequence is not run in segments (`wavefront.py`)."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember it: its memories may be given to an optimizer alone, and copies and pickles call no `__init__`."""
        made = super().__new__(cls)
        _LIVING[next(_NUMBERS)] = made
        return made

    @property
    def nsam_matrices(self) -> set[str]:
        """Parameter names, here and below, that `for matrices` means."""
        return {f"{path}{name}" for path, unit in self._units() for name in unit.matrices}

    @property
    def nsam_periods(self) -> dict[str, float]:
        """Step periods by parameter name, here and below."""
        return {f"{path}{name}": p for path, unit in self._units() for name, p in unit.step_periods.items()}

    @property
    def nsam_with_rules(self) -> set[str]:
        """Names of parameters, here and below, whose memory has a rule of its own."""
        return {f"{path}{name}" for path, unit in self._units() for name in unit.with_rules}

    @property
    def nsam_grams(self) -> dict[str, Tensor]:
        """By parameter name, here and below: a tensor whose gradient is E[x xᵀ] over the tokens of a step (`keys.py`).

        x are the inputs of the layer. It stands beside the parameter, is no parameter, and is zeros itself.
        """
        return {f"{path}{name}": leaf for path, unit in self._units() for name, leaf in unit.grams().items()}

    @property
    def nsam_rows(self) -> dict[str, Rows]:
        """By parameter name, here and below: the input and error of each token of a step (`rows.py`)."""
        return {f"{path}{name}": rows for path, unit in self._units() for name, rows in unit.rows().items()}

    def rows(self) -> dict[str, Rows]:
        """The same for this unit's own weights."""
        kept: dict[str, Rows] = self.__dict__.setdefault("_rows", {name: Rows() for name in self.token_reads})
        return kept

    def row_bytes(self) -> int:
        """Bytes of rows that one token of a step leaves, here and below."""
        return sum(
            reads * row_size(weight)
            for _, unit in self._units()
            for name, weight in (unit.weights().items() if unit.token_reads else ())
            if weight.requires_grad and (reads := unit.token_reads.get(name, 0))
        )

    def slot(self, w: Mapping[str, Tensor], at: At, name: str) -> Tensor:
        """What one read of a weight tells its tokens to in this call."""
        return new_slot(w[name], at, self.rows()[name])

    def grams(self) -> dict[str, Tensor]:
        """The same for this unit's own weights, on the device where they are now."""
        kept: dict[str, Tensor] = self.__dict__.setdefault("_grams", {})
        for name, weight in self.weights().items() if self.layer_reads else ():
            if name in self.layer_reads and (name not in kept or kept[name].device != weight.device):
                kept[name] = square(weight.detach()).requires_grad_()
        return kept

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the parameters, and what was summed up of their layers' inputs."""
        super().zero_grad(set_to_none)
        for leaf in self.nsam_grams.values():
            leaf.grad = None
        for rows in self.nsam_rows.values():
            rows.grad = None

    def _units(self) -> list[tuple[str, System]]:
        modules = self.named_modules(remove_duplicate=False)
        return [(f"{path}." if path else "", m) for path, m in modules if isinstance(m, System)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For pickle and copies: with the generated source, which another process does not have."""
        found = super().__reduce_ex__(protocol)
        return reduced(type(self), found) if isinstance(found, tuple) else found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`; in half precision under autocast, because states and gates stay in float32.

        The precision is that of the weights, or of the first input where there are none; the output has it too, as that
        of any torch module. Under an autocast of the caller's the output is what autocast makes of it. A budget of
        memory, where one is set, decides what is kept for the backward pass.
        """
        args, kwargs = tuple(map(whole, args)), {name: whole(x) for name, x in kwargs.items()}
        check = self.__dict__.get("nsam_check")
        if check is not None:
            check(self, args, kwargs)
        budget = self.__dict__.get("budget")
        return self._run(*args, **kwargs) if budget is None else budget.run(self._run, args, kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        like = next(self.parameters(), given)
        low = like is not None and like.dtype in (torch.bfloat16, torch.float16)
        if like is None or not low or torch.is_autocast_enabled(like.device.type):
            return super().__call__(*args, **kwargs)
        with torch.autocast(like.device.type, dtype=like.dtype):
            output, state = super().__call__(*args, **kwargs)
        return output.to(like.dtype) if output.is_floating_point() else output, state

    def weights(self) -> dict[str, Tensor]:
        """This unit's own parameters by path: `mem.w1`, `level.0.weight`.

        Only paths are kept: a memory may be replaced by another one, or be the same at several places.
        """
        return {path: tensor for place in self.places() for path, tensor in place.read(self)}

    def places(self) -> tuple[Place, ...]:
        """Where this unit's own memories are."""
        known: tuple[Place, ...] | None = self.__dict__.get("_places")
        if known is None:
            known = self.__dict__["_places"] = tuple(places(self, System))
        return known

    def child(self, name: str) -> Any:
        """The called system or repeat `name`, which may be the name of a method too."""
        return self._modules[name]

    def begin(
        self,
        state: State | None,
        like: Tensor,
        initial: Callable[[dict[str, Tensor], dict[str, Tensor], At], dict[str, Tensor]] | None = None,
        *,
        clock: bool = False,
        sequence: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], At, State]:
        """Open a call: weights, state tensors (initial ones where missing), the clock, and the children's states.

        `sequence` are inputs with one value a sequence, kept for initial states that are generated from them.
        """
        old: State = state or {"position": 0, "steps": 0, "sequence": {}, "kept": {}, "children": {}}
        require_batch(old, like.shape[0])
        # A unit without parameters takes its precision and device from its input.
        w = self.weights() or {"input": like[:0].to(torch.promote_types(like.dtype, torch.float32))}
        s = {**old["sequence"], **old["kept"]}
        # Copies: the caller may write into what it gave.
        s |= {key: x.clone() for name, x in sequence.items() if (key := f"input.{name}") not in s}
        time, batch = like.shape[1], like.shape[0]
        compiled = self.compiled and not like.is_meta  # what has no values takes no time
        native = self.native and compiled and like.device.type == "cpu" and not self.cpp_wrapper
        truncated = self.truncated and not goes_on()
        gradients = torch.is_grad_enabled() and self._asked(like, *w.values(), *s.values())
        how = (compiled, self.observe, recorder(time), self.cpp_wrapper, truncated, self.recompute, gradients, native)
        at = At(old["position"], old["steps"], time, batch, *how)
        if initial is not None:
            s = {**initial(w, s, at), **s}
        s |= separate(self.tasks, s)
        if self.observe:
            s |= {f"{memory}.loss": blank(w).detach() for memory in self.fast_memories}
        if self.layer_reads:
            s |= nothing_seen(w, self.layer_reads)
        if clock:
            s["clock"] = s["start"] = torch.full((), at.offset, dtype=torch.int64, device=like.device)
            s["clock.never"] = torch.full((), at.never, dtype=torch.int64, device=like.device)
        return w, s, at, dict(old["children"])

    def _asked(self, *given: Tensor) -> bool:
        """Whether a call with these tensors may have gradients: they, or parameters here and below, ask for them."""
        return any(x.requires_grad for x in given) or any(p.requires_grad for p in self.parameters())

    def end(self, s: Mapping[str, Tensor], at: At, children: State) -> State:
        """Close a call: the state to carry on."""
        passing = {*CLOCKS, *(name for _, name in sums(self.layer_reads))}
        lasting = {k: v for k, v in s.items() if not k.endswith(".loss") and k not in passing}
        if at.truncated:
            lasting = {k: v.detach() for k, v in lasting.items()}
        kept = {k: v for k, v in lasting.items() if self.is_kept(k)}
        rest = {k: v for k, v in lasting.items() if k not in kept}
        losses = {k.removesuffix(".loss"): v / at.length for k, v in s.items() if k.endswith(".loss")}
        return {
            **({"losses": losses} if losses else {}),
            "position": at.offset + at.length,
            "steps": at.never + at.length,
            "sequence": rest,
            "kept": kept,
            "children": children,
        }

    def handed_over(self, outputs: Any, state: State, s: Mapping[str, Tensor], at: At) -> tuple[Any, State]:
        """What a call returns, its backward pass bringing with it what rules need of the layers' inputs."""
        trained = {name for name, weight in self.weights().items() if weight.requires_grad}
        leaves = {name: leaf for name, leaf in self.grams().items() if name in trained}
        own = {part: state[part] for part in ("sequence", "kept")}
        if self.token_reads:
            outputs, own = reached((outputs, own))
        outputs, own = hand_over(leaves, self.layer_reads, s, at, (outputs, own))
        return outputs, {**state, **own}

    def call(self, name: str, children: State, *values: Tensor) -> Any:
        """Run a called system; its state moves on in `children`."""
        result, children[name] = self.child(name)(*values, state=children.get(name))
        return result

    def run_repeat(self, name: str, children: State, carried: tuple[Tensor, ...], *captured: Tensor) -> Any:
        """Run the passes of a repeat one after the other, or as a wavefront where one is in force and possible."""
        states: list[Any] = []
        modules = list(self.child(name))  # not `children()`: passes may be one and the same module
        before = children.get(name) or [None] * len(modules)
        wave = wavefront()
        if wave is not None and (sizes := wave.sizes(modules, carried, captured, before)):
            carried, children[name] = wave.run(modules, carried, captured, before, sizes)
            return carried if len(carried) > 1 else carried[0]
        for number, (module, old) in enumerate(zip(modules, before, strict=True)):
            result, new = run_pass(module, number, len(modules), carried, captured, old)
            carried = result if isinstance(result, tuple) else (result,)
            states.append(new)
        children[name] = states
        return carried if len(carried) > 1 else carried[0]

    def is_kept(self, key: str) -> bool:
        """Whether a state tensor belongs to a memory with `reset never`."""
        return any(key.startswith(f"{memory}.") for memory in self.kept_memories)


_NUMBERS = itertools.count()
_LIVING: WeakValueDictionary[int, System] = WeakValueDictionary()
"""All systems that there are, the older ones first."""


def homes() -> dict[nn.Module, list[tuple[System, str]]]:
    """Every memory, or what was put into its place, with the systems that it is part of now and its paths in them."""
    found: dict[nn.Module, list[tuple[System, str]]] = {}
    for _, unit in sorted(_LIVING.items()):
        known = unit.__dict__.get("_places")
        if known is None:  # not kept: it may be in the making
            known = places(unit, System) if "_modules" in unit.__dict__ else ()
        for place in known:
            with suppress(KeyError, AttributeError):  # what stood there was taken away
                found.setdefault(place.module(unit), []).append((unit, ".".join(place.above)))
    return found


def cut(vector: Tensor, shapes: Iterable[tuple[str, tuple[int, ...]]], heads: int) -> dict[str, Tensor]:
    """Cut a generator's output [B, 1, n] into tensors [B, H, out, in], row-major, layer by layer."""
    found: dict[str, Tensor] = {}
    start, batch = 0, vector.shape[0]
    for name, shape in shapes:
        size = heads
        for n in shape:
            size *= n
        piece = vector[:, 0, start : start + size].reshape(batch, heads, *shape)
        found[name] = wide(piece if piece.dim() == 4 else piece.unsqueeze(-1))
        start += size
    return found


def advance(at: At, memory: str, period: int, never: bool, folds: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state tensors of `memory` after a block: at a boundary the new state is what reads see from now on.

    Between boundaries the folded state is kept beside it under `.run`.
    """
    found: dict[str, Tensor] = {}
    for tensor, fold in folds.items():
        name = f"{memory}.{tensor}"
        new = fold.final()
        if ".sum" in new or at.closes(period, never):
            found |= {name + suffix: value for suffix, value in new.items()}
        else:
            found |= {f"{name}{suffix}.run": value for suffix, value in new.items()}
    return found


def update(s: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`s` with `new` on top; a new boundary state drops the running one beside the old."""
    found = {**s, **new}
    for name in new:
        if f"{name}.run" not in new:
            found.pop(f"{name}.run", None)
    return found


def blank(w: Mapping[str, Tensor], *shape: int) -> Tensor:
    """Zeros in the precision and on the device of the weights."""
    for weight in w.values():
        return weight.new_zeros(shape)
    return torch.zeros(shape)


def batch_of(state: State) -> int | None:
    """How many sequences a state is of; None where it has no tensors that tell."""
    return next((x.shape[0] for x in pytree.tree_leaves(state) if isinstance(x, Tensor) and x.dim()), None)


def take_sequences(state: State, sequences: Tensor) -> State:
    """The state of some sequences of the batch, by their numbers, whole ones [n].

    Every tensor of a state has the batch as its first axis, those of an open chunk too (`losses` have no axis: they are
    means over the batch).
    """
    numbers: dict[torch.device, Tensor] = {}

    def taken(x: Tensor) -> Tensor:
        if x.device not in numbers:
            numbers[x.device] = sequences.to(x.device)
        return x[numbers[x.device]] if x.dim() else x

    found: State = pytree.tree_map_only(Tensor, taken, state)
    return found


def new_sequence(state: State) -> State:
    """Begin a new sequence: forget what is per sequence, keep what is never reset."""
    children = {
        name: [new_sequence(s) for s in child] if isinstance(child, list) else new_sequence(child)
        for name, child in state["children"].items()
    }
    fresh = {**state, "position": 0, "sequence": {}, "children": children}
    fresh.pop("losses", None)
    fresh.pop("task", None)
    return fresh
