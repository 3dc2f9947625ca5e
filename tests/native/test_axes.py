"""Which dimensions hold sequences and heads."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from nsam.backends.torch.native.axes import Axes, vote
from nsam.backends.torch.native.labels import Labels
from nsam.backends.torch.native.values import Buffer, View, contiguous, reshape


@pytest.mark.parametrize(
    ("shape", "label", "wanted", "expected"),
    [
        ((8, 4, 5, 6), ((0,), (1,), (), ()), (32, 5, 6), ((0, 1), (), ())),
        ((8, 4, 5, 6), ((0,), (1,), (), ()), (160, 6), ((0, 1), ())),
        ((32, 5, 6), ((0, 1), (), ()), (8, 4, 5, 6), ((0,), (1,), (), ())),
        ((8, 64, 4, 16), ((0,), (), (1,), ()), (8, 64, 64), ((0,), (), (1,))),
        ((8, 64, 4, 16), ((0,), (), (1,), ()), (512, 64), ((0,), (1,))),
        ((8, 64, 4, 16), ((0,), (), (1,), ()), (8, 256, 16), None),
        ((8, 12), ((0,), ()), (8, 3, 4), ((0,), (), ())),
        ((8, 12), ((0,), ()), (16, 6), ((0,), ())),
        ((8, 12), ((0,), ()), (12, 8), None),
        ((8, 1, 12), ((0,), (), ()), (8, 12, 1), ((0,), (), ())),
    ],
)
def test_views_keep_axes_in_front(shape: object, label: object, wanted: object, expected: object) -> None:
    assert Axes((8, 4)).reshape(shape, label, wanted) == expected  # type: ignore[arg-type]


def test_one_instance_of_a_tensor() -> None:
    axes = Axes((8, 4))
    label = ((0, 1), (), ())
    assert axes.inner((64, 5, 6), label) == (2, 5, 6)
    assert axes.strides((64, 5, 6), (30, 6, 1), label) == (240, 60)
    assert Axes((1, 4)).count == 4
    assert vote([(8, 4, 3, 3), (8, 4, 2, 2), (8, 1, 2, 2), (5,)]).sizes == (8, 4)
    assert vote([(5,), (3, 4)]).count == 1


def test_what_mixes_sequences_is_outside() -> None:
    def run(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.sin(x)
        return y.sum(0), y @ w, y[0], torch.cat([y, y], 1), y.permute(0, 1, 3, 2), y * y.mean((2, 3), keepdim=True)

    graph = make_fx(run)(torch.randn(3, 2, 4, 5), torch.randn(5, 5)).graph
    for node in graph.nodes:
        value = node.meta.get("val")
        if value is None and "tensor_meta" in node.meta:
            node.meta["val"] = torch.empty(node.meta["tensor_meta"].shape)
    labels = Labels(graph)
    outputs = next(node for node in graph.nodes if node.op == "output").args[0]
    assert [node in labels.inside for node in outputs] == [False, False, False, False, True, True]


@pytest.mark.parametrize(
    ("strides", "wanted", "expected"),
    [
        ((20, 5, 1), (4, 15), (20, 1)),
        ((20, 5, 1), (12, 5), None),
        ((15, 5, 1), (4, 15), (15, 1)),
        ((15, 5, 1), (12, 5), (5, 1)),
        ((1, 4, 12), (4, 15), None),
    ],
)
def test_strides_of_views(strides: tuple[int, ...], wanted: tuple[int, ...], expected: object) -> None:
    view = View(Buffer("x", 100, "own"), (4, 3, 5), strides)
    seen = reshape(view, wanted)
    assert (seen and seen.strides) == expected  # type: ignore[union-attr]
    real = torch.empty(200).as_strided((4, 3, 5), strides)
    try:
        assert real.view(wanted).stride() == expected
    except RuntimeError:
        assert expected is None
    assert contiguous((4, 3, 5)) == (15, 5, 1)
