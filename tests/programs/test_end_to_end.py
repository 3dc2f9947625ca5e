"""`minimize task` on the token clock: memories that move by the model's own loss, against reference and closed form."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import nsam
from nsam.backends.reference.module import values
from nsam.backends.torch.runtime.end_to_end import EndToEnd
from nsam.dsl.diagnostics import ProgramError
from nsam.verification import verify_unit

MODEL = """nsam 1
use std.rules (gd, momentum, dgd, safe_dgd, adamw, muon)
system lm(vocab: int = 11, dim: int = 4) {
  input tokens: token(vocab)
  memory embed : table(vocab, dim) { init learned normal(0.5) }
  memory q, k, v : linear(dim -> dim)
  memory taps : conv(dim, width = 3)
  let x = taps(embed(tokens))
  memory nf : rmsnorm(dim)
  BODY
  output embed.T(nf(h))
}
"""
SLOW = (
    "memory slow : mlp(dim -> 2*dim -> dim, act = silu, residual) { minimize task; by gd(lr = 0.05); every 6 tokens }\n"
)
BODIES = {
    "online": """
  memory m : linear(dim -> dim) { minimize task; by adamw(lr = 0.02); every 1 token }
  let h = x + m(x)""",
    "reset": """
  memory m : linear(dim -> dim) {
    minimize task; by momentum(lr = 0.1, beta = 0.5); every 2 tokens; reset every 6 tokens
  }
  let h = x + m(x)""",
    "periods that do not divide": """
  memory m : linear(dim -> dim) { minimize task; by gd(lr = 0.1); every 2 tokens }
  memory n : linear(dim -> dim) { minimize task; by gd(lr = 0.1); every 5 tokens }
  let h = x + n(m(x))""",
    "nested": f"""
  {SLOW}
  memory middle : mlp(dim -> 2*dim -> dim, act = silu, residual) {{
    minimize task; by adamw(lr = 0.02); every 3 tokens; reset every 6 tokens; init slow
  }}
  let h = chain([slow, middle], x)""",
    "rates that training learns": """
  memory rate : vector(2) { init learned normal(0.1) }
  memory keep : vector(1)
  let kept = sigmoid(5 + index(keep, 0))
  memory m : mlp(dim -> 2*dim -> dim, heads = 2) {
    minimize task; by gd(lr = softplus(rate), retain = kept); every 3 tokens
  }
  let h = x + m(x)""",
    "heads and biases": """
  memory m : linear(dim -> dim, heads = 2, bias) { minimize task; by muon(lr = 0.02); every 4 tokens }
  let h = x + m(x)""",
    "vector": """
  memory m : vector(dim) { minimize task; by momentum(lr = 0.1, beta = 0.9); every 2 tokens }
  let h = x + m * x""",
    "attention above and below": f"""
  {SLOW}
  memory a : attention(2) {{ learn rope(k(x), 2) -> v(x) }}
  let y = slow(x + a(rope(q(x), 2)))
  memory b : attention(2, window = 3) {{ learn k(y) -> v(y) }}
  let h = y + b(q(y))""",
    "objectives of their own beside it": f"""
  {SLOW}
  memory fast : linear(dim -> dim, heads = 2) {{
    learn normalize(k(x), 2) -> v(slow(x)); minimize l2; by dgd(lr = 0.3); every 1 token; reads running; init zeros
  }}
  memory deep : mlp(dim -> dim -> dim) {{
    learn normalize(k(x)) -> slow(x); minimize l2; by safe_dgd(lr = 0.1); every 4 tokens
  }}
  let h = fast(normalize(q(x), 2)) + deep(slow(x))""",
}


def model(name: str) -> str:
    return MODEL.replace("BODY", BODIES[name])


def streamed(module: torch.nn.Module, x: Tensor, sizes: Iterable[int]) -> Tensor:
    state, found, start = None, [], 0
    for size in sizes:
        y, state = module(x[:, start : start + size], state=state)
        found.append(y)
        start += size
    return torch.cat(found, 1)


@pytest.mark.parametrize("name", BODIES)
def test_compiled_is_the_reference(name: str, pair: Any) -> None:
    both = pair(nsam.loads(model(name)), "lm")
    assert both.apart(14) < 1e-9
    unused = {f"{m}.weight" for m in "qkv" if f"{m}(" not in BODIES[name]}
    assert set(both.dead(14)) <= unused


@pytest.mark.parametrize("name", ["nested", "attention above and below", "objectives of their own beside it"])
@pytest.mark.parametrize("sizes", [[1] * 14, [6, 8], [5, 2, 7]], ids=str)
def test_any_split_is_the_same(name: str, sizes: list[int], pair: Any) -> None:
    both = pair(nsam.loads(model(name)), "lm")
    (x,) = both.inputs(2, 14)
    whole, _ = both.compiled(x)
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            assert torch.allclose(streamed(both.compiled, x, sizes), whole, atol=1e-12, rtol=0)
    with torch.inference_mode():
        assert torch.allclose(streamed(both.compiled, x, sizes), whole, atol=1e-12, rtol=0)
    with torch.no_grad():
        assert torch.allclose(streamed(both.reference, x, sizes), whole, atol=1e-10, rtol=0)


def test_gradients_cross_calls(pair: Any, gradients: Any) -> None:
    both = pair(nsam.loads(model("nested")), "lm")
    (x,) = both.inputs(2, 14)
    wanted = gradients(both.compiled, [x])

    class Split(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = both.compiled

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return streamed(self.inner, x, [3, 3, 1, 7]), None

    found = gradients(Split(), [x])
    for name, gradient in wanted.items():
        same = found[name if name == "output" else f"inner.{name}"]
        assert torch.allclose(same, gradient, atol=1e-11, rtol=1e-9), name


@pytest.mark.parametrize("name", ["nested", "attention above and below", "rates that training learns"])
@pytest.mark.parametrize("end", [5, 6])
@pytest.mark.parametrize("how", ["detached", "without gradients", "attached"])
def test_training_goes_on_from_a_state(name: str, end: int, how: str, pair: Any) -> None:
    """Of a detached state both backends run the latest chunk once more: inner gradients are as if it had a graph."""
    both = pair(nsam.loads(model(name)), "lm")
    (x,) = both.inputs(2, 14)
    found = []
    for module in (both.compiled, both.reference):
        module.zero_grad()
        whole, _ = module(x)
        with torch.set_grad_enabled(how != "without gradients"):
            _, state = module(x[:, :end])
        if how == "detached":
            state = pytree.tree_map_only(Tensor, Tensor.detach, state)
        y, _ = module(x[:, end:], state=state)
        assert torch.allclose(y, whole[:, end:], atol=1e-11, rtol=0)
        y.square().mean().backward()
        found.append({key: p.grad for key, p in module.named_parameters() if p.grad is not None})
    scale = max(float(g.abs().max()) for g in found[1].values())
    for key in found[0].keys() | found[1].keys():
        mine, theirs = (grads.get(key, torch.zeros(())) for grads in found)
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-10 * scale), key


LINEAR = """nsam 1
use std.rules (gd)
system s() {
  input x: [3]
  memory m : linear(3 -> 5) { minimize task; by gd(lr = 0.3, retain = 0.9); every 4 tokens }
  output m(x)
}
"""


def test_closed_form_of_a_linear_softmax_model() -> None:
    """M ← 0.9 M − 0.3 Σᵢ (softmax(M xᵢ) − onehot(targetᵢ)) xᵢᵀ, i from the last closing token to the last but one."""
    module = nsam.compile(nsam.loads(LINEAR), "s").double()
    x, targets = torch.randn(1, 14, 3, dtype=torch.float64), torch.randint(0, 5, (1, 14))
    m = module.state_dict()["m.weight"].clone()
    wanted, total = [], torch.zeros_like(m)
    late = torch.zeros_like(m)
    for t in range(14):
        y = m @ x[0, t]
        wanted.append(y)
        total, late = total + late, torch.outer(y.softmax(0) - torch.eye(5)[targets[0, t]].double(), x[0, t])
        if (t + 1) % 4 == 0:
            m, total = 0.9 * m - 0.3 * total, torch.zeros_like(m)
    with torch.no_grad():
        y, state = module(x, targets=targets)
        short, _ = module(x, targets=targets[:, :-1])
    assert torch.allclose(y[0], torch.stack(wanted), atol=1e-13)
    assert torch.equal(short, y)
    assert torch.allclose(state["sequence"]["m.weight"][0, 0], m, atol=1e-13)


def test_outputs_see_targets_two_tokens_late() -> None:
    text = LINEAR.replace("every 4 tokens", "every 1 token")
    module = nsam.compile(nsam.loads(text), "s").double()
    x, targets = torch.randn(1, 9, 3, dtype=torch.float64), torch.randint(0, 5, (1, 9))
    y = module(x, targets=targets)[0].detach()
    other = targets.clone()
    other[0, 4] = (other[0, 4] + 1) % 5
    changed = (module(x, targets=other)[0].detach() - y).abs().amax((0, 2)) > 1e-12
    assert changed.tolist() == [False] * 6 + [True] * 3


def test_targets_one_call_late_and_not_at_all(pair: Any) -> None:
    both = pair(nsam.loads(model("online")), "lm")
    (x,) = both.inputs(2, 9)
    targets = torch.randint(0, 11, (2, 9))
    with torch.no_grad():
        whole, _ = both.compiled(x, targets=targets)
        first, state = both.compiled(x[:, :4], targets=targets[:, :3])
        second, state = both.compiled(x[:, 4:5], state, targets=targets[:, 3:4])
        third, _ = both.compiled(x[:, 5:], state, targets=targets[:, 4:])
        assert torch.allclose(torch.cat([first, second, third], 1), whole, atol=1e-12)
        assert torch.allclose(both.reference(x, targets=targets)[0], whole, atol=1e-12)
        own, _ = both.compiled(x)
        assert torch.equal(own, both.compiled(x, targets=x[:, 1:])[0])
        assert not torch.allclose(own, whole, atol=1e-3)


def test_targets_that_do_not_fit_are_refused() -> None:
    module = nsam.compile(nsam.loads(LINEAR), "s")
    x = torch.randn(2, 6, 3)
    for backend in (module, nsam.compile(nsam.loads(LINEAR), "s", backend="reference")):
        with pytest.raises(ValueError, match="learns from targets"):
            backend(x)
        with pytest.raises(ValueError, match="targets"):
            backend(x, targets=torch.zeros(2, 4, dtype=torch.int64))
        with pytest.raises(ValueError, match="targets"):
            backend(x, targets=torch.zeros(2, 6))
        with pytest.raises(ValueError, match="target"):
            backend(x, targets=torch.full((2, 6), 5))


STATES = ["nested", "attention above and below"]


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("end", [6, 8])
def test_an_open_chunk_goes_with_its_sequence(name: str, backend: str, end: int, pair: Any, tmp_path: Path) -> None:
    """At a boundary the last token's loss is not known yet, between two the chunk is kept to be run once more."""
    both = pair(nsam.loads(model(name)), "lm")
    module = getattr(both, backend)
    (x,) = both.inputs(3, 12)
    with torch.no_grad():
        whole, _ = module(x)
        _, state = module(x[:, :end])
        nsam.save_state(state, tmp_path / "s")
        for carried in (state, nsam.load_state(tmp_path / "s", module)):
            for taken in ([2, 0], [1], torch.tensor([1, 1, 0, 2])):
                again, _ = module(x[taken, end:], state=nsam.take_sequences(carried, taken))
                assert torch.allclose(again, whole[taken, end:], atol=1e-12, rtol=0)
        with pytest.raises(ValueError, match="the state is of 1 sequences, the input of 3"):
            module(x[:, end:], state=nsam.take_sequences(state, [0]))


FED = """nsam 1
use std.rules (gd)
system s() {
  input x: [3]
  input c: [3] per sequence
  memory m : linear(3 -> 5) { minimize task; by gd(lr = 0.3, retain = 0.9); every 4 tokens }
  output m(x * c)
}
"""


@pytest.mark.parametrize("end", [3, 4, 6])
def test_a_state_is_apart_from_what_the_caller_gave(end: int, pair: Any) -> None:
    """A loop that reads into the same tensors again and again must not change what was read before."""
    both = pair(nsam.loads(FED), "s")
    x, c = both.inputs(2, 9)
    targets = torch.randint(0, 5, (2, 9))
    for module in (both.compiled, both.reference):
        whole, _ = module(x, c, targets=targets)
        given = x[:, :end].clone(), c.clone(), targets[:, : end - 1].clone()
        first, state = module(*given[:2], targets=given[2])
        for tensor in given:
            tensor.zero_()
        second, _ = module(x[:, end:], c, state=state, targets=targets[:, end - 1 :])
        assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-12)


def test_a_new_sequence_forgets_the_open_chunk(pair: Any) -> None:
    both = pair(nsam.loads(model("nested")), "lm")
    (x,) = both.inputs(2, 12)
    with torch.no_grad():
        for end in (4, 6):
            _, state = both.compiled(x[:, :end])
            again, _ = both.compiled(x[:, end:], nsam.new_sequence(state))
            assert torch.equal(again, both.compiled(x[:, end:])[0])


def test_rate_zero_is_the_static_network(pair: Any) -> None:
    moving = model("attention above and below")
    still = moving.replace("{ minimize task; by gd(lr = 0.05); every 6 tokens }", "")
    a, b = pair(nsam.loads(moving.replace("lr = 0.05", "lr = 0")), "lm"), pair(nsam.loads(still), "lm")
    (x,) = a.inputs(2, 14)
    b.compiled.load_state_dict(a.compiled.state_dict())
    with torch.no_grad():
        assert torch.allclose(a.compiled(x)[0], b.compiled(x)[0], atol=1e-12)


def test_it_runs_as_plain_pytorch_and_says_so() -> None:
    program = nsam.loads(model("nested"))
    module = nsam.compile(program, "lm", compiled=True)
    assert isinstance(module, EndToEnd)
    assert not any(getattr(part, "compiled", False) for part in module.modules())
    from nsam.compiler.explain import explain

    text = str(explain(program.instantiate("lm", {})))
    assert "not through torch.compile" in text
    assert "i = s, …, s+5" in text


def test_the_training_objective_reaches_the_memory() -> None:
    graph = nsam.graph(nsam.loads(model("nested")), "lm")
    for memory in ("slow", "middle"):
        kinds = {data["kind"] for _, _, data in graph.out_edges("training", data=True) if _ == memory}
        assert "backprop" in kinds


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("{ minimize task; by gd(lr = 0.1); every 4 tokens; reads running }", "after the current token"),
        ("{ minimize task; by gd(lr = 0.1); every 4 tokens; reset never }", "another sequence"),
        ("{ minimize task; by gd(lr = index(c, 0)); every 4 tokens }", "more than parameters"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_the_checker(body: str, why: str) -> None:
    text = LINEAR.replace("input x: [3]", "input x: [3]\n  input c: [2] per sequence")
    text = text.replace("{ minimize task; by gd(lr = 0.3, retain = 0.9); every 4 tokens }", body)
    with pytest.raises(ProgramError) as caught:
        nsam.loads(text)
    assert caught.value.diagnostics[0].code in ("N0222", "N0225")
    assert why in caught.value.diagnostics[0].message


def test_starting_over_from_one_is_for_its_own_kind() -> None:
    body = SLOW + (
        "memory m : mlp(dim -> 2*dim -> dim, act = silu, residual) {\n"
        "learn k(x) -> v(x); minimize l2; by gd(lr = 0.1); every 3 tokens; reset every 6 tokens; init slow }\n"
        "let h = m(slow(x))"
    )
    with pytest.raises(ProgramError) as caught:
        nsam.compile(nsam.loads(MODEL.replace("BODY", body)), "lm")
    assert "starts over from `slow`" in caught.value.diagnostics[0].message
    nsam.compile(nsam.loads(MODEL.replace("BODY", body).replace("reset every 6 tokens; ", "")), "lm")


def test_the_output_must_be_scores() -> None:
    text = LINEAR.replace("output m(x)", "output sum(m(x))")
    with pytest.raises(ProgramError) as caught:
        nsam.compile(nsam.loads(text), "s")
    assert "one vector of scores" in caught.value.diagnostics[0].message


def test_a_rule_with_a_key_cannot_serve() -> None:
    with pytest.raises(ProgramError) as caught:
        nsam.loads(
            LINEAR.replace("use std.rules (gd)", "use std.rules (dgd)").replace(
                "by gd(lr = 0.3, retain = 0.9)", "by dgd(lr = 0.3)"
            )
        )
    assert "sum of gradients" in caught.value.diagnostics[0].message


@pytest.mark.parametrize("name", BODIES)
def test_numpy_is_the_token_loop(name: str, pair: Any) -> None:
    """The gradient of the model's own loss from the run-time tape, through other memories' inner gradients too."""
    both = pair(nsam.loads(model(name)), "lm")
    (x,) = both.inputs(2, 14)
    weights = {key: w.detach().numpy() for key, w in both.weights.items()}
    with torch.no_grad():
        wanted, _ = both.reference(x)
    whole, _ = values(both.unit, weights, {"tokens": x.numpy()})
    first, state = values(both.unit, weights, {"tokens": x[:, :5].numpy()})
    second, _ = values(both.unit, weights, {"tokens": x[:, 5:].numpy()}, state)
    assert abs(whole - wanted.numpy()).max() < 1e-11
    assert abs(np.concatenate([first, second], 1) - whole).max() < 1e-12
    still, _ = values(both.unit, weights, {"tokens": x.numpy()}, targets=(x.numpy() + 1) % 11)
    assert abs(still - whole).max() > 1e-4


def test_verify(example: Any) -> None:
    unit = example("end_to_end").instantiate("continuum", {"vocab": 11, "dim": 8})
    report = verify_unit(unit, lengths=20, stability_tokens=64)
    assert report.ok, report.text


def test_the_inner_loss_is_the_models_own() -> None:
    """Over the tokens of the call that have a target; the other memories' losses are means over all of the call."""
    unit = nsam.loads(model("objectives of their own beside it")).instantiate("lm", {})
    module = nsam.api.compile_unit(unit, compiled=False, observe=True).double()
    x = torch.randint(0, 11, (2, 15))
    whole, _ = module(x)
    state, seen = None, {}
    for start, stop in ((0, 4), (4, 15)):
        y, state = module(x[:, start:stop], state)
        targets = x[:, start + 1 : stop]
        report = nsam.api.memory_report(module, state)
        scored = y.detach()[:, : targets.shape[1]].flatten(0, 1)
        assert report["slow"]["loss"] == pytest.approx(
            float(torch.nn.functional.cross_entropy(scored, targets.flatten()))
        )
        assert set(report) == {"slow", "fast", "deep"}
        seen[start] = report
    assert torch.allclose(y, whole[:, 4:])
    _, first = module(x[:, :6])
    halves = [nsam.api.memory_report(module, s)["fast"]["loss"] for s in (first, module(x[:, 6:12], first)[1])]
    both = nsam.api.memory_report(module, module(x[:, :12])[1])["fast"]["loss"]
    assert both == pytest.approx(sum(halves) / 2)
    assert seen[0]["slow"]["level"] > seen[0]["fast"]["level"]


def test_a_memory_that_starts_at_zero_has_no_norm_to_be_measured_by() -> None:
    unit = nsam.loads(model("vector")).instantiate("lm", {})
    report = verify_unit(unit, lengths=20, stability_tokens=64)
    assert report.ok, report.text
    assert "1 memory from zeros" in report.text
    assert "nan" not in report.text.lower().replace("nan or inf", "")


def test_verify_needs_targets() -> None:
    with pytest.raises(ProgramError) as caught:
        verify_unit(nsam.loads(LINEAR).instantiate("s", {}))
    assert "targets that are given from outside" in caught.value.diagnostics[0].message
