"""`nsam train`: run a train declaration; progress, checkpoints, a run folder."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click
from click.exceptions import Exit

from nsam.cli.command import command
from nsam.cli.guard import INTERRUPTED
from nsam.cli.options import (
    MAX_SEED,
    PATH,
    NumberRange,
    Precision,
    parse_pairs,
    with_device,
    with_file,
    with_passes,
    with_threads,
)
from nsam.cli.request import train_name

if TYPE_CHECKING:
    from rich.console import Console

    from nsam.training.loop import Outcome
    from nsam.training.settings import Settings
    from nsam.training.start import Run

RUNS = Path("runs")


@command("train")
@with_file
@click.argument("train", required=False, help="A train declaration of the program.")
@click.option(
    "--data",
    type=PATH,
    multiple=True,
    metavar="PATH",
    help="A file or folder of UTF-8 text; may be repeated. Without it: Python's own documentation.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change the declaration, e.g. [cyan]--set steps=200[/].",
)
@click.option("--out", type=PATH, metavar="DIR", help="The run folder. Default: runs/<train>-<n>.")
@click.option("--resume", is_flag=True, help="Continue the run in --out, or the latest one.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), metavar="NUMBER", help="Default 0.")
@with_device
@click.option("--dtype", type=click.Choice(Precision), help="Precision of matrix products. Default float32.")
@with_threads
@click.option(
    "--memory",
    metavar="SIZE",
    help="A budget, e.g. [cyan]8GB[/]: what does not fit is computed again, so a step takes longer.",
)
@with_passes
@click.option(
    "--cuda-graph/--no-cuda-graph",
    default=None,
    help="On a GPU: record a step once and replay it in one launch. Default: where that can be.",
)
@click.option("--cpp-wrapper", is_flag=True, help="Compile half a minute longer, for shorter steps: for long runs.")
@click.option("--no-compile", is_flag=True, help="Leave torch.compile out: starts at once.")
@click.option(
    "--checkpoint-every",
    type=NumberRange(0),
    metavar="SECONDS",
    default=60,
    show_default=True,
    help="Time between checkpoints.",
)
@click.option("--checkpoint-steps", type=click.IntRange(1), metavar="COUNT", help="Also save every so many steps.")
def main(
    file: Path,
    train: str | None,
    data: tuple[Path, ...],
    settings: tuple[str, ...],
    out: Path | None,
    resume: bool,
    seed: int | None,
    device: str,
    dtype: Precision | None,
    threads: int | None,
    memory: str | None,
    without: tuple[str, ...],
    cuda_graph: bool | None,
    cpp_wrapper: bool,
    no_compile: bool,
    checkpoint_every: float,
    checkpoint_steps: int | None,
) -> None:
    """Train a model on text and leave a run folder: checkpoint, metrics, plots, level graph, sample.

    Ctrl-C stops after the current step with a checkpoint; --resume continues the same curve.

    \b
    [dim]nsam train hope.nsam
    nsam train hope.nsam hope_bytes --data ~/notes --set steps=500 --out runs/notes
    nsam train hope.nsam --out runs/notes --resume[/]
    """
    overrides = parse_pairs(settings, "--set")
    if resume and (data or seed is not None or dtype is not None or without):
        raise click.BadParameter("a resumed run keeps its --data, --seed, --dtype and --without", param_hint="--resume")
    from nsam.cli.programs import load
    from nsam.compiler.passes import passes_without
    from nsam.sizes import parse_size

    budget = None if memory is None else parse_size(memory)
    passes = passes_without(without)

    program = load(file)
    name = train_name(program, train)

    import torch
    from rich.console import Console

    from nsam.runs.folder import RunFolder, claim_run, last_run
    from nsam.runs.lock import held
    from nsam.training.limits import memory_errors
    from nsam.training.settings import Settings
    from nsam.training.start import new_run, resumed_run

    if threads is not None:
        torch.set_num_threads(threads)
    wanted = Settings(
        seed=seed or 0,
        device=device,
        dtype=(dtype or Precision.float32).value,
        compiled=not no_compile,
        checkpoint_seconds=checkpoint_every,
        checkpoint_steps=checkpoint_steps,
        without=passes.without,
        memory=budget,
        cuda_graph=cuda_graph,
        cpp_wrapper=cpp_wrapper,
    )
    console = Console(highlight=False)
    with ExitStack() as stack:
        with memory_errors():
            if resume:
                folder = out or last_run(RUNS, name)
                stack.enter_context(held(RunFolder(folder)))
                run = resumed_run(file, program, name, overrides, wanted, folder)
            else:
                declaration = program.train(name, overrides)
                run = new_run(file, declaration, overrides, list(data), wanted, lambda: out or claim_run(RUNS, name))
                stack.enter_context(held(run.folder))
            resumed = ["nsam", "train", str(file), name, "--out", str(run.folder.path), "--resume"]
            again = shlex.join([*resumed, *_again(wanted, threads)])
            _describe(console, run)
            outcome = _loop(console, run, again, wanted.compiled)
        _finish(console, run, outcome, again)


def _again(settings: Settings, threads: int | None) -> list[str]:
    """The options that a run does not keep, to be given again."""
    usual = type(settings)()
    graph = {None: None, True: "--cuda-graph", False: "--no-cuda-graph"}[settings.cuda_graph]
    flags = (
        (graph, graph is not None),
        ("--cpp-wrapper", settings.cpp_wrapper),
        ("--no-compile", not settings.compiled),
    )
    values = (
        ("--device", settings.device, usual.device),
        ("--threads", threads, None),
        ("--checkpoint-every", settings.checkpoint_seconds, usual.checkpoint_seconds),
        ("--checkpoint-steps", settings.checkpoint_steps, usual.checkpoint_steps),
    )
    given = [text for name, value, default in values if value != default for text in (name, str(value))]
    return given + [name for name, on in flags if on and name is not None]


def _describe(console: Console, run: Run) -> None:
    from rich.markup import escape

    from nsam.training.settings import why_no_graph, why_slow

    corpus, path = run.corpus, escape(str(run.folder.path))
    console.print(f"[bold]{run.train.name}[/]  {run.trainer.parameters:,} parameters  [dim]run folder[/] {path}")
    console.print(
        f"[dim]data[/]  {escape(corpus.source)}: {len(corpus.training):,} bytes for training, "
        f"{len(corpus.held_out):,} held out ({len(corpus.held_out_names)} of {corpus.documents} documents)",
        soft_wrap=True,
    )
    if corpus.skipped:
        console.print(f"[yellow]{len(corpus.skipped)} files are not UTF-8 text and were left out[/]")
    if slow := why_slow(run.trainer.settings):
        console.print(f"[yellow]{slow}[/]", soft_wrap=True)
    if run.trainer.device.type == "cuda":
        no = why_no_graph(run.train, run.trainer.settings)
        told = (
            "each step is one CUDA graph" if no is None else f"no CUDA graph, a step is launched piece by piece: {no}"
        )
        console.print(f"[dim]device[/]  {run.trainer.device}: {told}", soft_wrap=True)
    if run.trainer.step:
        console.print(f"continuing at step {run.trainer.step:,}")
    if run.trainer.changes:
        console.print(
            f"changed since the last checkpoint: {', '.join(run.trainer.changes)}", markup=False, soft_wrap=True
        )


def _loop(console: Console, run: Run, again: str, compiled: bool) -> Outcome:
    from nsam.cli.train_display import LineWatcher, LiveWatcher
    from nsam.runs.checkpoint import checkpoints

    live = sys.stdout.isatty()
    watcher = LiveWatcher(console, compiled, run.train.steps) if live else LineWatcher(console, compiled)
    try:
        with watcher:
            return run.trainer.run(watcher)
    except KeyboardInterrupt:
        saved = [f"the last checkpoint is that of step {step:,}" for step, _ in checkpoints(run.folder.checkpoints)]
        _say_how_to_go_on(console, f"Stopped at once; {(saved or ['no checkpoint was saved yet'])[-1]}.", again)
        raise Exit(INTERRUPTED) from None


def _say_how_to_go_on(console: Console, what: str, again: str) -> None:
    console.print(f"{what} Continue with:\n  {again}", markup=False, soft_wrap=True)


def _finish(console: Console, run: Run, outcome: Outcome, again: str) -> None:
    """Write what people look at; after an interruption say how to go on, and stop with 130."""
    from nsam.cli.level_table import level_table
    from nsam.training.report import bits, sample, summary, write_pictures
    from nsam.training.sampling import harmless

    folder = run.folder
    if outcome.interrupted:
        _say_how_to_go_on(console, f"Stopped at step {outcome.step:,}; the checkpoint is saved.", again)
        raise Exit(INTERRUPTED)
    pictures, undrawn = write_pictures(folder, run.train)
    folder.write("summary.md", summary(run.description, run.corpus, outcome, run.trainer.parameters, pictures))
    text = sample(run.train, run.trainer.module, run.corpus, run.description.seed)
    folder.write("sample.txt", text)
    written = [path.name for path in pictures] + ["sample.txt", "summary.md", "metrics.jsonl", "checkpoints"]
    if outcome.held_out is not None:
        console.print(f"held out: [bold]{bits(outcome.held_out):.3f}[/] bits per byte after {outcome.step:,} steps")
    console.print("[dim]a sample (the model continues after ⟩):[/]")
    console.print(harmless(text), markup=False, soft_wrap=True)
    console.print("[dim]its levels, the fastest first (weights moved: distance from their start, relative):[/]")
    console.print(level_table(run.train, *run.trainer.learnt()))
    console.print(f"{folder.path}: {', '.join(written)}", markup=False, soft_wrap=True)
    if undrawn is not None:
        ways = "; ".join((*undrawn.notes[:1], "then `nsam graph` draws it"))
        console.print(f"no image of the level graph: {undrawn.message} ({ways})", markup=False, soft_wrap=True)
    more = shlex.join(["nsam", "generate", str(folder.path), "--prompt", "The "])
    console.print(f"more text: {more}", markup=False, soft_wrap=True)
