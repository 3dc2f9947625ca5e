"""Run folders: nothing half-written, nothing overwritten, nothing pickled."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from nsam.dsl.diagnostics import ProgramError
from nsam.runs import checkpoint as checkpoint_module
from nsam.runs.atomic import write_atomic
from nsam.runs.checkpoint import Checkpoint, checkpoints, latest_checkpoint, load_checkpoint, save_checkpoint
from nsam.runs.encoding import decode, encode
from nsam.runs.folder import RunDescription, claim_run, create_run, last_run, open_run
from nsam.runs.metrics import MetricsLog, read_metrics
from nsam.runs.plots import _smoothed, levels_plot, loss_plot
from nsam.training.sampling import as_text, harmless, pick

DESCRIPTION = RunDescription(
    train="tiny",
    overrides={"steps": 3, "periods": (1, 4)},
    main="tiny.nsam",
    data=(),
    fingerprint="f",
    context=16,
    batch=4,
    seed=1,
    dtype="float32",
    version="0",
)


def code(caught: pytest.ExceptionInfo[ProgramError]) -> str:
    (found,) = caught.value.diagnostics
    return found.code


def saved(folder: Path, step: int) -> Path:
    return save_checkpoint(folder, Checkpoint(step, {"w": torch.full((2,), float(step))}, {}))


def test_optimizer_state_survives_exactly() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.95))
    weight.square().sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    back = decode(json.loads(json.dumps(encode(state, "o", tensors))), tensors, "cpu")
    assert str(back) == str(state)
    assert torch.equal(back["state"][0]["exp_avg_sq"], state["state"][0]["exp_avg_sq"])
    assert back["param_groups"][0]["betas"] == (0.9, 0.95)


def test_shared_tensors_and_odd_values_survive() -> None:
    shared = torch.arange(4.0)
    value = {
        1: (shared, shared[::2]),
        "x": [None, True, 2, 0.5, "s", math.inf],
        "b": torch.tensor(3, dtype=torch.bfloat16),
        ("", "m", 0, ("weight", 1)): {"deep": shared},
    }
    tensors: dict[str, torch.Tensor] = {}
    back = decode(json.loads(json.dumps(encode(value, "v", tensors))), tensors, "cpu")
    assert str(back) == str(value)
    with pytest.raises(TypeError, match=r"object at v\.0"):
        encode([object()], "v", {})


def test_only_whole_checkpoints_count_and_two_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        saved(tmp_path, step)
    assert [step for step, _ in checkpoints(tmp_path)] == [2, 3]
    writes = []

    def fail_at_state(path: Path, content: bytes) -> None:
        writes.append(path.name)
        if path.name == "state.json":
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr(checkpoint_module, "write_durably", fail_at_state)
    with pytest.raises(ProgramError) as caught:
        saved(tmp_path, 4)
    assert code(caught) == "N0514"
    assert writes == ["model.safetensors", "state.safetensors", "state.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003"]
    assert load_checkpoint(latest_checkpoint(tmp_path)).model["w"].tolist() == [3.0, 3.0]


def test_what_a_stopped_run_had_half_written_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write_durably", stop)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".step-000001.tmp").mkdir()  # that of a run that was killed
    saved(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]
    (tmp_path / ".step-000003.tmp").mkdir()
    saved(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
def test_damaged_checkpoint_is_reported(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, 1)
    (path / name).write_bytes((path / name).read_bytes()[:-3])
    with pytest.raises(ProgramError) as caught:
        load_checkpoint(path)
    assert code(caught) == "N0509"


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ProgramError) as caught:
        latest_checkpoint(tmp_path / "none")
    assert code(caught) == "N0509"


def test_atomic_write_keeps_the_old_content_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:1])
        raise OSError(28, "No space left on device")

    def stop(path: Path, content: bytes) -> None:
        path.write_bytes(content[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr("nsam.runs.atomic.write_durably", full)
    with pytest.raises(ProgramError) as caught:
        write_atomic(path, "new")
    assert code(caught) == "N0514"
    monkeypatch.setattr("nsam.runs.atomic.write_durably", stop)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_leaves_links_and_modes_as_they_are(tmp_path: Path) -> None:
    file, link, dangling = tmp_path / "below" / "file", tmp_path / "link", tmp_path / "dangling"
    file.parent.mkdir()
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to("below/file")
    dangling.symlink_to("below/new")
    write_atomic(link, "new")
    write_atomic(dangling, "fresh")
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "below" / "new").read_text() == "fresh"
    assert sorted(path.name for path in file.parent.iterdir()) == ["file", "new"]


def test_atomic_write_goes_through_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, "content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert pipe.is_fifo()


def test_atomic_write_to_the_standard_output_does_not_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    known = path.stat()
    monkeypatch.setattr("nsam.runs.atomic.os.fstat", lambda descriptor: known)
    write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "new"
    assert path.stat().st_ino == known.st_ino


def test_run_folder_holds_what_it_was_started_with(tmp_path: Path) -> None:
    folder = create_run(tmp_path / "run", DESCRIPTION, {"tiny.nsam": "nsam 1\n", "lib/a.nsam": "nsam 1\n"})
    assert open_run(tmp_path / "run") == (folder, DESCRIPTION)
    assert (folder.program / "lib" / "a.nsam").read_text() == "nsam 1\n"


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    create_run(tmp_path / "run", DESCRIPTION, {})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    for path in (tmp_path / "run", tmp_path / "other", tmp_path / "other" / "precious.txt"):
        with pytest.raises(ProgramError) as caught:
            create_run(path, DESCRIPTION, {})
        assert code(caught) == "N0508"
    assert (tmp_path / "other" / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "data": 3}'])
def test_damaged_description_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ProgramError) as caught:
        open_run(tmp_path)
    assert code(caught) == "N0509"


def test_runs_are_numbered(tmp_path: Path) -> None:
    assert claim_run(tmp_path / "runs", "a") == tmp_path / "runs" / "a-1"
    for name in ("a-1", "a-10", "ab-30", "a-x"):
        (tmp_path / name).mkdir()
    assert claim_run(tmp_path, "a") == tmp_path / "a-11"
    assert (tmp_path / "a-11").is_dir()


def test_runs_that_begin_together_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsam.runs.folder._numbers", lambda root, train: [])  # both looked before either began
    assert [claim_run(tmp_path, "a").name for _ in range(3)] == ["a-1", "a-2", "a-3"]
    for path in (tmp_path / "a-1", tmp_path / "a-2"):
        create_run(path, DESCRIPTION, {})
    (tmp_path / "file").touch()
    with pytest.raises(ProgramError) as caught:
        claim_run(tmp_path / "file", "a")
    assert code(caught) == "N0514"


def test_the_last_run_is_the_last_that_has_a_checkpoint(tmp_path: Path) -> None:
    for number in (2, 9, 10):
        create_run(tmp_path / f"a-{number}", DESCRIPTION, {})
    (tmp_path / "a-11").mkdir()
    assert last_run(tmp_path, "a") == tmp_path / "a-10"
    saved(tmp_path / "a-9" / "checkpoints", 0)
    assert last_run(tmp_path, "a") == tmp_path / "a-9"
    with pytest.raises(ProgramError) as caught:
        last_run(tmp_path, "b")
    assert code(caught) == "N0509"


def test_metrics_drop_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in range(1, 6):
        log.add(step, {"loss": float(step)})
    log.close()
    log = MetricsLog(path, 3)
    log.add(4, {"loss": 40.0})
    log.close()
    assert [line["loss"] for line in read_metrics(path)] == [1.0, 2.0, 3.0, 40.0]


def test_the_smoothed_line_ends_in_a_mean() -> None:
    noisy = [4.0 - 0.01 * i + (-1) ** i for i in range(200)]
    smoothed = _smoothed(noisy)
    assert smoothed[0] == noisy[0]
    assert all(abs(mean - (4.0 - 0.01 * i)) < 0.3 for i, mean in enumerate(smoothed) if i > 5)


def test_plots_are_pictures() -> None:
    from io import BytesIO

    from matplotlib.image import imread

    metrics = [
        {"step": i, "loss": 5 / i, "moved": {"3": 0.1 * i}, "memories": {"m": {"level": 1, "loss": 1 / i}}}
        for i in range(1, 30)
    ]
    metrics.append({"step": 29, "held_out": 1.0})
    for png in (loss_plot(metrics, "t"), levels_plot(metrics, "t"), loss_plot([], "t"), levels_plot([], "t")):
        assert imread(BytesIO(png)).shape[1] > 500
    # The curves are in the picture: without them it is another one.
    assert loss_plot(metrics, "t") != loss_plot([], "t")


def test_pick_follows_temperature_and_top_k() -> None:
    scores = torch.tensor([0.0, 3.0, 2.9, -5.0])
    generator = torch.Generator().manual_seed(0)
    assert pick(scores, 0, None, generator) == 1
    assert {pick(scores, 1.0, 2, generator) for _ in range(100)} == {1, 2}
    assert {pick(scores, 1e-4, None, generator) for _ in range(20)} == {1}
    assert {pick(scores, tiny, k, generator) for tiny in (1e-300, 1e-42, 1e-37) for k in (None, 2)} == {1}
    assert len({pick(scores, 50.0, None, generator) for _ in range(200)}) == 4


def test_text_streams_by_whole_characters() -> None:
    assert list(as_text("aé€".encode())) == ["a", "é", "€"]
    assert list(as_text(b"a\xffb\xe2")) == ["a", "�", "b", "�"]


def test_a_sample_cannot_steer_a_terminal() -> None:
    assert harmless("a\x1b[2Jb\r\n\té\x9b") == "a�[2Jb�\n\té�"
