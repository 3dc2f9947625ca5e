"""What rules of the step clock need of a layer's inputs: the mean of their outer products over the tokens of a step.

A function that reads a weight W at inputs x [.., in] adds Σ x xᵀ to a tensor of the state, one for each place that
reads (`inputs_seen`). At the end of a call the sums, over the number of tokens, are handed over to a leaf of autograd's
graph that stands beside the weight: `HandOver` lets the gradients of all that leaves the call pass and gives the leaf
E[x xᵀ] as its gradient. So they come with the backward pass and add up as gradients do, over the reads of a weight and
over backward passes, in CUDA graphs and where activations are computed again. The model's gradients are untouched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nsam.backends.torch.runtime.blocks import At
from nsam.backends.torch.runtime.triangular import full_precision

Tensors = Mapping[str, Tensor]


def sums(reads: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Each weight with the state tensors of its reads: `k.weight`, `k.weight.seen0`."""
    for path, count in reads.items():
        for number in range(count):
            yield path, f"{path}.seen{number}"


def nothing_seen(w: Tensors, reads: Mapping[str, int]) -> dict[str, Tensor]:
    """Sums before the first token; none where no backward pass will ask for them."""
    return {name: square(w[path]) for path, name in sums(reads)} if torch.is_grad_enabled() else {}


def square(weight: Tensor) -> Tensor:
    """Zeros [.., in, in] for a weight [.., out, in], in float32 or wider."""
    width = weight.shape[-1]
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.zeros(*weight.shape[:-2], width, width, dtype=wide, device=weight.device)


def inputs_seen(s: Tensors, x: Tensor, at: At, *names: str) -> dict[str, Tensor]:
    """Add what reads have as input in a block to their sums: x [B, T, in], or [B, H, T, in] for sums [H, in, in].

    A row that is the same for several tokens, or for all of a sequence, counts for each of them.
    """
    if names[0] not in s:
        return {}
    like = s[names[0]]
    with full_precision(x):
        wide = x.detach().to(like.dtype)
        rows = wide.transpose(0, 1).flatten(1, 2) if like.dim() == 3 else wide.reshape(-1, x.shape[-1])
        outer, tokens = rows.mT @ rows, at.batch * at.length
        outer = outer if rows.shape[-2] == tokens else outer * (tokens / rows.shape[-2])
        return {name: s[name] + outer for name in names}


class HandOver(torch.autograd.Function):
    """Lets tensors pass, and gives each leaf its mean as gradient: `(count, *leaves, *means, *tensors)`."""

    @staticmethod
    def forward(ctx: Any, count: int, *given: Tensor) -> tuple[Tensor, ...]:
        """The tensors as they are."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*given[count : 2 * count])
        return tuple(x.detach() for x in given[2 * count :])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        """The means for the leaves, and the tensors' own gradients."""
        means = ctx.saved_tensors
        return (None, *means, *(None for _ in means), *gradients)


def hand_over(leaves: Mapping[str, Tensor], reads: Mapping[str, int], s: Tensors, at: At, result: Any) -> Any:
    """`result` of a call, its backward pass giving `leaves` the means of what was seen in the call."""
    means: dict[str, Tensor] = {}
    for path, name in sums(reads):
        if path in leaves and name in s:
            mean = s[name] / (at.batch * at.length)
            means[path] = means[path] + mean if path in means else mean
    flat, form = pytree.tree_flatten(result)
    places = [i for i, x in enumerate(flat) if isinstance(x, Tensor) and x.requires_grad]
    if means and places:
        passed: Sequence[Tensor] = HandOver.apply(  # type: ignore[no-untyped-call]
            len(means), *(leaves[path] for path in means), *means.values(), *(flat[i] for i in places)
        )
        for i, x in zip(places, passed, strict=True):
            flat[i] = x
    return pytree.tree_unflatten(flat, form)
