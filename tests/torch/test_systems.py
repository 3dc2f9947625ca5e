"""Compiled systems: names of parameters, clocks, resets, states, precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nsam.backends.reference.module import ReferenceModule
from nsam.backends.reference.run import new_sequence as new_sequence_reference
from nsam.backends.torch.build import build
from nsam.backends.torch.runtime import blocks
from nsam.backends.torch.runtime.system import System, new_sequence
from nsam.dsl.checked import Unit
from nsam.dsl.program import Program

Shipped = Callable[..., Unit]
UnitOf = Callable[[str], Unit]
Random = Callable[..., Tensor]
SYSTEMS = [
    ("hope", name, {}) for name in ("titans", "cms", "hope")
] + [
    ("zoo", name, {}) for name in (
        "linear_attention", "retnet", "gated_deltanet", "oja", "miras_lp", "atlas", "titans_memory",
        "transformer_block", "ada_transformer_block", "nested_cms", "independent_cms", "hyper", "detached",
    )
]  # fmt: skip
LEARN = "memory k, v : linear(4 -> 4)\nmemory m : linear(4 -> 4)"


def compiled(unit: Unit) -> System:
    torch.manual_seed(0)
    return build(unit, compiled=False).double()


def pair(unit: Unit) -> tuple[System, ReferenceModule]:
    module, reference = compiled(unit), ReferenceModule(unit)
    reference.load_state_dict(module.state_dict())
    return module, reference


@pytest.mark.parametrize(("name", "system", "parameters"), SYSTEMS)
def test_parameters_are_named_as_in_the_reference(
    shipped: Shipped, name: str, system: str, parameters: dict[str, Any]
) -> None:
    module, reference = pair(shipped(name, system, dim=8, **parameters))
    wanted = {key: tensor.shape for key, tensor in reference.state_dict().items()}
    assert {key: tensor.shape for key, tensor in module.state_dict().items()} == wanted
    assert list(module.state_dict()) == [name for name, _ in module.named_parameters()]


def test_published_names(shipped: Shipped) -> None:
    names = set(compiled(shipped("hope", "hope", dim=8)).state_dict())
    assert {"embed.weight", "repeat.0.titans.mem.w1", "repeat.1.cms.level.2.w2", "repeat.0.n1.weight"} <= names


CLOCKS = {
    "reset every": "every 3 tokens; reset every 6 tokens",
    "reset every, running": "every 3 tokens; reset every 6 tokens; reads running",
    "reset never": "every 3 tokens; reset never",
    "reset never, running": "every 2 tokens; reset never; reads running",
    "summed": "every 3 tokens summed; reset every 6 tokens; reads running",
    "one token": "every 1 token; reset every 5 tokens; reads running",
    "zeros": "every 3 tokens; init zeros",
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_clocks_across_calls_and_sequences(unit_of: UnitOf, random: Random, clock: str) -> None:
    """Two sequences of several calls each; what is reset, and when, as in the reference."""
    learn = "learn normalize(k(x)) -> v(x); minimize l2; by gd(lr = 0.2, retain = 0.9)"
    body = f"memory k, v : linear(4 -> 4)\nmemory m : linear(4 -> 4) {{ {learn}; {CLOCKS[clock]} }}\noutput m(x)"
    module, reference = pair(unit_of(body))
    state, before = None, None
    for size in (4, 1, 9, 0, 2, 7):
        if size == 0:
            state, before = new_sequence(state), new_sequence_reference(before)
            continue
        x = random(2, size, 4)
        y, state = module(x, state=state)
        wanted, before = reference(x, state=before)
        torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-10)


def test_a_fast_memory_starts_again_from_the_slow_one(unit_of: UnitOf, random: Random) -> None:
    learn = "learn normalize(k(x)) -> v(x); minimize l2; by gd(lr = 0.2)"
    module, reference = pair(
        unit_of(
            "memory k, v : linear(4 -> 4)\n"
            f"memory slow : linear(4 -> 4) {{ {learn}; every 6 tokens }}\n"
            f"memory fast : linear(4 -> 4) {{ {learn}; every 2 tokens; reset every 6 tokens; init slow }}\n"
            "output fast(x)"
        )
    )
    x = random(2, 13, 4)
    y, state = module(x[:, :12])
    wanted, _ = reference(x)
    torch.testing.assert_close(y, wanted[:, :12], rtol=1e-9, atol=1e-10)
    assert torch.equal(state["sequence"]["fast.weight"], state["sequence"]["slow.weight"])


def test_a_call_leaves_the_callers_state_alone(shipped: Shipped, random: Random) -> None:
    module, x = compiled(shipped("hope", "titans", dim=8, chunk=4, slow=8)), random(1, 11, 8)
    _, state = module(x)
    first, _ = module(x, state=state)
    again, _ = module(x, state=state)
    assert torch.equal(first, again)
    assert state["position"] == 11


def test_gradients_flow_through_a_carried_state(shipped: Shipped, random: Random) -> None:
    module, x = compiled(shipped("hope", "titans", dim=8, chunk=4, slow=8)), random(1, 20, 8)
    _, state = module(x[:, :16])
    y, _ = module(x[:, 16:], state=state)
    early = torch.autograd.grad(y.sum(), module.v.w1)[0]
    assert early.abs().max() > 0


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "system", "parameters"), SYSTEMS)
def test_bfloat16_is_near_float32(shipped: Shipped, name: str, system: str, parameters: dict[str, Any]) -> None:
    """The whole module in bfloat16: forward, backward, and master states that stay in float32."""
    torch.manual_seed(0)
    wide = build(shipped(name, system, dim=8, **parameters), compiled=False)
    narrow = build(wide.nsam_unit, compiled=False)
    narrow.load_state_dict(wide.state_dict())
    narrow = narrow.to(torch.bfloat16)
    inputs = [
        torch.randint(0, 256, (2, 40)) if i.type.vocab else torch.randn((2, 40, 8) if i.type.per == "token" else (2, 8))
        for i in wide.nsam_unit.inputs
    ]
    y, _ = wide(*inputs)
    z, state = narrow(*(x.bfloat16() if x.is_floating_point() else x for x in inputs))
    assert float((z.float() - y).detach().norm() / y.detach().norm()) < 0.06
    z.float().square().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for n, p in narrow.named_parameters() if learns(n, system)
    )
    for memory in narrow.fast_memories:
        kept = {n: t for n, t in state["sequence"].items() if n.startswith(f"{memory}.")}
        assert all(t.dtype == torch.float32 for t in kept.values()), kept


def learns(name: str, system: str) -> bool:
    return not (system == "detached" and name in ("k.weight", "v.weight"))


def test_autocast_keeps_gates_and_states_in_float32(unit_of: UnitOf) -> None:
    """A retention of 0.9999 is 1 in bfloat16: 64 tokens of it must still show."""
    torch.manual_seed(0)
    gate = "memory keep : linear(4 -> 1) { init zeros }\nmemory m : linear(4 -> 4)"
    learn = "learn x -> x; minimize dot; by gd(lr = 0, retain = sigmoid(9.21 + keep(x))); every 64 tokens"
    module = build(unit_of(f"{gate} {{ {learn} }}\noutput m(x)"), compiled=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = module(torch.randn(1, 64, 4))
    kept = state["sequence"]["m.weight"][0, 0] / module.m.weight
    assert state["sequence"]["m.weight"].dtype == torch.float32
    torch.testing.assert_close(kept, torch.full((4, 4), 0.9999**64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reads", ["boundary", "running"])
@pytest.mark.parametrize("output", ["m(q(x))", "normalize(m(x))", "norm(q(x)) * x", "b * x"])
def test_the_output_has_the_precision_of_the_module(
    unit_of: UnitOf, output: str, reads: str, dtype: torch.dtype
) -> None:
    """So it goes on into a layer of torch's of that precision; the state stays in float32."""
    clauses = f"learn x -> v(x); minimize l2; by gd(lr = 0.1); every 2 tokens; reads {reads}; init zeros"
    alone = clauses.replace("x ->", "")
    declared = f"memory q, v : linear(4 -> 4)\nmemory m : linear(4 -> 4) {{ {clauses} }}"
    declared += f"\nmemory b : vector(4) {{ {alone} }}"
    module = build(unit_of(f"{declared}\noutput {output}"), compiled=False).to(dtype)
    y, state = module(torch.randn(2, 5, 4, dtype=dtype))
    assert nn.Linear(4, 3, dtype=dtype)(y).dtype == dtype
    assert state["sequence"]["m.weight"].dtype == torch.float32
    again, _ = module(torch.randn(2, 5, 4, dtype=dtype), state)
    assert again.dtype == dtype


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_what_torch_makes_by_default_changes_nothing(shipped: Shipped, default: torch.dtype) -> None:
    """A module computes in the precision of its weights."""
    module = build(shipped("hope", "titans", dim=8), compiled=False)
    x, results = torch.randn(2, 9, 8), []
    for kind in (torch.float32, default):
        torch.set_default_dtype(kind)
        try:
            y, _ = module(x)
            module.zero_grad()
            y.square().sum().backward()
        finally:
            torch.set_default_dtype(torch.float32)
        results.append([y.detach(), *(p.grad for p in module.parameters() if p.grad is not None)])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("system", ["titans", "hope"])
def test_autocast_is_near_float32(shipped: Shipped, system: str) -> None:
    torch.manual_seed(0)
    module = build(
        shipped("hope", system, dim=8, **({"chunk": 4, "slow": 8} if system == "titans" else {})), compiled=False
    )
    x = torch.randn(2, 40, 8) if system == "titans" else torch.randint(0, 256, (2, 40))
    y, _ = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, _ = module(x)
        z.float().square().sum().backward()
    assert float((z.float() - y).detach().norm() / y.detach().norm()) < 0.06
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("wrapper", [False, True])
def test_the_wrapper_of_compiled_code_is_a_choice(
    wrapper: bool, unit_of: UnitOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object] | None] = []

    def compile_nothing(
        function: Callable[..., Any], *, options: dict[str, object] | None, **settings: object
    ) -> Callable[..., Any]:
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    unit = unit_of(f"{LEARN} {{ learn k(x) -> v(x); minimize l2; by gd(lr = 0.1); every 32 tokens }}\noutput m(x)")
    build(unit, cpp_wrapper=wrapper)(torch.randn(1, 64, 4))
    assert asked
    assert all((options or {}).get("cpp_wrapper", False) == wrapper for options in asked)


@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
@pytest.mark.usefixtures("quick_kernels")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_may_end_where_a_call_begins(unit_of: UnitOf, compiled: bool) -> None:
    """The state of a truncated call has no gradient; the call's own gradients, and what follows, stay the same."""
    unit = unit_of(
        f"memory taps : conv(4, 3)\nmemory q : linear(4 -> 4)\n{LEARN} "
        "{ learn k(x) -> v(x); minimize l2; by gd(lr = 0.1); every 32 tokens; init learned }\n"
        "memory h : attention(heads = 2, window = 40) { learn k(taps(x)) -> m(x) }\noutput h(q(x))"
    )
    whole, short = build(unit, compiled=False).double(), build(unit, compiled=compiled, truncated=True).double()
    short.load_state_dict(whole.state_dict())
    x = torch.randn(2, 100, 4).double()
    (wanted, old), (found, state) = whole(x), short(x)
    torch.testing.assert_close(found, wanted)
    kept = state["sequence"]
    assert kept.keys() == old["sequence"].keys()
    assert not any(tensor.requires_grad for tensor in kept.values())
    assert any(tensor.requires_grad for tensor in old["sequence"].values())
    torch.testing.assert_close(kept, old["sequence"])
    gradients = [
        torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in ((wanted, whole), (found, short))
    ]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(short(x, state)[0], whole(x, old)[0])


# --- through inductor ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
@pytest.mark.parametrize("wrapper", [False, True], ids=["Python wrapper", "C++ wrapper"])
def test_inductor_equals_eager(unit_of: UnitOf, wrapper: bool, request: pytest.FixtureRequest) -> None:
    """Two layers, several blocks, values and gradients: compiled blocks against the same code uncompiled.

    Two blocks are one compiled call; from 128 tokens on it would be four, and take twice as long to compile. In the
    first case calls and kernels are those of every user; in the second, one block a call, what calls them is tested.
    """
    if wrapper:
        request.getfixturevalue("quick_kernels")
        request.getfixturevalue("short_calls")
    learn = "learn normalize(k(h)) -> self(normalize(n(h))); minimize pseudo_huber(1)"
    learn += "; by safe_dgd(lr = rate, retain = 0.99)"
    unit = unit_of(
        "let h = x\nrepeat 2 {\nmemory n : rmsnorm(4)\nmemory k : linear(4 -> 4)\nmemory rate_of : linear(4 -> 2)\n"
        "let rate = sigmoid(rate_of(h)) / 4\n"
        f"memory m : mlp(4 -> 8 -> 4, act = silu, residual, heads = 2) {{ {learn}; every 32 tokens }}\n"
        "h = h + m(n(h))\n}\noutput h"
    )
    torch.manual_seed(0)
    fast, plain = build(unit, cpp_wrapper=wrapper).double(), build(unit, compiled=False).double()
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 100, 4).double()
    found, _ = fast(x)
    wanted, _ = plain(x)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
    direction = torch.randn_like(wanted)
    (found * direction).sum().backward()
    (wanted * direction).sum().backward()
    for (name, p), q in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-9 * float(q.grad.abs().max()) + 1e-12, msg=name)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("default")  # torch warns of itself while it compiles
@pytest.mark.usefixtures("quick_kernels")
def test_long_calls_short_ones_and_the_rest(unit_of: UnitOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest call has 128 tokens here, what is left 64; the last 20 run as they are, so does one."""
    learn = "learn k(x) -> v(x); minimize l2; by dgd(lr = 0.1, retain = 0.9); every 32 tokens"
    unit = unit_of(f"{LEARN} {{ {learn} }}\noutput m(x)")
    monkeypatch.setattr("nsam.compiler.loops.LONG_TOKENS", 128)  # 512 take four times as long to compile
    called: list[str] = []
    compiled = blocks._compile

    def counting(function: Callable[..., Any], **how: bool) -> Callable[..., Any]:
        ready = compiled(function, **how)

        def run(*arguments: Any) -> Any:
            called.append(function.__name__)
            return ready(*arguments)

        return run

    monkeypatch.setattr(blocks, "_compile", counting)
    torch.manual_seed(0)
    fast, plain = build(unit).double(), build(unit, compiled=False).double()
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 213, 4).double()
    (found, state), (wanted, old) = fast(x[:, :212]), plain(x[:, :212])
    assert [name for name in called if "segment" in name] == [f"s_segment_{n}" for n in (128, 64)]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(fast(x[:, 212:], state)[0], plain(x[:, 212:], old)[0], rtol=1e-9, atol=1e-10)
    for y in (found, wanted):
        y.square().sum().backward()
    for p, q in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 5, 7), r"input `x` must be \[batch, time, 8\], got \[2, 5, 7\]"),
        (torch.zeros(2, 8), r"input `x` must be \[batch, time, 8\], got \[2, 8\]"),
        (torch.zeros(2, 0, 8), r"input `x` is empty"),
    ],
)
def test_wrong_inputs_are_named(shipped: Any, x: torch.Tensor, message: str) -> None:
    module = build(shipped("hope", "titans", dim=8), compiled=False)
    with pytest.raises(ValueError, match=message):
        module(x)


def test_tokens_are_whole_numbers_and_states_fit_the_batch(shipped: Any) -> None:
    module = build(shipped("hope", "hope", vocab=16, dim=8, layers=1), compiled=False)
    with pytest.raises(ValueError, match="whole numbers below 16"):
        module(torch.zeros(2, 5))
    _, state = module(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="state is of 2 sequences"):
        module(torch.zeros(3, 5, dtype=torch.int64), state)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32])
def test_tokens_of_any_whole_type(shipped: Any, dtype: torch.dtype) -> None:
    """As bytes of a file, or as NumPy has them."""
    module = build(shipped("hope", "hope", vocab=16, dim=8, layers=1), compiled=False)
    tokens = torch.randint(0, 16, (2, 5))
    assert torch.equal(module(tokens.to(dtype))[0], module(tokens)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_unit_without_parameters_takes_the_precision_of_its_input(unit_of: Any, dtype: torch.dtype) -> None:
    clauses = "learn x -> x; minimize l2; by gd(lr = 0.1); every 2 tokens; init zeros"
    unit = unit_of(f"memory m : linear(4 -> 4) {{ {clauses} }}\noutput m(x)")
    y, _ = build(unit, compiled=False)(torch.ones(1, 5, 4, dtype=dtype))
    assert y.dtype == dtype
    assert y[:, :2].abs().max() == 0
    assert y[:, 2:].min() > 0


@pytest.mark.parametrize("output", ["x * s", "concat(x, s) * t", "m(x) + s"])
def test_a_number_a_sequence(output: str) -> None:
    """As [B] and as [B, 1], with as many tokens as sequences: an axis more or less would go unnoticed."""
    learn = "learn x -> s * x; minimize l2; by gd(lr = 0.1); every 2 tokens"
    text = f"""nsam 1
    use std.rules (gd)
    system a(dim: int = 3) {{
      input x: [dim]; input s: [] per sequence; input t: []
      memory m : linear(dim -> dim) {{ {learn} }}
      output {output}
    }}"""
    unit = Program.loads(text).instantiate("a", {})
    module, reference = build(unit, compiled=False).double(), ReferenceModule(unit)
    module.load_state_dict(reference.state_dict())
    x, s, t = (torch.randn(4, *shape, dtype=torch.float64) for shape in ((4, 3), (), (4,)))
    wanted, _ = reference(x, s, t)
    for given in (s, s[:, None]):
        assert float((module(x, given, t)[0] - wanted).detach().abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["call", "weights", "end", "forward", "piece", "unit"])
def test_systems_and_memories_may_be_called_like_methods(name: str) -> None:
    text = f"""nsam 1
    use std.rules (gd)
    system {name}(dim: int) {{
      input x: [dim]
      memory {name} : linear(dim -> dim) {{ learn x -> x; minimize l2; by gd(lr = 0.1); every 2 tokens }}
      output {name}(x)
    }}
    system s(dim: int = 3) {{ input x: [dim]; output {name}(x, dim) }}"""
    unit = Program.loads(text).instantiate("s", {})
    module, reference = build(unit, compiled=False).double(), ReferenceModule(unit)
    reference.load_state_dict(module.state_dict())
    x = torch.linspace(-1, 1, 15, dtype=torch.float64).view(1, 5, 3)
    assert torch.allclose(module(x)[0], reference(x)[0], atol=1e-12)
