"""What a pretrained Transformer is made of, by its configuration; refused where the language has no such part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nsam.dsl.diagnostics import fail

_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid",
}  # fmt: skip
"""Names of activations there, and here."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder: sizes, and which of the variants of its parts it has.

    `positions`: how many learnt positions there are, None with rotary ones, which turn by `base`. `bias`: of the
    projections of attention. `tied`: whether the output reads the table of embeddings.
    """

    family: str
    vocab: int
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    norm: str
    eps: float
    act: str
    gated: bool
    mlp_bias: bool
    bias: bool
    positions: int | None
    base: int
    tied: bool


def shape_of(model: Any) -> Shape:
    """Return the shape of a causal language model of Hugging Face's `transformers`; N0518 when it cannot be stacked."""
    config = getattr(model, "config", None)
    family = getattr(config, "model_type", None)
    readers = {"llama": _llama, "gpt2": _gpt2}
    if family not in readers or not hasattr(model, "get_output_embeddings"):
        raise _refuse(
            f"a {type(model).__name__} is not one of them: {', '.join(readers)}, with a language model's head"
        )
    return readers[family](config)


def _llama(config: Any) -> Shape:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", "default")
    base = float(rope.get("rope_theta", getattr(config, "rope_theta", 10000.0)))
    _need(kind == "default", f"rotary positions of type `{kind}`")
    _need(base.is_integer() and base >= 1, f"rotary positions with base {base:g}")
    _need(not config.mlp_bias, "gates with a bias")
    heads = config.num_attention_heads
    return Shape(
        family="llama", vocab=config.vocab_size, dim=config.hidden_size, hidden=config.intermediate_size,
        layers=config.num_hidden_layers, heads=heads, kv_heads=config.num_key_value_heads or heads,
        head=getattr(config, "head_dim", None) or config.hidden_size // heads, norm="rmsnorm", eps=config.rms_norm_eps,
        act=_activation(config.hidden_act), gated=True, mlp_bias=False, bias=bool(config.attention_bias),
        positions=None, base=int(base), tied=bool(config.tie_word_embeddings),
    )  # fmt: skip


def _gpt2(config: Any) -> Shape:
    _need(config.scale_attn_weights, "attention without a scale")
    _need(not config.scale_attn_by_inverse_layer_idx, "attention scaled by the layer's number")
    _need(not config.add_cross_attention, "cross-attention")
    heads, dim = config.n_head, config.n_embd
    return Shape(
        family="gpt2", vocab=config.vocab_size, dim=dim, hidden=config.n_inner or 4 * dim, layers=config.n_layer,
        heads=heads, kv_heads=heads, head=dim // heads, norm="layernorm", eps=config.layer_norm_epsilon,
        act=_activation(config.activation_function), gated=False, mlp_bias=True, bias=True,
        positions=config.n_positions, base=10_000, tied=bool(config.tie_word_embeddings),
    )  # fmt: skip


def _activation(name: str) -> str:
    _need(name in _ACTIVATIONS, f"the activation `{name}`")
    return _ACTIVATIONS[name]


def _need(fine: object, what: str) -> None:
    if not fine:
        raise _refuse(f"the model has {what}, which the language cannot say")


def _refuse(why: str) -> Exception:
    return fail("N0518", f"this model cannot be stacked: {why}", help="LlamaForCausalLM and GPT2LMHeadModel can")
