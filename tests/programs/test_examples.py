"""Every system of the examples against the reference: values and gradients, at lengths that no period divides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nsam
from nsam.dsl.checked import Call

SMALL: dict[str, Any] = {"dim": 4}
TOKENS: dict[str, Any] = {"vocab": 11, "dim": 4, "heads": 2, "layers": 2}

SHARED = {"cms"}
"""Parts of other systems."""

SYSTEMS: list[tuple[str, str, dict[str, Any], int]] = [
    ("adaptive", "attentive", {"dim": 4, "fastest": 2, "slowest": 8}, 13),
    ("adaptive", "surprised_titans", {"dim": 4, "fastest": 2, "slowest": 8}, 13),
    ("adaptive", "patient", {"dim": 4, "fast": 1, "slowest": 8, "threshold": 0.2}, 13),
    ("linear_memories", "deltanet", SMALL, 9),
    ("linear_memories", "deltanet_by_rule", SMALL, 9),
    ("linear_memories", "longhorn", SMALL, 9),
    ("linear_memories", "mamba2", SMALL, 9),
    ("linear_memories", "ttt_linear", SMALL, 10),
    ("linear_memories", "ttt_linear_norm", SMALL, 10),
    ("linear_memories", "proximal", SMALL, 9),
    ("linear_memories", "robust_surprise", SMALL, 9),
    ("linear_memories", "feature_mapped", SMALL, 9),
    ("linear_memories", "delta_momentum_outside", SMALL, 10),
    ("linear_memories", "delta_momentum_inside", SMALL, 10),
    ("deep_memories", "ttt_mlp", SMALL, 10),
    ("deep_memories", "titans_deep", SMALL, 10),
    ("deep_memories", "titans_erase_outside", SMALL, 10),
    ("deep_memories", "titans_erase_inside", SMALL, 10),
    ("deep_memories", "miras_huber", SMALL, 10),
    ("deep_memories", "miras_cauchy", SMALL, 10),
    ("deep_memories", "omega_net", SMALL, 9),
    ("deep_memories", "atlas_online", SMALL, 9),
    ("deep_memories", "adaptive_rates", SMALL, 10),
    ("deep_memories", "self_modifying_q", SMALL, 9),
    ("deep_memories", "self_modifying_online", SMALL, 5),
    ("deep_memories", "self_modifying_momentum", SMALL, 9),
    ("deep_memories", "self_modifying_momentum_inside", SMALL, 9),
    ("attention", "grouped_window", {"dim": 8}, 9),
    ("attention", "transformer", TOKENS, 7),
    ("attention", "ada_transformer", TOKENS, 7),
    ("attention", "hope_attention", TOKENS, 7),
    ("attention", "hybrid", SMALL, 9),
    ("attention", "gated_memory", SMALL, 10),
    ("continuum", "sequential", SMALL, 5),
    ("continuum", "sequential_tokens", SMALL, 11),
    ("continuum", "independent_tokens", SMALL, 11),
    ("continuum", "nested", SMALL, 19),
    ("continuum", "lifelong", SMALL, 10),
    ("end_to_end", "reader", {"vocab": 11, "dim": 8, "window": 3, "chunk": 4}, 10),
    ("end_to_end", "continuum", {"vocab": 11, "dim": 8}, 19),
    ("end_to_end", "nested", {"vocab": 11, "dim": 4}, 14),
    ("meta", "maml", SMALL, 10),
    ("meta", "maml_first_order", SMALL, 10),
    ("meta", "maml_support", SMALL, 19),
    ("meta", "chain_of_starts", SMALL, 18),
    ("meta", "hypernetwork", SMALL, 9),
    ("meta", "teacher", SMALL, 10),
    ("meta", "detached_teacher", SMALL, 10),
]


@pytest.mark.parametrize(
    ("folder", "system", "parameters", "time"), SYSTEMS, ids=[f"{f}-{s}" for f, s, _, _ in SYSTEMS]
)
def test_compiled_is_the_reference(
    folder: str, system: str, parameters: dict[str, Any], time: int, example: Any, pair: Any
) -> None:
    assert pair(example(folder), system, **parameters).apart(time) < 1e-9


USER = """nsam 1
use std.memories (delta_memory, deep_memory, causal_attention, window_attention, continuum, token_continuum)
system lm(vocab: int, dim: int) {
  input tokens: token(vocab)
  memory embed : table(vocab, dim)
  let h = embed(tokens)
  repeat 2 {
    memory n1, n2, n3 : rmsnorm(dim)
    h = h + causal_attention(n1(h), dim, heads = 2, kv_heads = 1)
    h = h + window_attention(n1(h), dim, 3, heads = 2, kv_heads = 2)
    h = h + delta_memory(n2(h), dim, heads = 2)
    h = h + deep_memory(n2(h), dim, heads = 2, chunk = 4)
    h = h + continuum(n3(h), dim) + token_continuum(n3(h), dim, periods = [2, 4])
  }
  output embed.T(h)
}
"""


def test_systems_of_the_standard_library_in_a_system_of_ones_own(pair: Any) -> None:
    both = pair(nsam.loads(USER), "lm", vocab=9, dim=4)
    assert both.apart(7) < 1e-9
    assert both.dead(7) == []


@pytest.mark.parametrize("folder", sorted({folder for folder, *_ in SYSTEMS}))
def test_every_system_of_an_example_is_here(folder: str, example: Any) -> None:
    assert {system for f, system, *_ in SYSTEMS if f == folder} == set(example(folder).systems) - SHARED


@pytest.mark.parametrize(
    ("folder", "system", "parameters", "time"),
    [one for one in SYSTEMS if one[1] != "detached_teacher"],
    ids=[f"{folder}-{system}" for folder, system, *_ in SYSTEMS if system != "detached_teacher"],
)
def test_every_parameter_learns(
    folder: str, system: str, parameters: dict[str, Any], time: int, example: Any, pair: Any
) -> None:
    assert pair(example(folder), system, **parameters).dead(time) == []


def test_a_direct_transfer_stops_the_gradient_and_nothing_else(example: Any, pair: Any, gradients: Any) -> None:
    """The student's errors reach its teacher's values but not its keys; the forward pass is the same."""
    through, cut = (pair(example("meta"), name, dim=4) for name in ("teacher", "detached_teacher"))
    assert through.unit.transfers == ()
    cut.compiled.load_state_dict(through.compiled.state_dict())
    (x,) = cut.inputs(2, 10)
    with torch.no_grad():
        student = through.compiled(x)[0]
        both = cut.compiled(x)[0]
    assert float((both - student).abs().max()) > 0
    found = gradients(cut.compiled, [x])
    assert float(found["key_of.w1"].abs().max()) > 0  # by its own place in the output


def test_a_memory_that_is_never_reset_goes_on(example: Any, pair: Any) -> None:
    """One stream of 12 tokens is two sequences of 6 for `habit`, but not for `today`."""
    both = pair(example("continuum"), "lifelong", dim=4)
    (x,) = both.inputs(1, 12)
    with torch.no_grad():
        whole, _ = both.compiled(x)
        _, state = both.compiled(x[:, :6])
        stream, _ = both.compiled(x[:, 6:], state=state)
        second, _ = both.compiled(x[:, 6:], state=nsam.new_sequence(state))
        fresh, _ = both.compiled(x[:, 6:])
    assert torch.allclose(stream, whole[:, 6:], atol=1e-12)
    assert not torch.allclose(second, stream, atol=1e-6)
    assert not torch.allclose(second, fresh, atol=1e-6)


@pytest.mark.parametrize("heads", [2, 8])
@pytest.mark.parametrize("call", ["causal_attention(x, dim", "window_attention(x, dim, 3"])
def test_attention_of_the_standard_library_has_a_key_head_for_each_head(call: str, heads: int) -> None:
    use = "use std.memories (causal_attention, window_attention)"
    text = f"nsam 1\n{use}\nsystem s(dim: int) {{ input x: [dim]; output {call}, heads = {heads}) }}\n"
    (child,) = nsam.loads(text).instantiate("s", {"dim": 16}).children
    assert isinstance(child, Call)
    kept = next(memory for memory in child.unit.memories if memory.name == "kept")
    assert kept.structure.kv_heads == heads
