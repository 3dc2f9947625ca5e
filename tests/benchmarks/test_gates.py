"""The hand-written baselines of the benchmarks do the same mathematics as nsam, in float64."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.recorder import Again

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("B1", "B2", "B3", "B4", "B5", "B6")


@pytest.fixture(autouse=True)
def _checkout(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Benchmarks are not installed: they are imported from the root of the checkout."""
    monkeypatch.syspath_prepend(str(ROOT))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own scan traces itself
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_candidates_agree_in_values_and_gradients(name: str) -> None:
    gate, registry = load("gate"), load("registry")
    for case in registry.module(name).checks():
        found = gate.check(case)
        assert "nsam" in found
        for candidate, (error, where, within) in found.items():
            assert within, f"{case.label}: {candidate} is off by {error:.1e} in {where}"


class Numbers:
    """A candidate whose values are `factor` times the right ones."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def step(self) -> None:
        pass

    def evaluate(self) -> dict[str, torch.Tensor]:
        return {"output": self.factor * torch.ones(3), "gradient of w": torch.full((2,), self.factor)}


def test_a_wrong_candidate_is_found_out_and_not_timed() -> None:
    case_, measure, settings = load("case"), load("measure"), load("settings")

    case = case_.Case(
        "numbers",
        (
            case_.Candidate("nsam", lambda build: Numbers(1.0)),
            case_.Candidate("wrong", lambda build: Numbers(1.01)),
            case_.Candidate("undefined", lambda build: Numbers(float("nan"))),
            case_.Candidate("plain", lambda build: Numbers(1.0)),
        ),
        targets=(case_.Target("plain", 0.0), case_.Target("wrong", 0.0)),
    )
    found = measure.run_case(case, settings.Settings(quick=True, compiled=False))
    ours, wrong, undefined, plain = found.candidates
    assert ours.spread is not None
    assert plain.spread is not None
    assert wrong.failed.startswith("wrong")
    assert undefined.failed.startswith("wrong")
    assert wrong.spread is undefined.spread is None
    assert [target.met for target in found.targets] == [True, None]


RIGHT, WRONG, UNDEFINED = 1.0, 1.01, float("nan")


@pytest.mark.parametrize(
    ("candidates", "code", "said"),
    [
        ({"nsam": RIGHT, "plain": RIGHT}, 0, ""),
        ({"nsam": RIGHT, "by hand": WRONG, "plain": RIGHT}, 0, ""),
        ({"nsam": WRONG, "plain": RIGHT}, 1, "nsam: wrong: relative error"),
        ({"nsam": RIGHT, "nsam, not compiled": WRONG, "plain": RIGHT}, 1, "nsam, not compiled: wrong: relative error"),
        ({"nsam": RuntimeError("\nbroken\n"), "plain": RIGHT}, 1, "nsam: RuntimeError: broken"),
        (
            {"nsam, one CUDA graph": RuntimeError(" "), "nsam": RIGHT, "plain": RIGHT},
            1,
            "nsam, one CUDA graph: RuntimeError:",
        ),
        ({"nsam": "too large", "plain": RIGHT}, 0, ""),
        ({"nsam": RIGHT, "plain": "too large"}, 0, "compared with nothing, no baseline ran"),
        ({"nsam": RIGHT, "by hand": RIGHT, "plain": RuntimeError("broken")}, 0, ""),
        ({"nsam": RIGHT, "by hand": RIGHT, "plain": UNDEFINED}, 0, ""),
        ({"nsam": WRONG, "by hand": RIGHT, "plain": UNDEFINED}, 1, "nsam: wrong: relative error"),
    ],
)
def test_the_command_fails_where_nsam_is_wrong_or_does_not_run(
    candidates: dict[str, float | str | Exception],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case_, registry = load("case"), load("registry")

    def made(what: float | str | Exception) -> Numbers:
        if isinstance(what, str):
            raise case_.Skipped(what)
        if isinstance(what, Exception):
            raise what
        return Numbers(what)

    case = case_.Case("a case", [case_.Candidate(n, lambda build, w=what: made(w)) for n, what in candidates.items()])
    monkeypatch.setattr(registry, "cases", lambda name, settings: [case])
    arguments = ["B6", "--quick", "--no-compile", "--no-memory", "--threads", "1", "--out", str(tmp_path)]
    assert load("__main__").main(arguments) == code
    printed = capsys.readouterr().out
    end = printed[printed.index("written to") :].replace("\n", " ")
    assert f"a case: {said}" in end if said else "a case" not in end


def test_what_is_skipped_in_a_process_of_its_own_is_skipped_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case_, memory, registry, settings = load("case"), load("memory"), load("registry"), load("settings")

    def skipped(build: object) -> Numbers:
        raise case_.Skipped("too large")

    case = case_.Case("a case", [case_.Candidate("nsam", skipped)])
    monkeypatch.setattr(registry, "cases", lambda name, settings: [case])
    memory.main("B6", "a case", "nsam", settings.Settings(quick=True).text())
    assert json.loads(capsys.readouterr().out) == {"failed": "Skipped: too large"}


@pytest.mark.parametrize("device", ["foo", "", "meta", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_a_usage_error(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        load("__main__").main(["B6", "--quick", "--device", device, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert f"there is no device `{device}` here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_errors_are_relative_to_the_whole_tensor() -> None:
    largest_error = load("gate").largest_error
    expected = {"gradient of a": torch.full((4,), 100.0), "gradient of b": torch.zeros(4)}
    noise = {"gradient of a": torch.full((4,), 101.0), "gradient of b": torch.full((4,), 1e-9)}
    error, where = largest_error(noise, expected)
    assert where == "gradient of a"
    assert error == pytest.approx(0.01)
    assert largest_error({"gradient of a": expected["gradient of a"]}, expected)[0] == float("inf")


def test_the_generated_program_is_correct_and_as_long_as_it_says() -> None:
    import nsam

    text = load("b7_compiler").long_program()
    assert len(text.splitlines()) == 300
    assert len(nsam.loads(text).systems) > 20


def test_the_command_writes_table_json_and_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = load("__main__").main
    assert main(["B6", "--quick", "--no-compile", "--no-memory", "--threads", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "torch.optim.Muon" in printed
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["machine"]["threads"] == 1
    muon = found["benchmarks"][0]["cases"][0]
    names = ["nsam", "nsam, not compiled", "nsam, bfloat16", "torch.optim.Muon", "loop"]
    assert [one["name"] for one in muon["candidates"]] == names
    assert all(len(one["seconds"]) == 3 and one["error"] < 0.1 for one in muon["candidates"])
    assert muon["rate"][1] > 0
    assert "## B6" in (tmp_path / "results.md").read_text()
    assert "<svg" in (tmp_path / "B6.svg").read_text()


def test_a_run_that_is_cut_off_leaves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = load("measure")
    run_case, begun = measure.run_case, []

    def interrupted(*arguments: object) -> object:
        begun.append(arguments)
        if len(begun) > 1:
            raise KeyboardInterrupt
        return run_case(*arguments)

    monkeypatch.setattr(measure, "run_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("__main__").main(
            ["B6", "--quick", "--no-compile", "--no-memory", "--threads", "1", "--out", str(tmp_path)]
        )
    found = json.loads((tmp_path / "results.json").read_text())
    assert len(found["benchmarks"][0]["cases"]) == 1
    assert "## B6" in (tmp_path / "results.md").read_text()


def test_a_name_that_no_case_has_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["B6", "--quick", "--no-compile", "--no-memory", "--only", "nonsense", "--out", str(tmp_path / "out")]
    assert load("__main__").main(arguments) == 2
    assert "no case of B6 has 'nonsense' in its name" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_unknown_benchmarks_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load("__main__").main(["B9"])
    assert stopped.value.code == 2
    assert "B9" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("name", ["B1", "B2", "B3", "B4"])
def test_recorded_candidates_agree_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsam.backends.torch.cuda_graph.CudaRecorder", lambda device: Again())
    gate, graphed, registry = load("gate"), load("graphed"), load("registry")
    case = graphed.with_graphs(registry.module(name).checks()[0])
    names = [one.name for one in case.candidates]
    assert names[0] == "nsam, one CUDA graph"
    assert set(case.graphs) <= set(names)
    assert case.targets[0].against == f"{case.graphs[-1]}, one CUDA graph"
    found = gate.check(case)
    assert all(within for _, _, within in found.values()), found
