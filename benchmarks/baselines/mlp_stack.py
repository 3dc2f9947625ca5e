"""A chain of residual MLP blocks: the continuum memory system without levels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines.hope import TwoLayers


class MlpStack(nn.Module):
    """Blocks x + w2 gelu(w1 x), with the parameter names of the system `cms`."""

    def __init__(self, dim: int, blocks: int) -> None:
        super().__init__()
        self.level = nn.ModuleList(TwoLayers(dim=dim, hidden=4 * dim) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, dim] to the same."""
        for block in self.level:
            x = x + F.linear(F.gelu(F.linear(x, block.w1)), block.w2)  # type: ignore[arg-type]
        return x
