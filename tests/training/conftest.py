"""A small model behind the names of `nsam.api`, so that the loop is tested without the compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nsam.dsl.checked import (
    Apply,
    Constant,
    Input,
    Memory,
    Output,
    Ref,
    Reset,
    Rule,
    RuleUse,
    Structure,
    Train,
    Unit,
    ValueType,
)
from nsam.dsl.spans import Source, Span

SPAN = Span(Source("tiny.nsam", "nsam 1\n"), 0, 4)


def tiny_train(
    steps: int = 12, context: int = 16, batch: int = 4, vocab: int = 256, dim: int = 8, reset: str = "sequence"
) -> Train:
    """A train declaration as the checker would hand it over."""
    token = ValueType((), vocab=vocab)
    scores = ValueType((vocab,))
    scalar = ValueType((), "constant")
    unit = Unit(
        name="tiny",
        parameters={"dim": dim, "vocab": vocab},
        inputs=(Input("tokens", token, SPAN),),
        memories=(Memory("embed", Structure("table", (vocab, dim)), SPAN, reset=Reset(reset)),),  # type: ignore[arg-type]
        steps=(),
        outputs=(("output", Ref(scores, SPAN, "h")),),
        transfers=(),
        span=SPAN,
    )
    objective = Apply(
        scalar,
        SPAN,
        "cross_entropy",
        (Output(scores, SPAN, "model"), Apply(token, SPAN, "next", (Ref(token, SPAN, "tokens"),))),
    )
    rule = Rule("adamw", ("lr",), (), frozenset(), SPAN)
    use = RuleUse(rule, (("lr", Constant(scalar, SPAN, 1e-2)),), SPAN)
    return Train(
        "tiny_bytes", unit, ("text", {"context": context, "batch": batch}), objective, ((use, "all"),), 1, steps, SPAN
    )


class TinyModel(nn.Module):
    """A decaying sum of embeddings, read out by the same table: a state that is carried, causal."""

    def __init__(self, vocab: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.randn(vocab, dim) * 0.3)
        self.mix = nn.Parameter(torch.randn(dim, dim) / dim**0.5)
        self.poison_at: int | None = None
        self.calls = 0

    def forward(self, x: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        self.calls += 1
        carried = torch.zeros(x.shape[0], self.embed.shape[1]) if state is None else state["sum"]
        count = 0 if state is None else state["count"]
        outputs = []
        for token in x.unbind(1):
            carried = 0.9 * carried + self.embed[token]
            outputs.append(torch.tanh(carried @ self.mix.T) @ self.embed.T)
        y = torch.stack(outputs, 1)
        if self.poison_at is not None and self.calls >= self.poison_at:
            y = y * float("nan")
        return y, {"sum": carried, "count": count + x.shape[1]}


class FakeApi:
    """The part of `nsam.api` that training uses. `calls` counts what was asked for."""

    def __init__(self) -> None:
        self.new_sequences = 0
        self.poison_at: int | None = None
        self.extra: tuple[str, tuple[int, ...]] | None = None

    def compile_unit(
        self,
        unit: Unit,
        *,
        compiled: bool = True,
        cpp_wrapper: bool = False,
        truncated: bool = False,
        observe: bool = False,
        without: Sequence[str] = (),
        keys: bool = False,
    ) -> nn.Module:
        module = TinyModel(int(unit.parameters["vocab"]), int(unit.parameters["dim"]))  # type: ignore[arg-type]
        module.poison_at = self.poison_at
        if self.extra is not None:
            module.register_parameter(self.extra[0], nn.Parameter(torch.zeros(self.extra[1])))
        return module

    def train_optimizer(
        self, train: Train, module: nn.Module, *, compiled: bool = False, products: torch.dtype | None = None
    ) -> torch.optim.Optimizer:
        return torch.optim.AdamW(module.parameters(), lr=1e-2)

    def new_sequence(self, state: Any) -> Any:
        self.new_sequences += 1
        return state

    def memory_report(self, module: nn.Module, state: Any) -> Mapping[str, Mapping[str, Any]]:
        return {
            "repeat.0.titans.mem": {"level": 2, "loss": float(state["sum"].square().mean())},
            "repeat.0.titans.k": {"level": 1, "loss": 0.5},
        }


def words(count: int) -> Iterable[str]:
    """Some text that is not all the same."""
    return (f"line {i}: {'abcdefghij'[i % 10] * (i % 7 + 1)} end" for i in range(count))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    monkeypatch.setattr("nsam.training.loop.api", fake)
    monkeypatch.setattr("nsam.training.loop.level_of_weights", lambda train, names: dict.fromkeys(names, 3))
    return fake


@pytest.fixture
def make_train() -> Callable[..., Train]:
    return tiny_train


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(words(300)))
    return path
