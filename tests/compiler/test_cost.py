"""The predicted cost against what runs: operations, parameters, bytes of state and of activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nsam.backends.torch.build import build
from nsam.backends.torch.runtime.saved import Meter
from nsam.compiler.cost import cost, inverse_flops
from nsam.compiler.explain_cost import cost_text
from nsam.dsl.program import Program

EXAMPLES = Path(__file__).parents[2] / "examples"
TOKENS = 128
CASES = [
    ("hope", "titans", {"dim": 32}),
    ("hope", "hope", {"dim": 32, "vocab": 64}),
    ("hope", "titans", {"dim": 32, "chunk": 128, "slow": 128}),
    ("linear_memories", "delta_momentum_inside", {"dim": 16, "chunk": 128}),
    ("hope", "cms", {"dim": 16}),
    ("zoo", "linear_attention", {"dim": 16}),
    ("zoo", "gated_deltanet", {"dim": 16}),
    ("zoo", "miras_lp", {"dim": 16}),
    ("zoo", "titans_memory", {"dim": 16}),
    ("zoo", "transformer_block", {"dim": 16}),
    ("zoo", "detached", {"dim": 16}),
    ("meta", "maml_first_order", {"dim": 16}),
    ("deep_memories", "self_modifying_momentum", {"dim": 16}),
]


def state_bytes(state: Any) -> int:
    if isinstance(state, list):
        return sum(map(state_bytes, state))
    own = sum(4 * tensor.numel() for part in ("sequence", "kept") for tensor in state[part].values())
    return own + sum(map(state_bytes, state["children"].values()))


@pytest.mark.parametrize(
    ("program", "system", "parameters"), CASES, ids=[f"{p}-{s}-{i}" for i, (p, s, _) in enumerate(CASES)]
)
def test_prediction_equals_what_runs(program: str, system: str, parameters: dict[str, int]) -> None:
    unit = Program.load(EXAMPLES / program / f"{program}.nsam").instantiate(system, parameters)
    predicted = cost(unit, TOKENS)
    module = build(unit, compiled=False)
    x = torch.zeros(1, TOKENS, dtype=torch.int64) if unit.inputs[0].type.vocab else torch.randn(1, TOKENS, 16)
    if system == "titans":
        x = torch.randn(1, TOKENS, 32)
    given = (x,) * len(unit.inputs)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        _, state = module(*given)
    assert predicted.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert predicted.parameters == sum(p.numel() for p in module.parameters())
    assert predicted.state_bytes == state_bytes(state)
    assert not predicted.uncounted
    assert "None" not in {memory.path for memory in predicted.memories}


KEPT = [
    ("hope", "cms", {"dim": 72}, 64),
    ("zoo", "linear_attention", {"dim": 72}, 128),
    ("zoo", "transformer_block", {"dim": 72}, 128),
    ("zoo", "gated_deltanet", {"dim": 72}, 128),
]


@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
@pytest.mark.parametrize(("program", "system", "parameters", "tokens"), KEPT, ids=[s for _, s, _, _ in KEPT])
def test_activations_are_those_that_compiled_training_keeps(
    program: str, system: str, parameters: dict[str, int], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are cut as for compiled code, then run as they are."""
    compile_ = torch.compile

    def partitioned(function: Any, **options: Any) -> Any:
        return compile_(function, backend="aot_eager_decomp_partition", **options)

    monkeypatch.setattr(torch, "compile", partitioned)
    unit = Program.load(EXAMPLES / program / f"{program}.nsam").instantiate(system, parameters)
    module = build(unit)
    meter = Meter(module.parameters())
    with meter.counting():
        module(torch.randn(2, tokens, parameters["dim"]))
    assert 2 * cost(unit, tokens).activation_bytes == pytest.approx(meter.root.own, rel=0.3)


def test_activations_grow_with_the_length_alone() -> None:
    unit = Program.load(EXAMPLES / "hope" / "hope.nsam").instantiate("hope", {"dim": 32})
    short, long = cost(unit, 512), cost(unit, 4096)
    assert long.activation_bytes == pytest.approx(8 * short.activation_bytes, rel=0.01)
    assert "a token" in cost_text(short)


def test_long_paths_are_cut_in_the_middle() -> None:
    name = "a_name_that_is_much_too_long_" * 3
    program = Program.loads(
        f"nsam 1\nsystem {name}(dim: int) {{\n  input x: [dim]\n  memory one, two : linear(dim -> dim)\n"
        f"  output one(two(x))\n}}\nsystem s(dim: int) {{\n  input x: [dim]\n  output {name}(x, dim)\n}}\n"
    )
    table = cost_text(cost(program.instantiate("s", {"dim": 4}), 16)).splitlines()
    assert max(map(len, table)) <= 120
    assert table[1].startswith("a_name_that_is_mu…")
    assert table[1].split()[0] != table[2].split()[0]


def test_rules_applied_as_they_stand_are_named() -> None:
    unit = Program.load(EXAMPLES / "zoo" / "zoo.nsam").instantiate("atlas", {"dim": 16})
    found = cost(unit, TOKENS)
    assert found.uncounted == ("m: its rule as it stands",)
    assert "not counted: m" in cost_text(found)


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 64, 100])
def test_the_inverse_is_counted_as_it_runs(rows: int) -> None:
    from nsam.backends.torch.runtime.triangular import unit_lower_inverse

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        unit_lower_inverse(torch.zeros(rows, rows))
    assert inverse_flops(rows) == counter.get_total_flops()
