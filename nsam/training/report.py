"""What a run leaves for people: graph, plots, a generated sample, a summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from torch import nn

from nsam.dsl.checked import Train
from nsam.dsl.diagnostics import Diagnostic, ProgramError
from nsam.runs.folder import RunDescription, RunFolder
from nsam.runs.metrics import read_metrics
from nsam.runs.plots import levels_plot, loss_plot
from nsam.training.corpus import Corpus
from nsam.training.loop import Outcome
from nsam.training.sampling import as_text, generate_bytes

SAMPLE_PROMPT = 64
SAMPLE_BYTES = 400


def write_pictures(folder: RunFolder, train: Train) -> tuple[list[Path], Diagnostic | None]:
    """Write the loss and level plots and the level graph (svg and png where Graphviz is installed, html always).

    Returns what was written, and why images of the graph were not.
    """
    from nsam.backends.graphviz.render import render
    from nsam.compiler.graph import build_graph

    metrics = read_metrics(folder.metrics)
    written = [folder.write("loss.png", loss_plot(metrics, f"{train.name}: loss"))]
    written.append(folder.write("levels.png", levels_plot(metrics, f"{train.name}: levels (1 is the fastest)")))
    graph = build_graph(train.model, train)
    for ending in ("html", "svg", "png"):
        path = folder.path / f"graph.{ending}"
        try:
            render(graph, path)
        except ProgramError as error:
            (reason,) = error.diagnostics
            if reason.code not in ("N0392", "N0393"):
                raise
            return written, reason  # a run of hours does not end in an error for the want of a picture
        written.append(path)
    return written, None


def sample(train: Train, module: nn.Module, corpus: Corpus, seed: int) -> str:
    """Return a text of the model's own: the start of the held-out text, a mark, and what the model makes of it.

    Runs on an uncompiled copy: one token a call is another shape, and not worth a compilation.
    """
    from nsam import api

    copy = api.compile_unit(train.model, compiled=False).to(next(module.parameters()).device)
    copy.load_state_dict(module.state_dict())
    prompt = corpus.held_out[:SAMPLE_PROMPT]
    text = "".join(as_text(islice(generate_bytes(copy, prompt, SAMPLE_BYTES, seed=seed), SAMPLE_BYTES)))
    return f"{prompt.decode(errors='replace')}⟩{text}\n"


def summary(
    description: RunDescription, corpus: Corpus, outcome: Outcome, parameters: int, pictures: Sequence[Path]
) -> str:
    """Return the run in a few lines of Markdown."""
    rows = {
        "program": f"`program/{description.main}`, train `{description.train}`",
        "set": ", ".join(f"{name} = {value}" for name, value in description.overrides.items()) or "nothing",
        "parameters": f"{parameters:,}",
        "data": f"{corpus.source}: {len(corpus.training):,} bytes for training, {len(corpus.held_out):,} held out "
        f"({len(corpus.held_out_names)} of {corpus.documents} documents); "
        f"{corpus.dropped:,} bytes left out of training because held-out text repeats them",
        "steps": f"{outcome.step:,} of {description.batch} x {description.context:,} tokens",
        "training loss": f"{bits(outcome.loss):.3f} bits per byte at the last step",
        "held-out loss": "not measured" if outcome.held_out is None else f"{bits(outcome.held_out):.3f} bits per byte",
        "speed": "not measured"
        if outcome.tokens_per_second is None
        else f"{outcome.tokens_per_second:,.0f} tokens a second, without compilation",
        "time": f"{outcome.elapsed:,.0f} s in the loop, compilation included",
        "seed, precision": f"{description.seed}, {description.dtype}",
        "passes": f"all but {', '.join(description.without)}" if description.without else "all",
        "nsam": description.version,
    }
    lines = [f"# {description.train}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", *(f"![{path.stem}]({path.name})" for path in pictures if path.suffix == ".png"), ""]
    return "\n".join(lines)


def bits(nats: float) -> float:
    """Bits for a loss in nats."""
    return nats / math.log(2)
