"""From a program and a request to a run that is ready to go: new, or resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nsam.backends.torch.runtime import instructions
from nsam.compiler.checks import require_levels
from nsam.dsl.checked import Train
from nsam.dsl.constants import show
from nsam.dsl.diagnostics import ProgramError, fail
from nsam.dsl.program import Program
from nsam.runs.checkpoint import checkpoints, load_checkpoint
from nsam.runs.folder import (
    RunDescription,
    RunFolder,
    changed_sources,
    create_run,
    keep_program,
    open_run,
    update_overrides,
)
from nsam.runs.sources import program_sources
from nsam.training.allocator import keep_freed_memory
from nsam.training.continued import require_same_memories
from nsam.training.corpus import Corpus, load_corpus
from nsam.training.limits import require_reasonable_step
from nsam.training.loop import Trainer
from nsam.training.objective import require_byte_model
from nsam.training.settings import Settings, keeps_state, require_cache, require_compiler, require_device, why_no_graph


@dataclass(frozen=True, slots=True)
class Run:
    """A run ready to go."""

    folder: RunFolder
    description: RunDescription
    train: Train
    corpus: Corpus
    trainer: Trainer


def new_run(
    file: Path,
    train: Train,
    overrides: Mapping[str, Any],
    data: Sequence[Path],
    settings: Settings,
    place: Callable[[], Path],
) -> Run:
    """Return a run that starts at step 0 in a new folder, for which `place` is asked once all is known to be right."""
    corpus, context, batch = _prepare(train, data, settings)
    description = RunDescription(
        train=train.name,
        overrides=dict(overrides),
        main=file.name,
        data=tuple(str(item.resolve()) for item in data),
        fingerprint=corpus.fingerprint,
        context=context,
        batch=batch,
        seed=settings.seed,
        dtype=settings.dtype,
        version=version("nsam"),
        without=settings.without,
        memory=settings.memory,
    )
    folder = create_run(place(), description, program_sources(file))
    return Run(folder, description, train, corpus, Trainer(train, corpus, settings, folder))


def resumed_run(
    file: Path, program: Program, name: str, overrides: Mapping[str, Any], settings: Settings, path: Path
) -> Run:
    """Return the run in `path` at its last checkpoint, or at step 0; its program is `program`, the text in `file`.

    Data, seed, precision and passes are those that it began with, and its budget of memory unless `settings` has one;
    `overrides` are put on top of its own. What the program says otherwise than before is in the trainer's `changes`,
    and the run keeps the new text. N0510 when the rows would not be the same as before, N0507 when the checkpoint does
    not belong to the program.
    """
    folder, description = open_run(path)
    if description.train != name:
        raise fail("N0510", f"{path} is a run of `{description.train}`, not of `{name}`")
    before = description
    memory = description.memory if settings.memory is None else settings.memory
    description = replace(description, overrides={**description.overrides, **overrides}, memory=memory)
    train = program.train(name, description.overrides)
    settings = replace(settings, seed=description.seed, dtype=description.dtype, memory=memory)
    settings = replace(settings, without=description.without)
    corpus, context, batch = _prepare(train, [Path(item) for item in description.data], settings)
    sources = program_sources(file)
    changes: list[str] = []
    latest = checkpoints(folder.checkpoints)[-1:]
    if latest:
        if train.steps < latest[0][0]:
            raise fail(
                "N0510",
                f"{path} is at step {latest[0][0]:,} already, and would end at step {train.steps:,}",
                help="--set steps=… says how many there are in all; or start a new run: leave --resume out",
            )
        _require_same_rows(path, description, corpus, context, batch if keeps_state(train.model) else None)
        changes = changed_sources(folder, description.main, sources, file.name)
        changes += _changed_values(folder, before, train)
        changes += [f"batch {description.batch} -> {batch}"] if batch != description.batch else []
    checkpoint = load_checkpoint(latest[0][1], settings.device) if latest else None
    trainer = Trainer(train, corpus, settings, folder, checkpoint)
    if checkpoint is not None and checkpoint.memory is not None and changes:
        require_same_memories(train, checkpoint.memory, latest[0][1])
    trainer.changes = (*changes, *trainer.changes)
    keep_program(folder, sources)
    description = replace(description, main=file.name, batch=batch, context=context, fingerprint=corpus.fingerprint)
    update_overrides(folder, description)
    return Run(folder, description, train, corpus, trainer)


def _changed_values(folder: RunFolder, before: RunDescription, train: Train) -> list[str]:
    """Return what the model's parameters and the level's period are now, and were: `model.p 1000 -> 8`.

    Nothing where the text that the run keeps is not read any more, as by a later version of nsam.
    """
    try:
        then = Program.load(folder.program / before.main).train(before.train, before.overrides)
    except ProgramError:
        return []
    old, new = (
        {"every": one.every} | {f"model.{name}": x for name, x in one.model.parameters.items()} for one in (then, train)
    )
    return [f"{name} {show(old[name])} -> {show(new[name])}" for name in new if name in old and old[name] != new[name]]


def _require_same_rows(path: Path, before: RunDescription, corpus: Corpus, context: int, batch: int | None) -> None:
    """Check that rows are those of before; `batch` is None where it may change, as no memory goes on in each row."""
    for what, then, now in (
        ("context", before.context, context),
        ("batch", before.batch, before.batch if batch is None else batch),
        ("text", before.fingerprint, corpus.fingerprint),
    ):
        if then != now:
            detail = "" if what == "text" else f": it was {then} and is {now}"
            raise fail(
                "N0510",
                f"the {what} of {path} has changed since it began{detail}",
                help="start a new run instead: leave --resume out",
            )


def _prepare(train: Train, data: Sequence[Path], settings: Settings) -> tuple[Corpus, int, int]:
    require_levels(train.model, train)
    require_byte_model(train)
    require_device(settings.device)
    why_no_graph(train, settings)
    if settings.compiled:
        require_compiler(settings.device)
        require_cache()
    options = train.data[1]
    context, batch = options["context"], options["batch"]
    assert isinstance(context, int)
    assert isinstance(batch, int)
    require_reasonable_step(context, batch)
    if settings.device == "cpu":
        keep_freed_memory()
    if settings.compiled and settings.device == "cpu":
        instructions.begin()  # while the text is read and the model made
    return load_corpus(data, context), context, batch
