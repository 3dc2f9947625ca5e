"""Every system of the examples against the reference: values and gradients, at lengths that no period divides."""

from __future__ import annotations

from typing import Any

import pytest

SMALL: dict[str, Any] = {"dim": 4}
TOKENS: dict[str, Any] = {"vocab": 11, "dim": 4, "heads": 2, "layers": 2}

SYSTEMS: list[tuple[str, str, dict[str, Any], int]] = [
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
    ("meta", "maml", SMALL, 10),
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
