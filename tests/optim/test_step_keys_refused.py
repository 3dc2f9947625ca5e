"""Where a rule that uses `key` cannot be an optimizer, and what is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from keyed_programs import HEAD, LINEAR, MLP, compiled
from torch import nn

import nsam


def refused(text: str, rule: str = "dgd", **options: Any) -> tuple[str, str]:
    module = compiled(text, **options)
    with pytest.raises(nsam.ProgramError) as caught:
        nsam.optimizer("std.rules", rule, module, lr=0.1)
    (found,) = caught.value.diagnostics
    assert found.code == "N0226"
    return found.message, found.help or ""


def test_a_module_compiled_without_keys_is_refused_with_what_to_do() -> None:
    message, help = refused(MLP, keys=False)
    assert "`dgd` needs `key`" in message
    assert "`a.weight`" in message
    assert "nsam.compile(…, keys=True)" in help
    message, help = refused(MLP, backend="reference")
    assert "nsam.compile(…, keys=True)" in help


def test_bare_tensors_and_modules_of_torch_are_refused() -> None:
    for target in (nn.Linear(2, 2, bias=False), [nn.Parameter(torch.ones(2, 2))]):
        with pytest.raises(nsam.ProgramError, match="N0226") as caught:
            nsam.optimizer("std.rules", "dgd", target, lr=0.1)
        assert "keys=True" in (caught.value.diagnostics[0].help or "")


OF_ERR = (
    HEAD
    + """
rule of_err(lr) { self <- self - lr * grad - lr * outer(err, err) @ self }
system net(dim: int = 4) { input x: [dim]; memory w : linear(dim -> dim); output w(x) }
"""
)


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("rule", ["generalized_huber", "generalized_lp"])
def test_sums_are_not_enough_where_each_token_is_needed(rule: str, keys: bool) -> None:
    module = compiled(MLP, keys=keys)
    with pytest.raises(nsam.ProgramError) as caught:
        nsam.optimizer("std.optimizers", rule, module, lr=0.1)
    (found,) = caught.value.diagnostics
    assert found.code == "N0226"
    assert f"`{rule}` needs `key`, the input of a layer of each token" in found.message
    assert '`nsam.compile(…, keys="tokens")`' in (found.help or "")


def test_a_rule_of_errors_alone_needs_its_layers_too() -> None:
    own = nsam.loads(OF_ERR)
    for target, said in ((compiled(OF_ERR), "of each token"), ([nn.Parameter(torch.ones(2, 2))], "tensors alone")):
        with pytest.raises(nsam.ProgramError) as caught:
            nsam.optimizer(own, "of_err", target, lr=0.1)
        (found,) = caught.value.diagnostics
        assert found.code == "N0226"
        assert "`err`, the error at the output of a layer" in found.message
        assert said in found.message
        assert 'keys="tokens"' in (found.help or "")


def test_parameters_without_layer_inputs_are_named() -> None:
    fast = (
        HEAD
        + "system net(dim: int = 4) { input x: [dim]\n memory m : linear(dim -> dim) "
        + "{ learn x -> x; minimize l2; by gd(lr = 0.1); every 4 tokens }\n output m(x) }\n"
    )
    assert "`m.weight` has none: it is what `m`, which moves" in refused(fast)[0]
    norm = HEAD + "system net(dim: int = 4) { input x: [dim]; memory n : rmsnorm(dim); output n(x) }\n"
    message, help = refused(norm)
    assert "`n` is a rmsnorm" in message
    assert "for others" in help
    with pytest.raises(nsam.ProgramError, match=r"`m\.weight` has none: it is what `m`, which moves"):
        nsam.optimizer("std.optimizers", "generalized_huber", compiled(fast, keys="tokens"), lr=0.1)


@pytest.mark.parametrize("keys", [True, "tokens"])
def test_a_gradient_from_elsewhere_is_an_error(keys: Any) -> None:
    module = compiled(LINEAR, keys=keys)
    library, rule = ("std.rules", "dgd") if keys is True else ("std.optimizers", "generalized_huber")
    optimizer = nsam.optimizer(library, rule, module, lr=0.1)
    module.get_parameter("w.weight").grad = torch.ones(3, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"`w\.weight` has a gradient, but its layer's inputs did not come"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_several_processes_are_refused(tmp_path: Any) -> None:
    import torch.distributed as dist

    module = compiled(LINEAR)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with pytest.raises(nsam.ProgramError, match="not averaged"):
            nsam.optimizer("std.rules", "dgd", module, lr=0.1, sharded=True)
    finally:
        dist.destroy_process_group()
