"""Models whose memories move by the model's own loss: end-to-end test-time training.

Such a model runs chunk by chunk through all layers. A chunk ends at every boundary of any such memory. In it the
gradient of the tokens' cross-entropy is taken with respect to the memories' states at its start, through all that the
chunk computes, with every state at its start held.

A token's target is the token after it, so the loss of a chunk's last token is known only when the next chunk begins: a
memory that closes after token t moves by the losses of tokens s, …, t − 1, s being the token at which it closed before.
The gradient of the loss of s was taken in the chunk that s ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from nsam.backends.torch.runtime.blocks import At, lengths
from nsam.backends.torch.runtime.functions import wide
from nsam.backends.torch.runtime.inputs import require_batch
from nsam.backends.torch.runtime.system import State, System
from nsam.backends.torch.runtime.tasks import paths

Inputs = tuple[Tensor, ...]
FIRST: State = {"position": 0, "steps": 0, "sequence": {}, "kept": {}, "children": {}}


@dataclass(frozen=True)
class Open:
    """The chunk that is not closed yet: its inputs and targets so far, and the state at its start.

    `late` is the chunk before it, as (inputs, state at its start), where the target of its last token is not known yet.
    """

    inputs: Inputs = ()
    targets: Tensor | None = None
    start: State | None = None
    late: tuple[Inputs, State] | None = None

    @property
    def length(self) -> int:
        """Tokens in the chunk so far."""
        return 0 if self.start is None else self.inputs[0].shape[1]

    @property
    def owed(self) -> bool:
        """Whether the latest token has no target yet."""
        known = 0 if self.targets is None else self.targets.shape[1]
        return self.late is not None or known < self.length

    def owned(self) -> Open:
        """The same, with inputs and targets of its own: those of a call are the caller's, who may write into them."""
        targets = None if self.targets is None else self.targets.clone()
        late = None if self.late is None else (_copies(self.late[0]), self.late[1])
        return Open(_copies(self.inputs), targets, self.start, late)

    def as_state(self) -> State:
        """The same as a plain dict of tensors."""
        return {"inputs": self.inputs, "targets": self.targets, "start": self.start, "late": self.late}


class EndToEnd(System):
    """Base of a generated module in which something moves by the model's own loss. Its `piece` is a plain forward.

    The state has one more entry, `task`: the open chunk. It runs as plain PyTorch, because torch.compile has no second
    derivative and the outer gradient goes through the inner one.
    """

    compiled = False
    per_token: tuple[bool, ...] = (True,)
    """Which inputs vary along the sequence; the first one does."""
    classes = 1
    """How many classes the output scores, one of which is each token's target."""
    predicts_its_input = False
    """Whether the target of a token is the next token of the only input."""

    def piece(self, *inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run tokens between two boundaries."""
        raise NotImplementedError("generated modules define it")

    def learn(self, inputs: Inputs, state: State | None, targets: Tensor | None) -> tuple[Tensor, State]:
        """Run a call of any length: the output [B, T, n] and the state to carry on. See `forward` of the class.

        `targets` are integers [B, T], the class that each token's output should have named. Raises ValueError when they
        do not fit.
        """
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self.learn(tuple(x.clone() for x in inputs), state, None if targets is None else targets.clone())
        if torch.is_grad_enabled():
            used = pytree.tree_leaves((inputs, state))
            if not self._asked(*(x for x in used if isinstance(x, Tensor))):
                with torch.no_grad():  # the inner gradients leave no graph behind, which would grow with the state
                    return self.learn(inputs, state, targets)
        running = FIRST if state is None else {key: value for key, value in state.items() if key != "task"}
        chunk = Open(**state["task"]) if state is not None and "task" in state else Open()
        time, batch = inputs[self.time_input].shape[1], inputs[0].shape[0]
        if state is not None:
            require_batch(state, batch)
        answers = self.answers(inputs, chunk, targets, batch, time)
        if chunk.late is not None:
            running = self.settle(running, *chunk.late, answers[:, :1])
            answers, chunk = answers[:, 1:], Open()
        if chunk.targets is not None:
            answers = torch.cat([chunk.targets, answers], 1)
        known = answers[:, chunk.length :]
        found: list[Tensor] = []
        looked: list[tuple[int, State]] = []
        at, done = At(running["position"], 0, time, batch), 0
        for size in lengths(at, [(period, False) for period in self.periods()]):
            new = self.part(inputs, done, done + size)
            done += size
            before = chunk.length
            start = running if chunk.start is None else chunk.start
            whole = self.joined(chunk.inputs, new) if before else new
            end = running["position"] + size
            if any(end % period == 0 for period in self.periods()):
                y, running, settled = self.closed(whole, start, answers[:, : before + size])
                found.append(y[:, before:])
                answers = answers[:, before + size :]
                chunk = Open() if settled else Open(late=(whole, start))
            else:
                y, running = self.piece(*new, state=running)
                found.append(y)
                chunk = Open(whole, answers[:, : before + size], start)
            looked.append((y.shape[1], running))
        y = torch.cat(found, 1)
        if self.observe:
            running = self.observed(running, looked, y.detach(), known)
        return y, {**running, "task": chunk.owned().as_state()}

    def observed(self, state: State, pieces: list[tuple[int, State]], y: Tensor, targets: Tensor) -> State:
        """The state with `losses` of the whole call, of which `pieces` are the parts by number of tokens.

        The inner loss of a memory that moves by the model's own loss is that loss, over the tokens that have a target.
        """
        state, total = unshared(state), sum(size for size, _ in pieces)
        within = [{where: part.get("losses", {}) for where, _, part in parts(self, piece)} for _, piece in pieces]
        scored = min(y.shape[1], targets.shape[1])
        own = cross_entropy(y[:, :scored], targets[:, :scored]).mean() if scored else None
        for where, unit, part in parts(self, state):
            losses = {
                name: torch.stack([size * each[where][name] for (size, _), each in zip(pieces, within, strict=True)])
                for name in part.get("losses", {})
            }
            part["losses"] = {name: found.sum() / total for name, found in losses.items()}
            if own is not None:
                part["losses"] |= dict.fromkeys(unit.tasks, own)
        return state

    # --- targets -----------------------------------------------------------------------------------

    def answers(self, inputs: Inputs, chunk: Open, targets: Tensor | None, batch: int, time: int) -> Tensor:
        """Targets of all tokens that have none yet, the very latest one perhaps left out."""
        if targets is None:
            if not self.predicts_its_input:
                raise ValueError(
                    f"{type(self).__name__} learns from targets while it runs: call module(…, targets=targets), "
                    "integers [batch, time]; targets[:, t] is what the output at token t should have named"
                )
            targets = inputs[0] if chunk.owed else inputs[0][:, 1:]
        elif targets.numel() and (int(targets.min()) < 0 or int(targets.max()) >= self.classes):
            raise ValueError(f"a target lies outside of 0 … {self.classes - 1}")
        most = time + chunk.owed
        if targets.is_floating_point() or targets.shape not in ((batch, most), (batch, most - 1)):
            owed = "the latest token of the call before, then " if chunk.owed else ""
            raise ValueError(
                f"targets are integers for {owed}each of the {time} tokens, the last one at will: [{batch}, {most}] or "
                f"[{batch}, {most - 1}], found {targets.dtype} {list(targets.shape)}"
            )
        return targets

    # --- chunks ------------------------------------------------------------------------------------

    def closed(self, inputs: Inputs, start: State, targets: Tensor) -> tuple[Tensor, State, bool]:
        """Run a whole chunk and move what closes at its end: output, state, and whether its last target was known."""
        outer, end = torch.is_grad_enabled(), start["position"] + self.length(inputs)
        y, state, losses = self.scored(inputs, start, targets)
        last = y.shape[1] - 1
        early = self.gradients(losses, slice(0, last), state, outer)
        settled = losses.shape[1] > last
        late = self.gradients(losses, slice(last, None), state, outer) if settled else {}
        if not outer:
            y, state = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (y, state))
        with torch.set_grad_enabled(outer):
            state = self.advanced(state, early, At(start["position"], 0, last + 1, y.shape[0]))
            if settled:
                state = self.added(state, late, end)
        return y, state, settled

    def settle(self, running: State, inputs: Inputs, start: State, target: Tensor) -> State:
        """Add the gradient of the latest chunk's last token, whose target has come, to the sums of the next one."""
        outer = torch.is_grad_enabled()
        unknown = target.new_zeros(target.shape[0], self.length(inputs) - 1)
        _, state, losses = self.scored(inputs, start, torch.cat([unknown, target], 1))
        late = self.gradients(losses, slice(-1, None), state, outer)
        with torch.set_grad_enabled(outer):
            return self.added(running, late, start["position"] + self.length(inputs))

    def scored(self, inputs: Inputs, start: State, targets: Tensor) -> tuple[Tensor, State, Tensor]:
        """Run a chunk with its graph: output, state, and the losses of the tokens that have a target."""
        # Fused attention has no second derivative; the plain one has.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            y, state = self.piece(*inputs, state=start)
            return y, state, cross_entropy(y[:, : targets.shape[1]], targets)

    def gradients(self, losses: Tensor, tokens: slice, state: State, outer: bool) -> dict[str, Tensor]:
        """Gradients of the losses' sum over `tokens` with respect to the states that they read, by unit and path."""
        found = {
            where + key: part["sequence"][key] for where, unit, part in parts(self, state) for key in paths(unit.tasks)
        }
        if not losses.requires_grad:  # nothing that is read moves or learns
            return {key: torch.zeros_like(x) for key, x in found.items()}
        # The graph is kept: the loss of the chunk's last token is differentiated on its own.
        with torch.enable_grad():
            grads = torch.autograd.grad(
                losses[:, tokens].sum(),
                list(found.values()),
                create_graph=outer,
                retain_graph=True,
                materialize_grads=True,
            )
        return dict(zip(found, grads, strict=True))

    def added(self, state: State, gradients: dict[str, Tensor], end: int) -> State:
        """Add gradients of the token `end` to the sums, but for memories that started over after it."""
        state = unshared(state)
        for where, unit, part in parts(self, state):
            s = part["sequence"]
            for name, task in unit.tasks.items():
                for key in [] if task.starts_over(end) else [f"{name}.{tensor}" for tensor in task.tensors]:
                    s[f"{key}.sum"] = s[f"{key}.sum"] + gradients[where + key]
        return state

    def advanced(self, state: State, gradients: dict[str, Tensor], at: At) -> State:
        """Add a chunk's gradients, move the memories whose period closes, and start over those whose reset is due."""
        state, end = unshared(state), at.offset + at.length
        for where, unit, part in parts(self, state):
            s = part["sequence"]
            for name, task in unit.tasks.items():
                for tensor in task.tensors:
                    key = f"{name}.{tensor}"
                    s[f"{key}.sum"] = s[f"{key}.sum"] + gradients[where + key]
                    if end % task.period == 0:
                        s.update(task.moved(unit.weights(), s, key, tensor, end))
            for task in unit.tasks.values():
                if task.starts_over(end) and task.restart is not None:
                    s.update(task.restart(unit.weights(), {**s, **part["kept"]}, at))
        return state

    # --- tokens ------------------------------------------------------------------------------------

    @property
    def time_input(self) -> int:
        """The first input that varies along the sequence."""
        return self.per_token.index(True)

    def length(self, inputs: Inputs) -> int:
        """How many tokens there are."""
        return int(inputs[self.time_input].shape[1])

    def part(self, inputs: Inputs, start: int, stop: int) -> Inputs:
        """Tokens `start` to `stop` − 1."""
        return tuple(x[:, start:stop] if moves else x for x, moves in zip(inputs, self.per_token, strict=True))

    def joined(self, first: Inputs, second: Inputs) -> Inputs:
        """Tokens of two calls."""
        pairs = zip(first, second, self.per_token, strict=True)
        return tuple(torch.cat([a, b], 1) if moves else b for a, b, moves in pairs)

    def periods(self) -> list[int]:
        """Periods of all memories that move by the model's own loss, here and below."""
        units = (unit for unit in self.modules() if isinstance(unit, System))
        return sorted({task.period for unit in units for task in unit.tasks.values()})


def _copies(inputs: Inputs) -> Inputs:
    return tuple(x.clone() for x in inputs)


def cross_entropy(y: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(y)[target] in nats: y [B, T, n], targets [B, T] → [B, T]."""
    losses = F.cross_entropy(wide(y).flatten(0, 1), targets.flatten().long(), reduction="none")
    return losses.view(targets.shape)


def parts(unit: System, state: State, where: str = "") -> Iterator[tuple[str, System, State]]:
    """Every unit with its part of a state, and the path of both."""
    yield where, unit, state
    for name, child in state["children"].items():
        module = unit.child(name)
        if isinstance(child, list):
            for i, (inner, each) in enumerate(zip(module, child, strict=True)):
                yield from parts(inner, each, f"{where}{name}.{i}.")
        else:
            yield from parts(module, child, f"{where}{name}.")


def unshared(state: State) -> State:
    """A copy of a state's dicts, its tensors shared."""
    children = {
        name: [unshared(each) for each in child] if isinstance(child, list) else unshared(child)
        for name, child in state["children"].items()
    }
    return {**state, "sequence": dict(state["sequence"]), "children": children}
