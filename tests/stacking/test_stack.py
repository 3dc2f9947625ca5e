"""Level stacking: pretrained models, as programs, say what they said; their levels can learn from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import nsam
from nsam.dsl.diagnostics import ProgramError
from nsam.dsl.format import format_source
from nsam.stacking import Stacked, stack
from nsam.verification import verify_unit

transformers = pytest.importorskip("transformers")
llama = pytest.importorskip("transformers.models.llama.modeling_llama")

VOCAB = 61
LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def pretrained(kind: str, **options: Any) -> Any:
    """A tiny model in float64 with every weight moved, biases and gains too, so that one left out would show."""
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(**(LLAMA | options))
        model = transformers.LlamaForCausalLM(config)
    else:
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(GPT2 | options)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.double().eval()


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits
    return found


def tokens(batch: int = 2, time: int = 37) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, time), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def precise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama's norms and rotary angles in the precision of the model; the library takes them in float32."""

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon)

    def angles(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        base, half = self.config.rope_parameters["rope_theta"], len(self.inv_freq)
        rates = base ** -(torch.arange(half, dtype=x.dtype) / half)
        found = (position_ids[..., None].to(x.dtype) * rates).repeat(1, 1, 2)
        return found.cos(), found.sin()

    monkeypatch.setattr(llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(llama.LlamaRotaryEmbedding, "forward", angles)


VARIANTS = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "rms_norm_eps": 1e-3, "num_key_value_heads": 4}),
    ("llama", {"head_dim": 12, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "hidden_act": "gelu"}),
    ("gpt2", {}),
    ("gpt2", {"n_inner": 40, "activation_function": "relu", "layer_norm_epsilon": 1e-2}),
]


@pytest.mark.usefixtures("precise")
@pytest.mark.parametrize(("kind", "options"), VARIANTS)
@pytest.mark.parametrize("levels", ["by_depth", "in_layer"])
def test_rate_zero_is_the_pretrained_model(kind: str, options: dict[str, Any], levels: Any) -> None:
    model, x = pretrained(kind, **options), tokens()
    module = stack(model, [4, 16], levels=levels).compile(compiled=False, rate=0)
    found, _ = module(x)
    assert (found - logits(model, x)).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_as_the_library_computes_it(kind: str) -> None:
    """Llama's norms are in float32 there whatever the precision of the model: 1e-6 for logits of size 1."""
    model, x = pretrained(kind), tokens()
    wanted = logits(model, x)
    found, _ = stack(model, [4, 16]).compile(compiled=False, rate=0)(x)
    assert (found - wanted).abs().max() < 1e-6
    found, _ = stack(model.float(), [4, 16]).compile(compiled=False, rate=0)(x)
    assert found.dtype is torch.float32
    assert (found - wanted).abs().max() < 1e-4


@pytest.mark.usefixtures("precise")
@pytest.mark.parametrize("levels", ["by_depth", "in_layer"])
def test_the_step_clock_too(levels: Any) -> None:
    model, x = pretrained("llama"), tokens()
    module = stack(model, [1, 4], clock="steps", levels=levels).compile(compiled=False)
    found, _ = module(x)
    assert (found - logits(model, x)).abs().max() < 1e-10
    periods = module.nsam_periods
    assert {p for name, p in periods.items() if ".level" in name} == {1, 4} or set(periods.values()) == {4}


@pytest.mark.usefixtures("precise")
def test_streaming_continues_the_sequence() -> None:
    model, x = pretrained("gpt2"), tokens()
    module = stack(model, [4, 16]).compile(compiled=False, rate=0)
    first, state = module(x[:, :11])
    second, state = module(x[:, 11:12], state)
    third, _ = module(x[:, 12:], state)
    assert (torch.cat([first, second, third], 1) - logits(model, x)).abs().max() < 1e-10


@pytest.mark.usefixtures("precise")
def test_levels_learn_in_the_sequence_once_there_is_a_correction() -> None:
    model, x = pretrained("llama"), tokens()
    module = stack(model, [4, 16], rate=0.5).compile(compiled=False)
    wanted = logits(model, x)
    found, _ = module(x)
    assert (found - wanted).abs().max() < 1e-10, "the correction is zero: nothing moves, whatever the rate"
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("correction.weight"):
                parameter.copy_(torch.randn_like(parameter))
    found, _ = module(x)
    assert (found - wanted)[:, :4].abs().max() < 1e-10, "before the first boundary"
    assert (found - wanted)[:, 4:].abs().amax((0, 2)).min() > 1e-4, "after it"


def test_everything_learns() -> None:
    module = stack(pretrained("llama"), [4, 16], levels="in_layer", rate=0.5).compile(compiled=False)
    x = tokens(1, 37)
    found, _ = module(x[:, :-1])
    torch.nn.functional.cross_entropy(found[0], x[0, 1:]).backward()
    still = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Shares of levels that are still equal have no gradient; they come apart with the first step of the corrections.
    assert all(name.endswith("share.weight") for name in still), still


@pytest.mark.parametrize(
    ("kind", "levels"), [pytest.param("llama", "in_layer", marks=pytest.mark.slow), ("gpt2", "by_depth")]
)
def test_programs_verify(kind: str, levels: Any) -> None:
    options = {"hidden_size": 8, "intermediate_size": 6, "head_dim": 2} if kind == "llama" else {"n_embd": 8}
    stacked = stack(pretrained(kind, **options), [3, 6], levels=levels)
    report = verify_unit(stacked.program().instantiate("stacked", {}), stability_tokens=2048)
    assert report.ok, [row for row in report.rows if row.result == "failed"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("clock", ["tokens", "steps"])
@pytest.mark.parametrize("levels", ["by_depth", "in_layer"])
def test_texts_are_formatted_programs(kind: str, clock: Any, levels: Any) -> None:
    text = stack(pretrained(kind), [2], clock=clock, levels=levels).text
    assert format_source(text) == text
    assert not nsam.loads(text).warnings


def test_layers_are_shared_out_over_the_periods() -> None:
    text = stack(pretrained("gpt2", n_layer=5), [1, 8]).text
    assert [line.split()[1] for line in text.splitlines() if "repeat" in line] == ["2", "3"]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: stack(torch.nn.Linear(2, 2)), "Linear is not one of them"),
        (lambda: stack(pretrained("llama", mlp_bias=True)), "gates with a bias"),
        (lambda: stack(pretrained("llama", hidden_act="leaky_relu")), "the activation `leaky_relu`"),
        (
            lambda: stack(
                pretrained("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
            ),
            "positions of type `linear`",
        ),
        (lambda: stack(pretrained("gpt2", scale_attn_by_inverse_layer_idx=True)), "scaled by the layer's number"),
        (lambda: stack(pretrained("gpt2"), [1, 2, 3]), "3 periods for 2 layers"),
        (lambda: stack(pretrained("gpt2"), []), "periods are a list of whole numbers"),
        (lambda: stack(pretrained("gpt2"), [0]), "periods are a list of whole numbers"),
        (lambda: stack(pretrained("gpt2"), [True]), "periods are a list of whole numbers"),
        (lambda: stack(pretrained("gpt2"), 4), "periods are a list of whole numbers"),  # type: ignore[arg-type]
        (lambda: stack(pretrained("gpt2"), None), "periods are a list of whole numbers"),  # type: ignore[arg-type]
        (lambda: stack(pretrained("gpt2"), torch.tensor([1, 2])), "periods are a list of whole numbers"),  # type: ignore[arg-type]
        (lambda: stack(pretrained("gpt2"), rate=None), "rate is a finite number"),  # type: ignore[arg-type]
        (lambda: stack(pretrained("gpt2"), rate="0.1"), "rate is a finite number"),  # type: ignore[arg-type]
        (lambda: stack(pretrained("gpt2"), rate=float("nan")), "rate is a finite number"),
        (lambda: stack(pretrained("gpt2"), rate=float("inf")), "rate is a finite number"),
        (lambda: stack(pretrained("gpt2"), clock="days"), "count tokens or steps"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_stacked_is_refused(make: Callable[[], Stacked], why: str) -> None:
    with pytest.raises(ProgramError, match=why) as error:
        make()
    assert error.value.diagnostics[0].code == "N0518"
