"""Data: what is read, what is held out, what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from nsam.dsl.diagnostics import ProgramError
from nsam.runs.atomic import write_atomic
from nsam.training.corpus import SHARED_PARAGRAPH, load_corpus
from nsam.training.sampler import Sampler, held_out_rows


def refused(code: str, paths: list[Path], context: int = 16) -> str:
    with pytest.raises(ProgramError) as caught:
        load_corpus(paths, context)
    assert [d.code for d in caught.value.diagnostics] == [code]
    return caught.value.diagnostics[0].message


def test_default_corpus_holds_out_whole_topics_that_training_does_not_repeat() -> None:
    from pydoc_data.topics import topics

    corpus = load_corpus([], 512)
    assert corpus.documents == len(topics)
    held_out = "\n\n".join(topics[name] for name in corpus.held_out_names)
    assert corpus.held_out.decode() == held_out
    share = len(corpus.held_out) / sum(len(t.encode()) for t in topics.values())
    assert 0.05 < share < 0.1
    paragraphs = {" ".join(p.split()) for p in held_out.split("\n\n")}
    training = {" ".join(p.split()) for p in corpus.training.decode().split("\n\n")}
    assert not {p for p in paragraphs & training if len(p) >= SHARED_PARAGRAPH}
    assert corpus.dropped > 0
    assert load_corpus([], 512).fingerprint == corpus.fingerprint


def test_one_file_is_cut_near_its_end(text: Path) -> None:
    corpus = load_corpus([text], 16)
    content = text.read_bytes()
    assert content.endswith(corpus.held_out)
    assert 0.05 < len(corpus.held_out) / len(content) < 0.12
    assert corpus.held_out.startswith(b"line ")
    assert content.startswith(corpus.training[:1000])


def test_a_folder_gives_whole_files_and_leaves_out_what_is_not_text(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    for i in range(20):
        (folder / "deep" / f"{i}.txt").write_text(f"document {i} " * 20)
    (folder / "picture.png").write_bytes(b"\x89PNG\x00\x01")
    (folder / ".hidden").write_text("hidden " * 100)
    corpus = load_corpus([folder], 16)
    assert corpus.documents == 20
    assert corpus.skipped == (str(folder / "picture.png"),)
    assert b"hidden" not in corpus.training + corpus.held_out
    for name in corpus.held_out_names:
        assert Path(name).read_bytes() in corpus.held_out
        assert Path(name).read_bytes() not in corpus.training


def paragraphs(text: bytes) -> set[str]:
    found = (" ".join(part.split()) for part in text.decode().replace("\r", "").replace("\n \n", "\n\n").split("\n\n"))
    return {one for one in found if len(one) >= SHARED_PARAGRAPH}


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("blank", [b"", b" "])
def test_paragraphs_are_told_apart_by_blank_lines_of_any_kind(tmp_path: Path, end: bytes, blank: bytes) -> None:
    for i in range(12):
        own = [f"paragraph {i} {j} of a document that has some of its own" for j in range(4)]
        parts = [own[0], "a paragraph that stands in every one of these documents", *own[1:]]
        content = (end + blank + end).join(part.replace(" that ", end.decode() + "that ").encode() for part in parts)
        (tmp_path / f"{i}.txt").write_bytes(content)
    corpus = load_corpus([tmp_path], 16)
    assert corpus.held_out_names
    assert not paragraphs(corpus.training) & paragraphs(corpus.held_out)
    assert corpus.dropped > 0


@pytest.mark.parametrize("change", [bytes, lambda text: text.replace(b"\n", b"\r\n"), lambda text: b"more\n" + text])
def test_what_is_given_twice_is_not_trained_on_where_it_is_held_out(tmp_path: Path, change: Any) -> None:
    """A text without blank lines is one paragraph: its end is held out, and its copy does not keep that."""
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_bytes("\n".join(f"line {i}: {i * 7919 % 1000} and a few words" for i in range(300)).encode())
    other.write_bytes(change(one.read_bytes()))
    for given in ([one, other], [other, one], [tmp_path], [one, one], [tmp_path, one]):
        corpus = load_corpus(given, 16)
        training = corpus.training.replace(b"\r", b"")
        lines = [line for line in corpus.held_out.replace(b"\r", b"").split(b"\n") if line.startswith(b"line ")]
        assert len(lines) > 10
        assert not [line for line in lines if line in training]
        sizes = sum(
            len(path.read_bytes()) for path in ((*given,) if tmp_path not in given else (one, other, *given[1:]))
        )
        between = 2 * (corpus.documents - 1)
        assert len(corpus.training) + len(corpus.held_out) + corpus.dropped == sizes + between


def test_missing_path(tmp_path: Path) -> None:
    assert "nowhere" in refused("N0501", [tmp_path / "nowhere"])


def test_empty_file_and_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    refused("N0502", [tmp_path / "empty.txt"])
    (tmp_path / "folder").mkdir()
    refused("N0502", [tmp_path / "folder"])


@pytest.mark.parametrize(("size", "fits"), [(33, False), (34, True)])
def test_data_needs_two_rows(tmp_path: Path, size: int, fits: bool) -> None:
    path = tmp_path / "short.txt"
    path.write_bytes(bytes(97 + i % 26 for i in range(size)))
    if fits:
        corpus = load_corpus([path], 16)
        assert len(corpus.training) >= 17
        assert len(corpus.held_out) >= 17
    else:
        assert "there are 33 bytes" in refused("N0503", [path])


def test_text_that_only_repeats_itself_is_too_short(tmp_path: Path) -> None:
    path = tmp_path / "same.txt"
    path.write_text("\n\n".join(["the very same paragraph again and again"] * 50))
    refused("N0503", [path])


@pytest.mark.parametrize(("content", "offset"), [(b"abc\xff\xfe" * 40, 3), (b"ab\x00c" * 40, 2)])
def test_binary_file_is_named_with_the_offset(tmp_path: Path, content: bytes, offset: int) -> None:
    path = tmp_path / "binary"
    path.write_bytes(content)
    message = refused("N0504", [path])
    assert str(path) in message
    assert f"offset {offset}" in message


def test_rows_depend_on_seed_and_step_alone() -> None:
    text = bytes(range(256)) * 4
    sampler = Sampler(text, 16, 4, seed=3)
    later = sampler.advance().advance()
    assert torch.equal(later.rows(), Sampler(text, 16, 4, seed=3, step=2).rows())
    assert not torch.equal(later.rows(), sampler.rows())
    assert not torch.equal(sampler.rows(), Sampler(text, 16, 4, seed=4).rows())
    rows = sampler.rows()
    assert rows.shape == (4, 17)
    assert torch.equal((rows[:, 1:] - rows[:, :-1]) % 256, torch.ones(4, 16, dtype=torch.int64))


def test_every_offset_can_be_drawn_and_none_past_the_end() -> None:
    text = b"abcde"
    seen = {bytes(row.tolist()) for step in range(50) for row in Sampler(text, 2, 2, 0, step).rows()}
    assert seen == {b"abc", b"bcd", b"cde"}


def test_held_out_rows_cover_the_text_and_stay_the_same() -> None:
    text = bytes(i % 251 for i in range(2000))
    batches = held_out_rows(text, 15, 4, 3)
    assert [batch.shape for batch in batches] == [(4, 16)] * 3
    assert batches[0][0, 0] == 0
    assert bytes(batches[-1][-1].tolist()) == text[-16:]
    assert all(torch.equal(a, b) for a, b in zip(batches, held_out_rows(text, 15, 4, 3), strict=True))
    assert [batch.shape for batch in held_out_rows(text[:16], 15, 4, 3)] == [(4, 16)]


def test_names_of_files_need_not_be_utf8(tmp_path: Path) -> None:
    for i in range(8):
        name = os.fsencode(tmp_path) + b"/caf\xe9%d.txt" % i
        with open(name, "w") as file:
            file.write(f"text {i} " * 50)
    corpus = load_corpus([tmp_path], 16)
    assert corpus.documents == 8
    write_atomic(tmp_path / "summary", ", ".join(corpus.held_out_names))
