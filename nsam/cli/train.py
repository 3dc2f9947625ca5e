"""`nsam train`: run a train declaration; progress, checkpoints, a run folder."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsam.cli.guard import INTERRUPTED
from nsam.cli.options import MAX_SEED, File, Without, parse_pairs
from nsam.cli.request import train_name

if TYPE_CHECKING:
    from rich.console import Console

    from nsam.training.loop import Outcome
    from nsam.training.settings import Settings
    from nsam.training.start import Run

RUNS = Path("runs")


class Precision(StrEnum):
    """Precision of matrix products."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def train(
    file: File,
    name: Annotated[
        str | None, typer.Argument(metavar="TRAIN", help="A train declaration of the program.", show_default=False)
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="A file or folder of UTF-8 text; may be repeated. Without it: Python's own documentation.",
            show_default=False,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change the declaration, e.g. [cyan]--set steps=200[/]."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The run folder. Default: runs/<train>-<n>.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, or the latest one.")] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=MAX_SEED, help="Default 0.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …")] = "cpu",
    dtype: Annotated[
        Precision | None,
        typer.Option("--dtype", help="Precision of matrix products. Default float32.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads.", show_default=False)
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="A budget, e.g. [cyan]8GB[/]: what does not fit is computed again, so a step takes longer.",
            show_default=False,
        ),
    ] = None,
    without: Without = None,
    cuda_graph: Annotated[
        bool | None,
        typer.Option(
            "--cuda-graph/--no-cuda-graph",
            help="On a GPU: record a step once and replay it in one launch. Default: where that can be.",
            show_default=False,
        ),
    ] = None,
    cpp_wrapper: Annotated[
        bool,
        typer.Option("--cpp-wrapper", help="Compile half a minute longer, for shorter steps: worth it for long runs."),
    ] = False,
    no_compile: Annotated[bool, typer.Option("--no-compile", help="Leave torch.compile out: starts at once.")] = False,
    checkpoint_every: Annotated[
        float, typer.Option("--checkpoint-every", min=0, metavar="SECONDS", help="Time between checkpoints.")
    ] = 60,
    checkpoint_steps: Annotated[
        int | None,
        typer.Option("--checkpoint-steps", min=1, help="Also save every so many steps.", show_default=False),
    ] = None,
) -> None:
    """Train a model on text and leave a run folder: checkpoint, metrics, plots, level graph, sample.

    Ctrl-C stops after the current step with a checkpoint; --resume continues the same curve.

    [dim]nsam train hope.nsam
    nsam train hope.nsam hope_bytes --data ~/notes --set steps=500 --out runs/notes
    nsam train hope.nsam --out runs/notes --resume[/]
    """
    overrides = parse_pairs(set_, "--set")
    if resume and (data or seed is not None or dtype is not None or without):
        raise typer.BadParameter("a resumed run keeps its --data, --seed, --dtype and --without", param_hint="--resume")
    from nsam.cli.programs import load
    from nsam.compiler.passes import passes_without
    from nsam.sizes import parse_size

    budget = None if memory is None else parse_size(memory)
    passes = passes_without(without or ())

    program = load(file)
    name = train_name(program, name)

    import torch
    from rich.console import Console

    from nsam.runs.folder import RunFolder, claim_run, last_run
    from nsam.runs.lock import held
    from nsam.training.limits import memory_errors
    from nsam.training.settings import Settings
    from nsam.training.start import new_run, resumed_run

    if threads is not None:
        torch.set_num_threads(threads)
    settings = Settings(
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
                run = resumed_run(file, program, name, overrides, settings, folder)
            else:
                declaration = program.train(name, overrides)
                run = new_run(file, declaration, overrides, data or [], settings, lambda: out or claim_run(RUNS, name))
                stack.enter_context(held(run.folder))
            resumed = ["nsam", "train", str(file), name, "--out", str(run.folder.path), "--resume"]
            again = shlex.join([*resumed, *_again(settings, threads)])
            _describe(console, run)
            outcome = _loop(console, run, again, settings.compiled)
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
        raise typer.Exit(INTERRUPTED) from None


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
        raise typer.Exit(INTERRUPTED)
    pictures = write_pictures(folder, run.train)
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
    more = shlex.join(["nsam", "generate", str(folder.path), "--prompt", "The "])
    console.print(f"more text: {more}", markup=False, soft_wrap=True)
