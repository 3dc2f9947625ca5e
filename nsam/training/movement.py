"""How far each level has moved since the run began: the step-clock side of what the inner losses show."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import nn

from nsam.compiler.graph import levels_of, ordered
from nsam.dsl.checked import Train

_PASS = re.compile(r"(^|\.)(repeat(?:_[0-9]+)?)\.[0-9]+\.")


def level_of_weights(train: Train, names: Mapping[str, object]) -> dict[str, int]:
    """Return the level of each weight by `state_dict` name, 1 the fastest.

    The weights of a fast memory are its initial state; they are counted on that memory's level.
    """
    levels = levels_of(ordered(train.model, train))
    return {name: levels[_PASS.sub(r"\1\2.*.", name.rpartition(".")[0] + ".").removesuffix(".")] for name in names}


class Movement:
    """Relative distance of each level's weights from where they began: ‖W − W₀‖ / ‖W₀‖ over the level."""

    def __init__(self, levels: Mapping[str, int], weights: Mapping[str, torch.Tensor]) -> None:
        """Remember `weights` as W₀; on a resumed run these are the seed's, as they were at step 0."""
        self._levels = dict(levels)
        self._start = {name: value.detach().clone() for name, value in weights.items()}

    def of(self, module: nn.Module) -> dict[int, float]:
        """Return the distance of each level; a level that began at zero is left out."""
        moved: dict[int, float] = defaultdict(float)
        size: dict[int, float] = defaultdict(float)
        for name, value in module.state_dict().items():
            start, level = self._start[name], self._levels[name]
            moved[level] += float((value - start).square().sum())
            size[level] += float(start.square().sum())
        return {level: (moved[level] / size[level]) ** 0.5 for level in sorted(moved) if size[level] > 0}
