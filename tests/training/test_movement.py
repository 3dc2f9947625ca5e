"""How far levels move: each weight is counted on its memory's level, passes of a repeat together."""

from __future__ import annotations

import torch
from torch import nn

from nsam import api
from nsam.training.movement import Movement, level_of_weights

PROGRAM = """nsam 1

use std.rules (dgd, gd)

system block(dim: int) {
  input x: [dim]
  memory k : linear(dim -> dim)
  memory fast : linear(dim -> dim) { learn k(x) -> x; minimize l2; by dgd(lr = 0.5); every 4 tokens }
  memory slow : linear(dim -> dim) { minimize task; every 3 steps }
  output x + fast(slow(x))
}

system model(vocab: int = 256, dim: int = 8) {
  input tokens: token(vocab)
  memory embed : table(vocab, dim)
  let h = embed(tokens)
  repeat 2 { h = h + block(h, dim) }
  output embed.T(h)
}

train bytes {
  model    model()
  data     text(context = 16, batch = 2)
  minimize cross_entropy(model(tokens), next(tokens))
  by       gd(lr = 0.1)
  every    1 step
  steps    3
}
"""


def test_every_weight_has_the_level_of_its_memory() -> None:
    train = api.loads(PROGRAM).train("bytes")
    module = api.compile_unit(train.model, compiled=False)
    levels = level_of_weights(train, module.state_dict())
    assert set(levels) == set(module.state_dict())
    for i in (0, 1):
        assert levels[f"repeat.{i}.block.fast.weight"] == 1
        assert levels[f"repeat.{i}.block.k.weight"] == levels["embed.weight"]
        assert levels[f"repeat.{i}.block.slow.weight"] > levels["embed.weight"] > 1


def test_distance_is_relative_and_by_level() -> None:
    module = nn.Module()
    module.a = nn.Parameter(torch.tensor([3.0, 4.0]))
    module.b = nn.Parameter(torch.tensor([1.0]))
    module.c = nn.Parameter(torch.zeros(2))
    movement = Movement({"a": 1, "b": 2, "c": 3}, module.state_dict())
    assert movement.of(module) == {1: 0.0, 2: 0.0}
    with torch.no_grad():
        module.a += torch.tensor([0.0, 0.5])
        module.b *= -1
        module.c += 1
    assert movement.of(module) == {1: 0.1, 2: 2.0}
