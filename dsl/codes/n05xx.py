"""N05xx: data, training, checkpoints and runs."""

from __future__ import annotations

from nsam.dsl.codes.entry import Code

TABLE: tuple[Code, ...] = (
    Code("N0501", "data-not-found", "error", "Every path given as training data exists and can be read."),
    Code("N0502", "data-empty", "error", "Training data holds at least one byte of text."),
    Code(
        "N0503",
        "data-too-short",
        "error",
        "The training text and the held-out text each hold at least one row: context + 1 bytes.",
    ),
    Code(
        "N0504",
        "data-not-text",
        "error",
        "A file given as training text is UTF-8. (In a folder, files that are not UTF-8 are left out, and counted.)",
    ),
    Code(
        "N0505",
        "vocabulary-too-small",
        "error",
        "A model of text reads bytes, so its input is `token(vocab)` with a vocabulary of at least 256, and its output "
        "has one score for each of them.",
    ),
    Code(
        "N0506",
        "loss-not-finite",
        "error",
        "Training stops at the first loss or weight that is not a finite number; the last good checkpoint stays.",
    ),
    Code(
        "N0507",
        "checkpoint-mismatch",
        "error",
        "A checkpoint holds exactly the tensors of the program's model, each with its shape.",
    ),
    Code("N0508", "run-exists", "error", "A new run never overwrites an earlier one."),
    Code(
        "N0509",
        "not-a-run",
        "error",
        "A run folder holds `run.json` and the program; text is generated from a whole checkpoint.",
    ),
    Code(
        "N0510",
        "run-changed",
        "error",
        "A resumed run has the data, row size, seed and precision that it began with, so that its curve is the same as "
        "that of a run that was never interrupted. Steps (to no fewer than were taken), arguments of rules and "
        "whatever else of the program leaves its parameters as they are may change, which the run says; the batch too, "
        "unless a memory is never reset.",
    ),
    Code(
        "N0511",
        "untrainable-objective",
        "error",
        "The training loop knows `cross_entropy(model(tokens), next(tokens))` for a model with one token input.",
    ),
    Code("N0512", "device-unavailable", "error", "The device asked for exists on this machine."),
    Code("N0513", "unknown-data", "error", "The training loop knows one kind of data: `text(context, batch)`."),
    Code("N0514", "cannot-write", "error", "The folder for the output exists or can be made, and has room."),
    Code(
        "N0516",
        "no-cxx-compiler",
        "error",
        "On the CPU torch.compile needs a C++ compiler; without one a model runs uncompiled, several times slower.",
    ),
    Code("N0517", "out-of-memory", "error", "One step of training fits into the memory of the machine."),
    Code(
        "N0518",
        "cannot-stack",
        "error",
        "Level stacking takes a causal language model of the shape of Llama or GPT-2, all of whose parts the language "
        "has, and one period or more, each for at least one layer.",
    ),
    Code(
        "N0519",
        "not-a-state",
        "error",
        "A saved state is a file that `nsam.save_state` wrote, whole, and belongs to the system that it is given to.",
    ),
    Code(
        "N0520",
        "budget-too-small",
        "error",
        "A budget of memory is at least what a step of training needs when as much as possible is computed again in "
        "the backward pass; models whose memories move by their own loss have none.",
    ),
    Code("N0521", "not-a-size", "error", "An amount of memory is a number above 0 and a unit: `8GB`, `500MB`, `2GiB`."),
    Code(
        "N0522",
        "no-cuda-graph",
        "error",
        "A step of training is one CUDA graph on a CUDA device, in a program where every step starts like the one "
        "before it: no memory goes on from step to step.",
    ),
    Code("N0523", "run-in-use", "error", "One process at a time trains a run."),
    Code("N0515", "wrong-request", "error", "What a command is asked for is something that the program declares."),
)
