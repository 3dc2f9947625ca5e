"""`nsam generate`: text from a run, as it is made."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import rich_click as click

from nsam.cli.command import command
from nsam.cli.options import MAX_SEED, PATH, NumberRange, with_device


@command("generate")
@click.argument("run", metavar="RUN_DIR", type=PATH, help="What `nsam train` made.")
@click.option("--prompt", metavar="TEXT", required=True, help="The text to continue.")
@click.option(
    "--tokens", type=click.IntRange(1), metavar="COUNT", default=400, show_default=True, help="How many bytes to add."
)
@click.option(
    "--temperature",
    type=NumberRange(0, 100),
    metavar="NUMBER",
    default=0.8,
    show_default=True,
    help="0 takes the likeliest byte.",
)
@click.option("--top-k", type=click.IntRange(1), metavar="COUNT", help="Draw among the k likeliest bytes.")
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    metavar="NUMBER",
    default=0,
    show_default=True,
    help="The same seed gives the same text.",
)
@with_device
@click.option("--state", type=PATH, metavar="PATH", help="Go on from the memories in this file, and write them back.")
@click.option(
    "--stream",
    type=click.IntRange(0),
    metavar="NUMBER",
    default=0,
    show_default=True,
    help="Whose memories: a sequence of the run's batch.",
)
@click.option("--fresh", is_flag=True, help="Start from memories as training learnt to start them.")
def main(
    run: Path,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    device: str,
    state: Path | None,
    stream: int,
    fresh: bool,
) -> None:
    """Continue a text with a trained model, streaming, with the state of its memories carried along.

    The run folder holds all that is needed. The text goes to stdout, the prompt included. Memories with `reset never`
    start from what they had learnt when the run ended, or with --state when the last text ended.

    \b
    [dim]nsam generate runs/hope_bytes-1 --prompt 'The list '
    nsam generate runs/hope_bytes-1 --prompt 'The ' --tokens 1000 --temperature 0.6 --top-k 40
    nsam generate runs/diary-1 --prompt 'Today ' --state diary.safetensors[/]
    """
    if not prompt:
        raise click.BadParameter("give at least one character", param_hint="--prompt")
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
