"""Optimizers by hand: M3 and Muon one parameter at a time, AdamW with a period for each level."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(x: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of one matrix towards 1."""
    a, b, c = COEFFICIENTS
    tall = x.shape[0] > x.shape[1]
    y = x.T if tall else x
    y = y / y.norm().clamp_min(1e-7)
    for _ in range(steps):
        gram = y @ y.T
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y.T if tall else y


class MuonLoop(torch.optim.Optimizer):
    """Muon, parameter by parameter, in the parameters' precision."""

    def __init__(self, params: Iterable[Tensor], lr: float, beta: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter."""
        for group in self.param_groups:
            for p in group["params"]:
                trace = self.state[p].setdefault("trace", torch.zeros_like(p))
                trace.mul_(group["beta"]).add_(p.grad)
                stretch = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.add_(newton_schulz(p.grad + group["beta"] * trace), alpha=-group["lr"] * stretch)


class M3Loop(torch.optim.Optimizer):
    """M3 (algorithm 1 with running averages and a step of fixed size), parameter by parameter.

    The slow memory moves every `period` steps by the sum of the gradients, and is seen from the next step on; its
    orthogonalised form is kept until then.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float, float] = (0.95, 0.999, 0.9),
        mix: float = 0.5,
        period: int = 8,
        rms: float = 0.2,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "mix": mix, "period": period, "rms": rms, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter."""
        for group in self.param_groups:
            for p in group["params"]:
                self._move(p, self.state[p], group)

    def _move(self, p: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        beta1, beta2, beta3 = group["betas"]
        if not state:
            state["count"] = 0
            state |= {name: torch.zeros_like(p) for name in ("fast", "slow", "turned", "sum", "square")}
        assert p.grad is not None
        state["count"] += 1
        state["fast"].mul_(beta1).add_(p.grad, alpha=1 - beta1)
        state["square"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        state["sum"].add_(p.grad)
        root = (state["square"] / (1 - beta2 ** state["count"])).sqrt_().add_(group["eps"])
        step = torch.add(newton_schulz(state["fast"]), state["turned"], alpha=group["mix"]).div_(root)
        scale = step.square().mean().sqrt().clamp_min(1e-12).reciprocal().mul(group["lr"] * group["rms"])
        p.addcmul_(step, scale, value=-1)
        if state["count"] % group["period"] == 0:
            state["slow"].mul_(beta3).add_(state["sum"], alpha=1 - beta3)
            state["turned"] = newton_schulz(state["slow"])
            state["sum"].zero_()


class PeriodicAdamW:
    """An AdamW for each level, stepped once a period on the gradients summed since."""

    def __init__(self, levels: Sequence[Sequence[Tensor]], periods: Sequence[int], lr: float) -> None:
        self.optimizers = [torch.optim.AdamW(level, lr=lr) for level in levels]
        self.periods = periods
        self.count = 0

    def step(self) -> None:
        """Move the levels whose period closes."""
        self.count += 1
        for optimizer, period in zip(self.optimizers, self.periods, strict=True):
            if self.count % period == 0:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
