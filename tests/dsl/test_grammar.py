"""The tables of the grammar are kept between processes, and never trusted further than they can be read."""

from pathlib import Path

import pytest

from nsam.dsl import grammar as module
from nsam.dsl.parser import parse
from nsam.dsl.spans import Source

PROGRAM = "nsam 1\n\nsystem m(dim : int = 8) {\n  input x : [dim]\n  output x\n}\n"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module.grammar.cache_clear()
    yield tmp_path / "nsam"
    module.grammar.cache_clear()


def again() -> object:
    """Parse as a new process would: nothing in memory, only what lies in the folder."""
    module.grammar.cache_clear()
    return parse(Source("x", PROGRAM))


def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which every grammar is added that is worked out anew."""
    texts: list[str] = []
    build = module.build
    monkeypatch.setattr(module, "build", lambda text: (texts.append(text), build(text))[1])
    return texts


def test_tables_are_worked_out_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = built(monkeypatch)
    first = again()
    assert len(texts) == 1
    assert len(list(kept.iterdir())) == 1
    assert again() == first
    assert len(texts) == 1


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04N.", b"\x80\x04}.", b"cnowhere\nnothing\n."])
def test_what_cannot_be_read_is_made_anew(kept: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    first = again()
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(content or whole[: len(whole) // 2])
    texts = built(monkeypatch)
    assert again() == first
    assert len(texts) == 1
    assert len(file.read_bytes()) > len(whole) // 2
    again()
    assert len(texts) == 1


def test_another_grammar_has_tables_of_its_own(kept: Path) -> None:
    assert module.kept_at("a") != module.kept_at("b")


def test_a_folder_that_cannot_be_written(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.write_text("a file where the folder would be")
    texts = built(monkeypatch)
    again()
    again()
    assert len(texts) == 2


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(module.Path, "home", no_home)
    assert module.kept_at("a") is None
