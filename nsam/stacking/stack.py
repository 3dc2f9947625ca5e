"""From a pretrained Transformer to a program and its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor, nn

from nsam import api
from nsam.compiler.step_keys import Keys
from nsam.dsl.diagnostics import fail
from nsam.dsl.program import Program
from nsam.stacking.program import Clock, Levels, program_text
from nsam.stacking.shape import shape_of
from nsam.stacking.weights import stacked_weights

SYSTEM = "stacked"


@dataclass(frozen=True, slots=True)
class Stacked:
    """A pretrained model as a program: `text` declares the system `stacked`, `weights` is its `state_dict`.

    Vocabulary and sizes are parameters of the system, with the model's own as defaults; so is the inner `rate`, where
    the levels move within the sequence.
    """

    text: str
    weights: Mapping[str, Tensor]

    def program(self) -> Program:
        """The checked program."""
        return api.loads(self.text, f"{SYSTEM}.nsam")

    def compile(
        self,
        *,
        backend: api.Backend = "torch",
        compiled: bool = True,
        cpp_wrapper: bool = False,
        truncated: bool = False,
        without: str | Iterable[str] = (),
        memory: str | int | None = None,
        keys: Keys = False,
        **parameters: object,
    ) -> nn.Module:
        """The compiled system with the weights in it: `logits, state = module(tokens, state=None)`, tokens
        [batch, time] to logits [batch, time, vocab], in the precision and on the device of the pretrained model.

        `rate=0` gives back the pretrained model. `cpp_wrapper`, `truncated`, `without`, `memory` and `keys` as in
        `nsam.compile`.
        """
        module = api.compile(
            self.program(),
            SYSTEM,
            backend=backend,
            compiled=compiled,
            cpp_wrapper=cpp_wrapper,
            truncated=truncated,
            without=without,
            memory=memory,
            keys=keys,
            **parameters,
        )
        like = self.weights["embed.weight"]
        module.to(like.device, like.dtype)
        module.load_state_dict(dict(self.weights))
        return module


def stack(
    model: Any,
    periods: Sequence[int] = (16, 64, 256),
    *,
    clock: Clock = "tokens",
    levels: Levels = "by_depth",
    rate: float = 0.1,
) -> Stacked:
    """Turn the MLPs of a pretrained Transformer into levels of a continuum memory (section 7.3).

    `model` is a causal language model of Hugging Face's `transformers` of the shape of Llama or GPT-2. The levels'
    periods are counted in tokens (each level then learns within the sequence, from the state that training gave it) or
    in training steps. With `levels="by_depth"` the layers are shared out over the periods, the earliest the fastest;
    with `"in_layer"` every layer has a level of each period, all starting from the layer's MLP, and learns their shares
    (eq. 74). `rate` is the inner learning rate's default.

    The stacked model starts as the pretrained one. Raises `ProgramError` N0518 when the model has parts that the
    language cannot say, or the periods or the rate do not fit.
    """
    shape = shape_of(model)
    if clock not in ("tokens", "steps") or levels not in ("by_depth", "in_layer"):
        raise fail(
            "N0518",
            f"levels are arranged `by_depth` or `in_layer` and count tokens or steps; found `{levels}` and `{clock}`",
        )
    if not _are_periods(periods):
        raise fail(
            "N0518", f"periods are a list of whole numbers from 1 on, found {periods!r}", help="periods=[16, 64]"
        )
    if not isinstance(rate, Real) or isinstance(rate, bool) or not math.isfinite(rate):
        raise fail("N0518", f"the inner learning rate is a finite number, found {rate!r}", help="rate=0.1")
    if levels == "by_depth" and len(periods) > shape.layers:
        raise fail(
            "N0518",
            f"{len(periods)} periods for {shape.layers} layers leave some without a layer",
            help='give fewer, or levels="in_layer"',
        )
    text = program_text(shape, periods, clock, levels, float(rate))
    return Stacked(text, stacked_weights(model, shape, periods, clock, levels))


def _are_periods(given: object) -> bool:
    """Whether `given` is a list or tuple of whole numbers from 1 on, at least one."""
    if not isinstance(given, Sequence) or not given:
        return False
    return all(isinstance(p, int) and not isinstance(p, bool) and p >= 1 for p in given)
