"""A pretrained model's weights under the names of the stacked program's memories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nsam.stacking.program import Clock, Levels, groups
from nsam.stacking.shape import Shape

_LLAMA = {
    "n1.weight": "input_layernorm.weight",
    "n2.weight": "post_attention_layernorm.weight",
    **{f"{name}.{part}": f"self_attn.{name}_proj.{part}" for name in "qkvo" for part in ("weight", "bias")},
}
_LLAMA_MLP = {"w1": "mlp.up_proj.weight", "g1": "mlp.gate_proj.weight", "w2": "mlp.down_proj.weight"}


def stacked_weights(
    model: nn.Module, shape: Shape, periods: Sequence[int], clock: Clock, levels: Levels
) -> dict[str, Tensor]:
    """Return copies of the model's weights by the paths of the program's memories; new memories start from zeros."""
    source = {name: value.detach() for name, value in model.state_dict().items()}
    found = _outside(source, shape)
    for number, group in enumerate(groups(shape, periods, levels), 1):
        repeat = "repeat" if number == 1 else f"repeat_{number}"
        for i in range(group.count):
            part, mlp = _layer(source, shape, group.first + i)
            names = ["level"] if levels == "by_depth" else [f"level.{j}" for j in range(len(periods))]
            names = ["pretrained"] if clock == "tokens" else names
            part |= {f"{name}.{tensor}": value for name in names for tensor, value in mlp.items()}
            like = mlp["w1"]
            if clock == "tokens":
                part["correction.weight"] = like.new_zeros(shape.dim, shape.dim)
            if levels == "in_layer":
                part["share.weight"] = like.new_zeros(len(periods))
            found |= {f"{repeat}.{i}.block.{name}": value for name, value in part.items()}
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in found.items()}


def _outside(source: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """What is not in a layer."""
    if shape.family == "llama":
        found = {"embed.weight": source["model.embed_tokens.weight"], "nf.weight": source["model.norm.weight"]}
    else:
        found = {
            "embed.weight": source["transformer.wte.weight"],
            "places.weight": source["transformer.wpe.weight"],
            "nf.weight": source["transformer.ln_f.weight"],
            "nf.bias": source["transformer.ln_f.bias"],
        }
    return found if shape.tied else {**found, "logits.weight": source["lm_head.weight"]}


def _layer(source: Mapping[str, Tensor], shape: Shape, layer: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One layer's weights: all but its MLP, and its MLP."""
    if shape.family == "llama":
        prefix = f"model.layers.{layer}."
        part = {here: source[prefix + there] for here, there in _LLAMA.items() if prefix + there in source}
        return part, {here: source[prefix + there] for here, there in _LLAMA_MLP.items()}
    prefix = f"transformer.h.{layer}."
    part = {f"n{i}.{name}": source[f"{prefix}ln_{i}.{name}"] for i in (1, 2) for name in ("weight", "bias")}
    # GPT-2 keeps its matrices as [in, out], and those of queries, keys and values side by side.
    weights = source[f"{prefix}attn.c_attn.weight"].T.chunk(3)
    biases = source[f"{prefix}attn.c_attn.bias"].chunk(3)
    for name, weight, bias in zip("qkv", weights, biases, strict=True):
        part |= {f"{name}.weight": weight, f"{name}.bias": bias}
    part |= {"o.weight": source[f"{prefix}attn.c_proj.weight"].T, "o.bias": source[f"{prefix}attn.c_proj.bias"]}
    mlp = {
        "w1": source[f"{prefix}mlp.c_fc.weight"].T,
        "b1": source[f"{prefix}mlp.c_fc.bias"],
        "w2": source[f"{prefix}mlp.c_proj.weight"].T,
        "b2": source[f"{prefix}mlp.c_proj.bias"],
    }
    return part, mlp
