"""The training loop: rows in, losses out, checkpoints on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nsam import api
from nsam.backends.torch.cuda_graph import GraphedStep
from nsam.backends.torch.optim_rules import RuleOptimizer
from nsam.compiler.step_keys import train_needs_keys
from nsam.dsl.checked import Train
from nsam.dsl.diagnostics import fail
from nsam.runs.checkpoint import Checkpoint, checkpoints, damaged, require_same_tensors, save_checkpoint
from nsam.runs.folder import RunFolder
from nsam.runs.metrics import MetricsLog
from nsam.training.continued import go_on, moved_by
from nsam.training.corpus import Corpus
from nsam.training.interrupts import Interrupts
from nsam.training.movement import Movement, level_of_weights
from nsam.training.objective import next_byte_loss
from nsam.training.progress import Progress, Speed, Watcher
from nsam.training.sampler import Sampler, held_out_rows
from nsam.training.settings import Settings, keeps_state, why_no_graph


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `interrupted`: by Ctrl-C or SIGTERM, with a checkpoint at `step`."""

    step: int
    loss: float
    held_out: float | None
    tokens_per_second: float | None
    elapsed: float
    interrupted: bool


class Trainer:
    """One run of a `train` declaration, from its first step or from a checkpoint.

    Every number that a later step depends on is in the checkpoint, so that a resumed run continues the same curve.
    `changes` tells what the program says otherwise than it did before the checkpoint; the metrics keep it.
    """

    def __init__(
        self, train: Train, corpus: Corpus, settings: Settings, folder: RunFolder, resume: Checkpoint | None = None
    ) -> None:
        """Build model and optimizer; N0507 when `resume` does not belong to the program."""
        self.train, self.settings, self.folder = train, settings, folder
        self.device = torch.device(settings.device)
        options = train.data[1]
        context, self.batch = _whole(options["context"]), _whole(options["batch"])
        torch.manual_seed(settings.seed)
        self.module: nn.Module = api.compile_unit(
            train.model,
            compiled=settings.compiled,
            cpp_wrapper=settings.cpp_wrapper,
            truncated=True,
            observe=True,
            without=settings.without,
            keys=train_needs_keys(train),
        ).to(self.device)
        products = torch.bfloat16 if settings.precision is torch.bfloat16 else None
        self.optimizer: RuleOptimizer = api.train_optimizer(train, self.module, products=products)
        self.sampler = Sampler(corpus.training, context, self.batch, settings.seed)
        self._held_out = held_out_rows(corpus.held_out, context, self.batch, settings.held_out_batches)
        self._speed = Speed(self.batch * context)
        weights = self.module.state_dict()
        self._budget = None if settings.memory is None else api.set_memory(self.module, settings.memory)
        if self._budget is not None:  # before the first step is measured: the states come to be at its end
            self._budget.reserve(self.optimizer.state_bytes())
        self._movement = Movement(level_of_weights(train, weights), weights)
        self._keeps = keeps_state(train.model)
        recorded = settings.cuda_graph if settings.cuda_graph is not None else why_no_graph(train, settings) is None
        self._graph = GraphedStep(self.module, self._fresh_loss) if recorded else None
        self._graph_told: str | None = None
        self._memory: Any = None
        self.changes: tuple[str, ...] = ()
        self.step = 0
        self.loss = math.nan
        self.held_out: float | None = None
        self._elapsed_before = 0.0
        self._speed_before: float | None = None
        self._memories: Mapping[str, Mapping[str, Any]] = {}
        if resume is not None:
            self._restore(resume)

    @property
    def parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(p.numel() for p in self.module.parameters())

    def learnt(self) -> tuple[Mapping[str, Mapping[str, Any]], Mapping[int, float]]:
        """The latest inner losses by memory, and how far each level's weights have moved from their start."""
        with torch.no_grad():
            return self._memories, self._movement.of(self.module)

    def run(self, watcher: Watcher) -> Outcome:
        """Train to the last step, or until interrupted; N0506 at the first loss that is not finite."""
        begun = saved = time.perf_counter()
        steps = self.train.steps
        metrics = MetricsLog(self.folder.metrics, self.step)
        interrupts = Interrupts()
        try:
            if self.changes:
                metrics.add(self.step, {"changed": list(self.changes)})
            with interrupts:
                if self.step == 0:
                    self._save(watcher, 0.0)
                watcher.started(self.step, steps)
                while self.step < steps and not interrupts.asked:
                    self._advance(metrics)
                    interrupts.patient = True
                    elapsed = self._elapsed_before + time.perf_counter() - begun
                    watcher.stepped(self._progress(elapsed))
                    if self._due_for_evaluation():
                        self._evaluate(metrics)
                        watcher.evaluated(self._progress(elapsed))
                    if self._due_for_checkpoint(time.perf_counter() - saved):
                        self._save(watcher, elapsed)
                        saved = time.perf_counter()
                elapsed = self._elapsed_before + time.perf_counter() - begun
                self._save(watcher, elapsed)
        finally:
            metrics.close()
        return Outcome(self.step, self.loss, self.held_out, self._tokens_per_second(), elapsed, self.step < steps)

    # --- one step --------------------------------------------------------------------------------

    def _advance(self, metrics: MetricsLog) -> None:
        begun = time.perf_counter()
        rows = self.sampler.rows().to(self.device)
        loss, state = self._recorded(rows) or self._launched(rows)
        # Asked for after the backward pass: a GPU has all of the step to do while the host waits.
        self.loss = float(loss.detach())
        if not math.isfinite(self.loss):
            raise self._not_finite(f"the loss of step {self.step + 1} is {self.loss}")
        self.step += 1
        # `every n steps`: the level moves once a period, by the sum of the period's gradients (eq. 71).
        if self.step % self.train.every == 0:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.sampler = self.sampler.advance()
        state = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, state)
        # Each step starts fresh sequences; only what is declared `reset never` goes on to the next one.
        self._memory = api.new_sequence(state) if self._keeps else None
        self._speed.add(time.perf_counter() - begun)
        line: dict[str, Any] = {"loss": self.loss, "seconds": round(time.perf_counter() - begun, 4)}
        if self.step % self.settings.report_every == 0 or self.step in (1, self.train.steps):
            line |= self._report(state)
        metrics.add(self.step, line)

    def _recorded(self, rows: torch.Tensor) -> tuple[torch.Tensor, Any] | None:
        """The step as one CUDA graph; None where there is none, or where nobody asked for one and it cannot be made.

        N0522 where somebody did.
        """
        if self._graph is None:
            return None
        try:
            return self._graph(rows)
        except RuntimeError as error:
            full, recorded = isinstance(error, torch.OutOfMemoryError), self._graph.chosen is not None
            if full and (recorded or self.settings.cuda_graph):
                raise
            reason = f"recording failed ({(str(error).strip().splitlines() or [type(error).__name__])[0]})"
            if self.settings.cuda_graph:
                help_ = "--no-cuda-graph launches a step piece by piece; please report this with your program"
                raise fail("N0522", reason, self.train.span, help=help_) from error
            reason = "there is no memory to record it" if full else reason
            self._graph, self._graph_told = None, f"none, a step is launched piece by piece: {reason}"
            return None

    def _launched(self, rows: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The step piece by piece."""
        loss, state = next_byte_loss(self.module, rows, self._memory, self.settings.precision)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss, state

    def _fresh_loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Loss of rows that are fresh sequences."""
        return next_byte_loss(self.module, rows, None, self.settings.precision)

    def _report(self, state: Any) -> dict[str, Any]:
        with torch.no_grad():
            self._memories = api.memory_report(self.module, state)
            moved = self._movement.of(self.module)
        return {"memories": {path: dict(values) for path, values in self._memories.items()}, "moved": moved}

    def _due_for_evaluation(self) -> bool:
        interval = max(1, self.train.steps // self.settings.evaluations)
        return self.step % interval == 0 or self.step == self.train.steps

    def _evaluate(self, metrics: MetricsLog) -> None:
        """Take the held-out loss on the same rows every time, each a fresh sequence.

        Gradients stay enabled, though none is taken: the graph that training compiled is used again instead of a
        second one being compiled.
        """
        losses = [
            float(next_byte_loss(self.module, rows.to(self.device), self._memory, self.settings.precision)[0].detach())
            for rows in self._held_out
        ]
        self.held_out = sum(losses) / len(losses)
        if not math.isfinite(self.held_out):
            raise self._not_finite(f"the held-out loss after step {self.step} is {self.held_out}")
        metrics.add(self.step, {"held_out": self.held_out})

    def _not_finite(self, what: str) -> Exception:
        good = [path for _, path in checkpoints(self.folder.checkpoints)][-1:]
        return fail(
            "N0506",
            what,
            self.train.span,
            f"`{self.train.name}` diverged",
            notes=tuple(f"the last good checkpoint is {path}" for path in good),
            help="lower the learning rate of the rule and go on with --resume, bound the inner objective "
            "(pseudo_huber), or use a rule with a bounded step (safe_dgd); the metrics show which memory grew first",
        )

    def _progress(self, elapsed: float) -> Progress:
        seconds = self._speed.seconds_a_step
        return Progress(
            step=self.step,
            steps=self.train.steps,
            loss=self.loss,
            held_out=self.held_out,
            tokens_per_second=self._tokens_per_second(),
            elapsed=elapsed,
            remaining=None if seconds is None else seconds * (self.train.steps - self.step),
            memories=self._memories,
            budget=None if self._budget is None else str(self._budget.choice),
            graph=self._graph_told if self._graph is None or self._graph.chosen is None else str(self._graph.chosen),
            evaluates=self._due_for_evaluation(),
        )

    def _tokens_per_second(self) -> float | None:
        """Of this process once it has warmed up; until then, of the one before it."""
        return self._speed.tokens_per_second or self._speed_before

    # --- checkpoints -----------------------------------------------------------------------------

    def _due_for_checkpoint(self, seconds: float) -> bool:
        every = self.settings.checkpoint_steps
        return (every is not None and self.step % every == 0) or seconds >= self.settings.checkpoint_seconds

    def _save(self, watcher: Watcher, elapsed: float) -> None:
        weights = self.module.state_dict()
        bad = next((name for name, value in weights.items() if not bool(torch.isfinite(value).all())), None)
        if bad is not None:
            raise self._not_finite(f"after step {self.step} the weight `{bad}` holds numbers that are not finite")
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        known = {"held_out": self.held_out, "tokens_per_second": self._tokens_per_second()}
        progress = {"elapsed": elapsed, "loss": self.loss} | {k: v for k, v in known.items() if v is not None}
        path = save_checkpoint(
            self.folder.checkpoints,
            Checkpoint(
                step=self.step,
                model=weights,
                optimizer=self.optimizer.state_dict(),
                memory=self._memory,
                gradients={name: x.grad for name, x in self._summed().items() if x.grad is not None},
                generators=generators,
                sampler={"seed": self.sampler.seed, "step": self.sampler.step},
                progress=progress,
                moved=moved_by(self.optimizer, self.module),
            ),
        )
        watcher.saved(self.step, path)

    def _summed(self) -> Mapping[str, Any]:
        """What gradients add up at until the level moves: parameters, and what stands beside them for `key`, `err`."""
        found: dict[str, Any] = dict(self.module.named_parameters())
        for kind, beside in (("keys", "nsam_grams"), ("tokens", "nsam_rows")):
            found |= {f"{name}.{kind}": kept for name, kept in getattr(self.module, beside, {}).items()}
        return found

    def _restore(self, checkpoint: Checkpoint) -> None:
        path = self.folder.checkpoints / f"step-{checkpoint.step:06d}"
        require_same_tensors(checkpoint.model, self.module.state_dict(), path)
        self.module.load_state_dict(dict(checkpoint.model))
        try:
            names, clock = moved_by(self.optimizer, self.module), checkpoint.step // self.train.every
            self.changes = go_on(self.optimizer, checkpoint.optimizer, checkpoint.moved, names, clock)
        except (ValueError, KeyError) as error:
            raise fail(
                "N0507",
                f"the optimizer in {path} does not belong to this program: {error}",
                help="use the rules that the run was started with",
            ) from None
        try:
            self._go_on(checkpoint)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(path, error) from None

    def _go_on(self, checkpoint: Checkpoint) -> None:
        """Take over what is neither model nor optimizer."""
        for name, summed in self._summed().items():
            summed.grad = checkpoint.gradients.get(name)
        torch.set_rng_state(checkpoint.generators["cpu"])
        if self.device.type == "cuda" and "cuda" in checkpoint.generators:
            torch.cuda.set_rng_state(checkpoint.generators["cuda"], self.device)
        self.sampler = Sampler(
            self.sampler.text,
            self.sampler.context,
            self.batch,
            checkpoint.sampler["seed"],
            checkpoint.sampler["step"],
        )
        self._memory = checkpoint.memory
        self.step = checkpoint.step
        self.loss = float(checkpoint.progress["loss"])
        self.held_out = checkpoint.progress.get("held_out")
        self._elapsed_before = float(checkpoint.progress["elapsed"])
        self._speed_before = checkpoint.progress.get("tokens_per_second")


def _whole(value: Any) -> int:
    assert isinstance(value, int), value
    return value
