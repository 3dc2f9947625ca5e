"""The loop: it learns, resumes exactly, stops at what is not finite, and refuses foreign checkpoints."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

from nsam.backends.torch.optim import optimizer
from nsam.backends.torch.optim_rules import EVERY
from nsam.dsl.checked import Apply, Train, ValueType
from nsam.dsl.diagnostics import ProgramError
from nsam.dsl.program import standard_rule
from nsam.runs.checkpoint import checkpoints, latest_checkpoint, load_checkpoint
from nsam.runs.folder import RunFolder
from nsam.runs.metrics import read_metrics
from nsam.training.continued import go_on
from nsam.training.corpus import load_corpus
from nsam.training.limits import memory_errors
from nsam.training.loop import Outcome, Trainer
from nsam.training.objective import require_byte_model
from nsam.training.progress import Progress
from nsam.training.settings import Settings, require_cache, require_device, why_no_graph, why_slow
from tests.recorder import Again

MakeTrain: TypeAlias = Callable[..., Train]


class Silent:
    def __init__(self, at: Callable[[Progress], None] | None = None) -> None:
        self.at, self.seen = at, []  # type: ignore[var-annotated]

    def started(self, step: int, steps: int) -> None:
        self.seen.append(("started", step))

    def stepped(self, progress: Progress) -> None:
        self.seen.append(("stepped", progress.step))
        if self.at is not None:
            self.at(progress)

    def evaluated(self, progress: Progress) -> None:
        self.seen.append(("evaluated", progress.step))

    def saved(self, step: int, path: Path) -> None:
        self.seen.append(("saved", step))


def trainer(train: Train, text: Path, folder: Path, resume: bool = False, **settings: object) -> Trainer:
    options = Settings(compiled=False, held_out_batches=2, **settings)  # type: ignore[arg-type]
    context = train.data[1]["context"]
    assert isinstance(context, int)
    run = RunFolder(folder)
    checkpoint = load_checkpoint(latest_checkpoint(run.checkpoints)) if resume else None
    return Trainer(train, load_corpus([text], context), options, run, checkpoint)


def losses(folder: Path) -> list[tuple[int, str, float]]:
    return [
        (line["step"], name, line[name])
        for line in read_metrics(folder / "metrics.jsonl")
        for name in ("loss", "held_out")
        if name in line
    ]


def code(caught: pytest.ExceptionInfo[ProgramError]) -> str:
    (found,) = caught.value.diagnostics
    return found.code


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_it_learns(api: Any, make_train: MakeTrain, text: Path, run_dir: Path) -> None:
    outcome = trainer(make_train(steps=40), text, run_dir).run(Silent())
    first = losses(run_dir)[0][2]
    assert outcome.step == 40
    assert not outcome.interrupted
    assert abs(first - math.log(256)) < 1.5
    assert outcome.held_out is not None
    assert outcome.held_out < first - 1


def test_resumed_run_continues_the_same_curve(api: Any, make_train: MakeTrain, text: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = trainer(make_train(steps=12), text, whole).run(Silent())
    first = trainer(make_train(steps=12), text, parts, checkpoint_steps=1)

    def kill(progress: Progress) -> None:
        if progress.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(Silent(kill))
    # Step 7 was done but not saved: a resumed run does it again, and the metrics have it once.
    assert [step for step, _ in checkpoints(parts / "checkpoints")] == [5, 6]
    torch.manual_seed(999)
    outcome = trainer(make_train(steps=12), text, parts, resume=True).run(Silent())
    assert outcome.loss == expected.loss
    assert outcome.held_out == expected.held_out
    assert losses(parts) == losses(whole)
    a = load_checkpoint(latest_checkpoint(whole / "checkpoints"))
    b = load_checkpoint(latest_checkpoint(parts / "checkpoints"))
    assert a.step == b.step == 12
    assert all(torch.equal(a.model[name], b.model[name]) for name in a.model)
    assert str(a.optimizer) == str(b.optimizer)


def test_a_level_that_moves_every_few_steps_sums_and_resumes_in_between(
    api: Any, make_train: MakeTrain, text: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    weights: dict[int, torch.Tensor] = {}
    running = trainer(replace(make_train(steps=7), every=3), text, whole)
    running.run(Silent(lambda progress: weights.update({progress.step: running.module.mix.detach().clone()})))
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert torch.equal(weights[3], weights[5])
    trainer(replace(make_train(steps=4), every=3), text, parts, evaluations=1).run(Silent())
    kept = load_checkpoint(latest_checkpoint(parts / "checkpoints"))
    assert set(kept.gradients) == {"embed", "mix"}
    trainer(replace(make_train(steps=7), every=3), text, parts, resume=True).run(Silent())
    a, b = (load_checkpoint(latest_checkpoint(path / "checkpoints")) for path in (whole, parts))
    assert a.step == b.step == 7
    assert all(torch.equal(a.model[name], b.model[name]) for name in a.model)


def test_state_that_is_never_reset_is_carried_and_resumed(
    api: Any, make_train: MakeTrain, text: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    train = make_train(steps=6, reset="never")
    trainer(train, text, whole).run(Silent())
    assert api.new_sequences == 6
    carried = load_checkpoint(latest_checkpoint(whole / "checkpoints")).memory
    assert carried["count"] == 6 * 16
    trainer(make_train(steps=3, reset="never"), text, parts, evaluations=1).run(Silent())
    trainer(train, text, parts, resume=True).run(Silent())
    assert torch.equal(load_checkpoint(latest_checkpoint(parts / "checkpoints")).memory["sum"], carried["sum"])


def test_nan_stops_with_the_last_good_checkpoint(api: Any, make_train: MakeTrain, text: Path, run_dir: Path) -> None:
    api.poison_at = 6
    with pytest.raises(ProgramError) as caught:
        trainer(make_train(), text, run_dir, checkpoint_steps=2, evaluations=1).run(Silent())
    assert code(caught) == "N0506"
    assert "step 6" in caught.value.diagnostics[0].message
    assert "step-000004" in caught.value.diagnostics[0].notes[0]
    kept = load_checkpoint(latest_checkpoint(run_dir / "checkpoints"))
    assert kept.step == 4
    assert all(bool(value.isfinite().all()) for value in kept.model.values())


def test_weights_that_are_not_finite_are_not_saved(api: Any, make_train: MakeTrain, text: Path, run_dir: Path) -> None:
    running = trainer(make_train(), text, run_dir, checkpoint_steps=1)

    def break_weight(progress: Progress) -> None:
        if progress.step == 3:
            with torch.no_grad():
                running.module.mix[0, 0] = math.inf

    with pytest.raises(ProgramError) as caught:
        running.run(Silent(break_weight))
    assert code(caught) == "N0506"
    assert load_checkpoint(latest_checkpoint(run_dir / "checkpoints")).step == 2


def test_ctrl_c_finishes_the_step_and_saves(api: Any, make_train: MakeTrain, text: Path, run_dir: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    outcome: Outcome = trainer(make_train(), text, run_dir).run(Silent(interrupt))
    assert outcome.interrupted
    assert outcome.step == 4
    assert load_checkpoint(latest_checkpoint(run_dir / "checkpoints")).step == 4
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_ctrl_c_stops_at_once(api: Any, make_train: MakeTrain, text: Path, run_dir: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer(make_train(), text, run_dir).run(Silent(interrupt))
    assert load_checkpoint(latest_checkpoint(run_dir / "checkpoints")).step == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 6}, "`embed` is [256, 8] there and [256, 6] in the program's model"),
        ({"extra": ("late", (3,))}, "it has no tensor `late`"),
    ],
)
def test_foreign_checkpoint_is_refused(
    api: Any, make_train: MakeTrain, text: Path, run_dir: Path, change: dict[str, Any], message: str
) -> None:
    trainer(make_train(steps=2), text, run_dir).run(Silent())
    api.extra = change.pop("extra", None)
    with pytest.raises(ProgramError) as caught:
        trainer(make_train(steps=4, **change), text, run_dir, resume=True)
    assert code(caught) == "N0507"
    assert message in caught.value.diagnostics[0].message


def test_states_of_an_optimizer_go_to_their_parameters_by_name() -> None:
    def made(*groups: dict[str, Any]) -> Any:
        listed = [{"params": [weights[name] for name in g["names"]], EVERY: g["every"]} for g in groups]
        return optimizer(standard_rule("adamw", {"lr": 0.1}), listed), [g["names"] for g in groups]

    weights = {name: torch.nn.Parameter(torch.ones(2, 2)) for name in "abc"}
    first, names = made({"names": ["a", "c"], "every": 1}, {"names": ["b"], "every": 1})
    for size, weight in enumerate(weights.values(), 1):
        weight.grad = torch.full((2, 2), float(size))
    first.step()
    second, other = made({"names": ["a", "b"], "every": 1}, {"names": ["c"], "every": 4})
    assert go_on(second, first.state_dict(), names, other, 1) == ("adamw.every 1 -> 4",)
    for weight in weights.values():
        assert torch.equal(second.state[weight]["v"], first.state[weight]["v"])
    assert [group[EVERY] for group in second.param_groups] == [1, 4]
    same, names = made({"names": ["a", "c"], "every": 1}, {"names": ["b"], "every": 1})
    assert go_on(same, first.state_dict(), (), names, 1) == ()


def test_saved_states_that_are_not_those_of_the_rule_are_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    first = optimizer(standard_rule("adamw", {"lr": 0.1}), [weight])
    first.step()
    for change in ({"v": torch.ones(3)}, {"v": None}):
        state = first.state_dict()
        state["state"][0] = {k: v for k, v in (state["state"][0] | change).items() if v is not None}
        with pytest.raises(ValueError, match="state `v` of the rule adamw"):
            first.load_state_dict(state)


def test_checkpoint_with_an_extra_tensor_is_refused(api: Any, make_train: MakeTrain, text: Path, run_dir: Path) -> None:
    api.extra = ("late", (3,))
    trainer(make_train(steps=2), text, run_dir).run(Silent())
    api.extra = None
    with pytest.raises(ProgramError) as caught:
        trainer(make_train(steps=4), text, run_dir, resume=True)
    assert "it has a tensor `late`" in caught.value.diagnostics[0].message


def test_a_finished_run_resumed_says_the_same_again(api: Any, make_train: MakeTrain, text: Path, run_dir: Path) -> None:
    first = trainer(make_train(), text, run_dir).run(Silent())
    before = (run_dir / "metrics.jsonl").read_text()
    again = trainer(make_train(), text, run_dir, resume=True).run(Silent())
    assert first.tokens_per_second is not None
    assert replace(again, elapsed=first.elapsed) == first
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_metrics_hold_memories_and_held_out_losses(api: Any, make_train: MakeTrain, text: Path, run_dir: Path) -> None:
    watcher = Silent()
    trainer(make_train(), text, run_dir).run(watcher)
    lines = read_metrics(run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "held_out" in line] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in lines if "memories" in line] == [1, 10, 12]
    assert lines[0]["memories"]["repeat.0.titans.k"] == {"level": 1, "loss": 0.5}
    moved = [line["moved"]["3"] for line in lines if "moved" in line]
    assert 0 < moved[0] < moved[1] < moved[2] < 1
    assert watcher.seen[0] == ("saved", 0)
    assert watcher.seen[-1] == ("saved", 12)


def test_a_run_whose_last_lines_were_cut_off_is_read_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n" + '{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


def test_models_that_are_not_of_bytes_are_refused(make_train: MakeTrain) -> None:
    require_byte_model(make_train())
    good = make_train()
    wrong = {
        "N0505": make_train(vocab=255),
        "N0513": replace(good, data=("images", {})),
        "N0511": replace(good, objective=Apply(ValueType((), "constant"), good.span, "l2", good.objective.arguments)),
    }
    for expected, train in wrong.items():
        with pytest.raises(ProgramError) as caught:
            require_byte_model(train)
        assert code(caught) == expected
    with pytest.raises(ProgramError) as caught:
        require_byte_model(replace(good, model=replace(good.model, inputs=())))
    assert code(caught) == "N0511"


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_running_out_of_memory_is_said_plainly(error: Exception, ours: bool) -> None:
    with pytest.raises(ProgramError if ours else RuntimeError) as caught, memory_errors():
        raise error
    if ours:
        assert caught.value.diagnostics[0].code == "N0517"  # type: ignore[attr-defined]


@pytest.mark.parametrize("every", [1, 3])
def test_recorded_steps_take_the_same_path(
    every: int, api: Any, make_train: MakeTrain, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nsam.backends.torch.cuda_graph.CudaRecorder", lambda device: Again())
    train = replace(make_train(steps=9), every=every)
    for name in ("plain", "recorded"):
        (tmp_path / name).mkdir()
        trainer(train, text, tmp_path / name, cuda_graph=name == "recorded").run(Silent())
    plain, recorded = losses(tmp_path / "plain"), losses(tmp_path / "recorded")
    assert [line[:2] for line in recorded] == [line[:2] for line in plain]
    assert [line[2] for line in recorded] == pytest.approx([line[2] for line in plain], rel=1e-6)


class Refuses(Again):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def record(self, run: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("asked", [None, True])
@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            RuntimeError("operation not permitted when stream is capturing\nand more"),
            "recording failed (operation not permitted when stream is capturing)",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "there is no memory to record it"),
    ],
)
def test_a_step_that_cannot_be_recorded_is_launched_and_that_is_said(
    error: Exception,
    why: str,
    asked: bool | None,
    api: Any,
    make_train: MakeTrain,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nsam.backends.torch.cuda_graph.CudaRecorder", lambda device: Refuses(error))
    monkeypatch.setattr("nsam.training.loop.why_no_graph", lambda train, settings: None)
    for name in ("plain", "refused"):
        (tmp_path / name).mkdir()
    trainer(make_train(steps=3), text, tmp_path / "plain", cuda_graph=False).run(Silent())
    run, told = trainer(make_train(steps=3), text, tmp_path / "refused", cuda_graph=asked), list[str | None]()
    watcher = Silent(lambda progress: told.append(progress.graph))
    if asked:
        with pytest.raises(ProgramError) as caught, memory_errors():
            run.run(watcher)
        assert code(caught) == ("N0517" if isinstance(error, torch.OutOfMemoryError) else "N0522")
        return
    run.run(watcher)
    assert told == [f"none, a step is launched piece by piece: {why}"] * 3
    assert losses(tmp_path / "refused") == losses(tmp_path / "plain")


@pytest.mark.parametrize(("device", "reset"), [("cpu", "sequence"), ("cuda", "never")])
def test_what_cannot_be_recorded_is_said(device: str, reset: str, make_train: MakeTrain) -> None:
    with pytest.raises(ProgramError) as caught:
        why_no_graph(make_train(reset=reset), Settings(device=device, cuda_graph=True))
    assert code(caught) == "N0522"


@pytest.mark.parametrize(
    ("settings", "reset", "reason"),
    [
        ({}, "sequence", None),
        ({"cuda_graph": True, "memory": 10**9}, "sequence", None),
        ({"memory": 10**9}, "sequence", "measured first"),
        ({"cuda_graph": False}, "sequence", "--no-cuda-graph"),
        ({}, "never", "never reset"),
        ({"device": "cpu"}, "sequence", "`cpu`"),
    ],
)
def test_steps_on_a_gpu_are_recorded_where_they_can_be(
    settings: dict[str, Any], reset: str, reason: str | None, make_train: MakeTrain
) -> None:
    found = why_no_graph(make_train(reset=reset), Settings(**{"device": "cuda", **settings}))
    assert found == reason if reason is None else reason in (found or "")


@pytest.mark.parametrize("known", [True, False])
def test_products_that_a_processor_has_no_instructions_for_are_told(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: known)
    assert why_slow(Settings()) is None
    said = why_slow(Settings(dtype="bfloat16"))
    assert said is None if known else said is not None and "leave --dtype out" in said


@pytest.mark.parametrize("part", ["progress", "sampler", "generators"])
def test_a_checkpoint_without_what_a_run_goes_on_from_is_damaged(
    part: str, api: Any, make_train: MakeTrain, text: Path, run_dir: Path
) -> None:
    trainer(make_train(steps=2), text, run_dir).run(Silent())
    file = latest_checkpoint(run_dir / "checkpoints") / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {part: {"$pairs": []}}))
    with pytest.raises(ProgramError) as caught:
        trainer(make_train(steps=4), text, run_dir, resume=True)
    assert code(caught) == "N0509"


def test_a_run_whose_metrics_are_damaged_is_read_to_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for damage in (b'{"step": 2, "x": "\xff"}', b"3", b'{"loss": 1.0}', b'{"step": "2"}'):
        path.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n')
        assert read_metrics(path) == [{"step": 1}]


@pytest.mark.parametrize("name", ["meta", "nothing", "hpu", "cuda:99999", ""])
def test_a_device_that_does_not_compute_here_is_refused(name: str) -> None:
    with pytest.raises(ProgramError) as caught:
        require_device(name)
    assert code(caught) == "N0512"


def test_one_of_several_gpus_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.zeros(*shape))  # there is none to compute on
    for name in ("cpu", "cuda", "cuda:1"):
        assert require_device(name) == torch.device(name)
    assert current == [torch.device("cuda:1")]


def test_a_folder_for_compiled_code_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    require_cache({})
    require_cache({"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "made" / "below")})
    with pytest.raises(ProgramError) as caught:
        require_cache({"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file" / "below")})
    assert code(caught) == "N0514"
