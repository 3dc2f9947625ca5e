"""The objective of a `train` declaration, evaluated on rows of bytes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from nsam.dsl.checked import Apply, Expr, Output, Ref, Train, ValueType
from nsam.dsl.diagnostics import fail

BYTES = 256

NATS_PER_BIT = math.log(2)


def require_byte_model(train: Train) -> None:
    """Check that `train` is what the loop can run: text data, one token input, next-byte cross-entropy.

    Raises `ProgramError` N0505, N0511 or N0513 otherwise.
    """
    kind, _ = train.data
    if kind != "text":
        raise fail("N0513", f"`{kind}` is not a kind of data that the training loop knows", train.span, help="text(…)")
    inputs = train.model.inputs
    if len(inputs) != 1 or inputs[0].type.vocab is None:
        raise fail(
            "N0511",
            f"`{train.model.name}` cannot train on text: it needs exactly one input, of type token(vocab)",
            train.model.span,
            f"has {', '.join(i.name for i in inputs) or 'no input'}",
        )
    _require_bytes(train, inputs[0].type)
    if not _is_next_byte_cross_entropy(train.objective, inputs[0].name):
        raise fail(
            "N0511",
            "the training loop cannot evaluate this objective",
            train.objective.span,
            "not cross_entropy(model(…), next(…))",
            help=f"minimize cross_entropy(model({inputs[0].name}), next({inputs[0].name}))",
        )


def _require_bytes(train: Train, given: ValueType) -> None:
    vocab = given.vocab
    assert isinstance(vocab, int)
    if vocab < BYTES:
        raise fail(
            "N0505",
            f"text is bytes, numbers up to 255, and `{train.model.name}` reads token({vocab})",
            train.model.inputs[0].span,
            f"vocabulary of {vocab}",
            help="give the model a vocabulary of 256",
        )
    shape = train.model.outputs[0][1].type.shape
    if shape != (vocab,):
        raise fail(
            "N0505",
            f"`{train.model.name}` gives [{', '.join(map(str, shape))}] a token; cross-entropy needs [{vocab}]",
            train.model.span,
        )


def _is_next_byte_cross_entropy(objective: Expr, name: str) -> bool:
    if not (isinstance(objective, Apply) and objective.function == "cross_entropy" and len(objective.arguments) == 2):
        return False
    scores, target = objective.arguments
    return (
        isinstance(scores, Output)
        and isinstance(target, Apply)
        and target.function == "next"
        and len(target.arguments) == 1
        and isinstance(target.arguments[0], Ref)
        and target.arguments[0].name == name
    )


def next_byte_loss(
    module: nn.Module, rows: torch.Tensor, state: Any, precision: torch.dtype
) -> tuple[torch.Tensor, Any]:
    """Return the mean cross-entropy in nats over all positions of `rows` `[batch, context + 1]`, and the state after.

    `precision` is that of autocast's matrix products; the loss itself is float32.
    """
    with torch.autocast(rows.device.type, dtype=torch.bfloat16, enabled=precision is torch.bfloat16):
        scores, state = module(rows[:, :-1], state)
    loss = nn.functional.cross_entropy(scores.float().flatten(0, 1), rows[:, 1:].flatten())
    return loss, state
