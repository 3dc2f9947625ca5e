"""`nsam generate`: text from a run, as it is made."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from nsam.cli.options import MAX_SEED


def generate(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="What `nsam train` made.", show_default=False)],
    prompt: Annotated[str, typer.Option("--prompt", help="The text to continue.", show_default=False)],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="How many bytes to add.")] = 400,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=100, help="0 takes the likeliest byte.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Draw among the k likeliest bytes.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="The same seed gives the same text.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, …")] = "cpu",
    state: Annotated[
        Path | None,
        typer.Option("--state", help="Go on from the memories in this file, and write them back.", show_default=False),
    ] = None,
    stream: Annotated[int, typer.Option("--stream", min=0, help="Whose memories: a sequence of the run's batch.")] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start from memories as training learnt to start them.")
    ] = False,
) -> None:
    """Continue a text with a trained model, streaming, with the state of its memories carried along.

    The run folder holds all that is needed. The text goes to stdout, the prompt included. Memories with `reset never`
    start from what they had learnt when the run ended, or with --state when the last text ended.

    [dim]nsam generate runs/hope_bytes-1 --prompt 'The list '
    nsam generate runs/hope_bytes-1 --prompt 'The ' --tokens 1000 --temperature 0.6 --top-k 40
    nsam generate runs/diary-1 --prompt 'Today ' --state diary.safetensors[/]
    """
    if not prompt:
        raise typer.BadParameter("give at least one character", param_hint="--prompt")
    from nsam.api import new_sequence, save_state
    from nsam.training.restore import starting_state, trained_model
    from nsam.training.sampling import as_text, generate_bytes, harmless

    module, last = trained_model(run, device)
    memories = starting_state(module, last, state, stream, fresh)
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    sys.stdout.write(prompt)
    sys.stdout.flush()
    given = prompt.encode(errors="surrogateescape")

    def read() -> Iterator[int]:
        nonlocal memories
        memories = yield from generate_bytes(module, given, tokens, temperature, top_k, seed, memories)

    for text in as_text(read()):
        sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if state is not None:
        save_state(new_sequence(memories), state)
