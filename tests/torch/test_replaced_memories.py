"""Memories and passes that are replaced, or are one at several places: each call reads what is there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import nsam

TEXT = """nsam 1
use std.rules (gd)
system s(dim: int = 4) {
  input x: [dim]
  memory q, k : linear(dim -> dim)
  memory level[p in [1, 2]] : linear(dim -> dim)
  memory m : linear(dim -> dim) { learn q(x) -> k(x); minimize l2; by gd(lr = 0.1); every 2 tokens }
  output chain(level, m(k(x)))
}
system passes(dim: int = 4) {
  input x: [dim]
  let h = x
  repeat 3 {
    memory m : linear(dim -> dim) { learn h -> h; minimize l2; by gd(lr = 0.1); every 2 tokens }
    h = h + m(h)
  }
  output h
}
system learns(vocab: int = 4, dim: int = 4) {
  input tokens: token(vocab)
  memory embed : table(vocab, dim)
  let h = embed(tokens)
  repeat 2 {
    memory m : linear(dim -> dim) { minimize task; by gd(lr = 0.1); every 4 tokens }
    h = h + m(h)
  }
  output embed.T(h)
}
"""
BACKENDS = ["torch", "reference"]


def module(system: str = "s", backend: Any = "torch", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nsam.compile(nsam.loads(TEXT), system, compiled=False, backend=backend).double()


def inputs() -> Tensor:
    return torch.randn(2, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(system: Any) -> dict[str, Tensor]:
    system(inputs())[0].square().sum().backward()
    return {name: p.grad for name, p in system.named_parameters(remove_duplicate=False)}


def names(system: Any) -> dict[str, list[str]]:
    """The names that each parameter has, by its first one."""
    found: dict[int, list[str]] = {}
    for name, p in system.named_parameters(remove_duplicate=False):
        found.setdefault(id(p), []).append(name)
    return {all_[0]: all_ for all_ in found.values()}


def assert_reads_what_is_there(system: Any) -> None:
    """Output and gradients are those of a system with these weights that are all its own."""
    own = module()
    own.load_state_dict(system.state_dict())
    torch.testing.assert_close(system(inputs())[0], own(inputs())[0], rtol=1e-12, atol=1e-12)
    found, alone = gradients(system), gradients(own)
    for first, several in names(system).items():
        torch.testing.assert_close(found[first], sum(alone[name] for name in several), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("called", [False, True])
def test_a_memory_may_be_replaced(backend: Any, called: bool) -> None:
    system, other = module(backend=backend), module(backend=backend, seed=1)
    if called:
        system(inputs())
    system.k, system.level._modules["1"] = other.k, copy.deepcopy(other.m)
    assert_reads_what_is_there(system)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("called", [False, True])
def test_a_memory_may_have_several_places(backend: Any, called: bool) -> None:
    system = module(backend=backend)
    if called:
        system(inputs())
    system.k = system.level._modules["1"] = system.q
    assert_reads_what_is_there(system)


@pytest.mark.parametrize("called", [False, True])
def test_a_layer_of_torch_may_have_the_place_of_a_memory(called: bool) -> None:
    system = module()
    if called:
        system(inputs())
    system.k = nn.Linear(4, 4, bias=False).double()
    assert_reads_what_is_there(system)


def test_a_copy_reads_its_own_memories() -> None:
    system = module()
    system(inputs())
    other = copy.deepcopy(system)
    with torch.no_grad():
        other.k.weight.zero_()
    assert not torch.equal(system(inputs())[0], other(inputs())[0])
    assert_reads_what_is_there(other)


@pytest.mark.parametrize("name", ["passes", "learns"])
def test_passes_may_be_one_module(name: str) -> None:
    """As many passes as before, each with a state of its own."""
    tied, alike = module(name), module(name)
    for i in range(1, len(tied.repeat)):
        tied.repeat[i] = tied.repeat[0]
        alike.repeat[i].load_state_dict(alike.repeat[0].state_dict())
    results = []
    for system in (tied, alike):
        x = inputs() if name == "passes" else torch.arange(7)[None] % 4
        first, state = system(x)
        results.append([first, system(x, state)[0]])
    torch.testing.assert_close(*results, rtol=0, atol=0)


OLD = {
    "spectral_norm": torch.nn.utils.spectral_norm,
    "prune": lambda memory: prune.l1_unstructured(memory, "weight", 0.5),
}


@pytest.mark.parametrize("old", OLD)
def test_what_renews_a_weight_before_a_call_is_refused(old: str) -> None:
    """A memory is never called: its weight would stay what it was."""
    system = module()
    OLD[old](system.level[1])
    with pytest.raises(RuntimeError, match=r"`level\.1\.weight` is no parameter.*torch\.nn\.utils\.parametrizations"):
        system(inputs())


def test_what_is_pruned_for_good_is_read() -> None:
    system = module()
    prune.l1_unstructured(system.k, "weight", 0.5)
    prune.remove(system.k, "weight")
    assert_reads_what_is_there(system)


def test_hooks_that_look_on_are_let_pass() -> None:
    system = module()
    for each in system.modules():
        each.register_forward_pre_hook(lambda *_: None)
    assert_reads_what_is_there(system)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_memory_that_is_sharded_by_itself_is_refused(tmp_path: Any) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole, single = module(), module()
        wanted = whole(inputs())[0]
        fully_shard(whole, mesh=mesh)
        assert torch.equal(whole(inputs())[0], wanted)
        fully_shard(single.k, mesh=mesh)
        with pytest.raises(RuntimeError, match=r"`k\.weight` is sharded by itself.*whole compiled module"):
            single(inputs())
    finally:
        dist.destroy_process_group()
