"""`nsam generate`: text from a run, as it is made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


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
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same text.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, …")] = "cpu",
) -> None:
    """Continue a text with a trained model, streaming, with the state of its memories carried along.

    The run folder holds all that is needed. The text goes to stdout, the prompt included.

    [dim]nsam generate runs/hope_bytes-1 --prompt 'The list '
    nsam generate runs/hope_bytes-1 --prompt 'The ' --tokens 1000 --temperature 0.6 --top-k 40[/]
    """
    if not prompt:
        raise typer.BadParameter("give at least one character", param_hint="--prompt")
    from nsam.training.restore import trained_model
    from nsam.training.sampling import as_text, generate_bytes, harmless

    module = trained_model(run, device)
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    sys.stdout.write(prompt)
    sys.stdout.flush()
    given = prompt.encode(errors="surrogateescape")
    for text in as_text(generate_bytes(module, given, tokens, temperature, top_k, seed)):
        sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
    sys.stdout.write("\n")
