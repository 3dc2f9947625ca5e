"""The module around the interpreter: initial values, inputs that do not fit, what is refused, divergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from nsam.backends.reference import ReferenceModule, values
from nsam.dsl.checked import Reset, Unit
from nsam.dsl.diagnostics import ProgramError

Build = Callable[..., Unit]
Random = Callable[..., Tensor]


def _module(unit: Unit) -> ReferenceModule:
    return ReferenceModule(unit, torch.Generator().manual_seed(0))


def test_what_is_not_interpreted_is_said(build: Build) -> None:
    """The checker refuses such a program first; the reference does not rely on it."""
    unit = build("""system s() {
      input x: [3]
      memory m : linear(3 -> 3) { minimize task; by gd(lr = 0.1); every 4 tokens }
      output m(x)
    }""")
    kept = replace(unit, memories=(replace(unit.memories[0], reset=Reset("never")),))
    with pytest.raises(ProgramError) as caught:
        ReferenceModule(kept)
    assert caught.value.diagnostics[0].code == "N0490"


def test_inputs_that_do_not_fit_are_refused(build: Build, random: Random) -> None:
    module = _module(build("system s() { input t: token(5); memory e : table(5, 3); output e(t) }"))
    with pytest.raises(ValueError, match="token 5"):
        module(torch.tensor([[1, 5]]))
    with pytest.raises(ValueError, match="takes 1 inputs"):
        module(torch.tensor([[1]]), torch.tensor([[1]]))
    with pytest.raises(ValueError, match=r"t of s is \[batch, time\], found \[1, 1, 1\]"):
        module(torch.tensor([[[1]]]))
    with pytest.raises(ValueError, match="one and the same length"):
        module(torch.zeros(1, 0, dtype=torch.int64))
    _, state = module(torch.tensor([[1]]))
    with pytest.raises(ValueError, match="of 1 sequences"):
        module(torch.tensor([[1], [2]]), state=state)


def test_default_initial_states(build: Build) -> None:
    text = """system s() {
      input x: [64]
      memory a : linear(64 -> 64, heads = 4)
      memory b : mlp(64 -> 256 -> 64, bias)
      memory c : conv(64, 4)
      memory d : table(500, 64)
      memory e : vector(64)
      memory f : rmsnorm(64)
      memory g : linear(64 -> 64) { init learned normal(0.02) }
      output f(a(b(c(x)))) + e + g(x)
    }"""
    module = _module(build(text))
    expected = {"a.weight": 1 / 4, "b.w1": 1 / 8, "b.w2": 1 / 16, "c.weight": 0.5, "d.weight": 0.02, "g.weight": 0.02}
    for name, deviation in expected.items():
        assert module.get_parameter(name).std().item() == pytest.approx(deviation, rel=0.15), name
    for name in ("b.b1", "b.b2", "e.weight"):
        assert torch.all(module.get_parameter(name) == 0)
    assert torch.all(module.get_parameter("f.weight") == 1)


KEEPING = """system s() {
  input x: [3]
  input c: [9] per sequence
  memory taps : conv(3, 3)
  memory kept : attention(1) { learn x -> x }
  memory m : linear(3 -> 3) { learn x -> taps(x); minimize l2; by gd(lr = 0.1); every 4 tokens; init learned }
  memory g : linear(3 -> 3) { learn x -> x; minimize l2; by gd(lr = 0.1); every 4 tokens; init c }
  memory h : vector(3) { learn x over last 2 tokens; minimize l2; by gd(lr = 0.1); every 4 tokens; init learned }
  output m(x) + g(x) + kept(x) + h
}"""


def test_a_state_is_apart_from_parameters_and_inputs(build: Build, random: Random) -> None:
    """Both may be written in place before the sequence goes on: by an optimizer, by a loop that reads into a buffer."""
    module, x, c = _module(build(KEEPING)), random(1, 6, 3), random(1, 9)
    names = ("m.weight", "h.weight")
    weights = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
    given = [x[:, :2].clone(), c.clone()]
    plain = {"x": x[:, :2].numpy().copy(), "c": c.numpy().copy()}
    with torch.no_grad():
        whole, _ = module(x, c)
        _, state = module(*given)
        _, other = values(module.unit, weights, plain)
        for tensor in (*given, *map(module.get_parameter, names)):
            tensor.zero_()
        for array in (*plain.values(), *map(weights.__getitem__, names)):
            array[...] = 0
        assert torch.equal(module(x[:, 2:], c, state=state)[0], whole[:, 2:])
    found, _ = values(module.unit, weights, {"x": x[:, 2:].numpy(), "c": c.numpy()}, other)
    assert np.allclose(found, whole[:, 2:].numpy(), rtol=0, atol=1e-12)


TAUGHT = """system s() {
  input x: [3]
  memory m : linear(3 -> 3) { minimize task; by gd(lr = 0.5); every 3 tokens }
  output m(x)
}"""


@pytest.mark.parametrize("text", ["own", "task"])
def test_inference_mode_moves_memories_too(text: str, build: Build, random: Random) -> None:
    """Autograd records nothing there, not even for inner gradients; nor of tensors that were made there."""
    learnt = KEEPING.replace("  input c: [9] per sequence\n", "").replace("; init c", "")
    unit = build(TAUGHT if text == "task" else learnt)
    module, x = _module(unit), random(2, 8, 3)
    given = {"targets": torch.randint(0, 3, (2, 8))} if text == "task" else {}
    first, second = ({name: t[:, part] for name, t in given.items()} for part in (slice(0, 4), slice(4, 8)))
    with torch.no_grad():
        whole, _ = module(x, **given)
    with torch.inference_mode():
        y, state = module(x[:, :4], **first)
        there = pytree.tree_map_only(Tensor, Tensor.clone, state)
        born = ReferenceModule(unit)
        born.load_state_dict(module.state_dict())
        late = x[:, 4:].clone()
        assert torch.equal(torch.cat([y, module(late, state=state, **second)[0]], 1), whole)
    with torch.no_grad():
        for outside in (module, born):
            assert torch.equal(outside(late, state=there, **second)[0], whole[:, 4:])


def test_a_memory_that_diverges_does_so_in_both(build: Build, random: Random) -> None:
    text = """system s() {
      input x: [3]
      memory m : linear(3 -> 3) { learn x -> 2 * x; minimize lp(4); by gd(lr = 100); every 1 token; init learned }
      output m(x)
    }"""
    module, x = _module(build(text)), random(1, 12, 3)
    found, _ = values(module.unit, {"m.weight": module.get_parameter("m.weight").detach().numpy()}, {"x": x.numpy()})
    finite = torch.isfinite(module(x)[0])
    assert not finite.all()
    assert np.array_equal(np.isfinite(found), finite.numpy())


def test_a_token_out_of_range_is_not_called_a_target(build: Build) -> None:
    text = """system s() {
      input t: token(5)
      memory e : table(5, 4)
      memory m : linear(4 -> 4) { minimize task; by gd(lr = 0.5); every 2 tokens }
      output e.T(m(e(t)))
    }"""
    module = _module(build(text))
    for token in (-1, 9):
        with pytest.raises(ValueError, match=f"t has the token {token}, outside of 0 … 4"):
            module(torch.full((2, 5), token))
    with pytest.raises(ValueError, match="a target lies outside of 0 … 4"):
        module(torch.ones(2, 5, dtype=torch.int64), targets=torch.full((2, 5), 7))
