"""Text to train on: documents as bytes, split into training and held-out text that share no paragraph."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nsam.dsl.diagnostics import fail

HELD_OUT_SHARE = 0.08
"""Part of the bytes that is held out, in whole documents where there are several."""

SHARED_PARAGRAPH = 32
"""Paragraphs of at least this many characters that held-out text repeats are taken out of the training text."""

_BETWEEN = b"\n\n"
"""What stands between two documents."""

_BLANK_LINE = re.compile(rb"(\r?\n[ \t]*\r?\n)")
"""What stands between two paragraphs of a document."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text, UTF-8 as bytes, with the name it is reported under."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a model trains on and what it is tested on. `skipped` names files of a folder that are not text."""

    source: str
    training: bytes
    held_out: bytes
    documents: int
    held_out_names: tuple[str, ...]
    dropped: int
    skipped: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """A hash of both texts: the same when and only when a resumed run would read the same rows."""
        digest = hashlib.sha256(len(self.training).to_bytes(8, "little"))
        digest.update(self.training)
        digest.update(self.held_out)
        return digest.hexdigest()


def load_corpus(paths: Sequence[Path], context: int) -> Corpus:
    """Return the texts at `paths` (files or folders; none: Python's documentation topics), split for rows of `context`.

    Both parts hold at least one row of context + 1 bytes; N0501, N0502, N0503 and N0504 say what is wrong with the
    data otherwise.
    """
    skipped: list[str] = []
    documents = [d for path in paths for d in _read(path, skipped)] if paths else _topics()
    source = ", ".join(str(path) for path in paths) if paths else "Python's documentation topics"
    total = sum(len(document.content) for document in documents)
    if total == 0:
        raise fail(
            "N0502",
            f"there is no text in {source}",
            help="give files or folders of UTF-8 text with --data, or leave --data out to train on Python's own "
            "documentation",
        )
    row = context + 1
    if total < 2 * row:
        raise _too_short(source, total, row)
    training, held_out = _split(documents, max(int(total * HELD_OUT_SHARE), row), row)
    kept = _without_shared_paragraphs(training, held_out)
    training_text = _BETWEEN.join(document.content for document in kept)
    held_out_text = _BETWEEN.join(document.content for document in held_out)
    dropped = total - sum(len(document.content) for document in (*kept, *held_out))
    if min(len(training_text), len(held_out_text)) < row:
        raise _too_short(source, total, row)
    return Corpus(
        source=source,
        training=training_text,
        held_out=held_out_text,
        documents=len(documents),
        held_out_names=tuple(document.name for document in held_out),
        dropped=dropped,
        skipped=tuple(skipped),
    )


def _too_short(source: str, total: int, row: int) -> Exception:
    context = max(1, total // 4)
    smaller = f", or a smaller context: --set context={context}" if context < row - 1 else ""
    return fail(
        "N0503",
        f"there are {total:,} bytes in {source}: too few for rows of {row:,}",
        notes=(
            f"a row holds context + 1 = {row:,} bytes, and the training text and the held-out text need one each "
            "that the other does not repeat",
        ),
        help=f"give more text{smaller}",
    )


def _topics() -> list[Document]:
    """Return the texts behind Python's `help()`, one document a topic, in the order of their names."""
    from pydoc_data.topics import topics

    return [Document(name, topics[name].encode()) for name in sorted(topics)]


def _read(path: Path, skipped: list[str]) -> list[Document]:
    try:
        if path.is_dir():
            files = [p for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p.relative_to(path))]
            found = [(file, file.read_bytes()) for file in files]
        else:
            found = [(path, path.read_bytes())]
    except OSError as error:
        raise fail(
            "N0501",
            f"cannot read {error.filename or path}: {error.strerror}",
            help="--data takes files and folders of UTF-8 text",
        ) from None
    documents = []
    for file, content in found:
        fault = _first_fault(content)
        if fault is None:
            documents.append(Document(str(file), content))
        elif path.is_dir():
            skipped.append(str(file))
        else:
            raise fail(
                "N0504",
                f"{file} is not UTF-8 text: byte {content[fault]:#04x} at offset {fault:,}",
                help="convert it first, for instance with: iconv -f latin1 -t utf-8",
            )
    return documents


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _first_fault(content: bytes) -> int | None:
    """Return the offset of the first byte that is not UTF-8 text (a zero byte marks a binary file), or None."""
    zero = content.find(0)
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.start if zero < 0 else min(zero, error.start)
    return zero if zero >= 0 else None


def _split(documents: list[Document], wanted: int, row: int) -> tuple[list[Document], list[Document]]:
    """Hold out whole documents of about `wanted` bytes; where that does not come out, cut the largest near its end.

    Documents are taken in the order of a hash of their names: a fixed choice that alphabetical order and folder
    structure do not bias.
    """
    held_out: list[Document] = []
    reached = 0
    for document in sorted(documents, key=lambda d: hashlib.sha256(d.name.encode(errors="surrogateescape")).digest()):
        if reached < wanted and reached + len(document.content) <= 1.2 * wanted:
            held_out.append(document)
            reached += len(document.content)
    names = {document.name for document in held_out}
    training = [document for document in documents if document.name not in names]
    if reached >= max(row, wanted // 2) and training:
        return training, sorted(held_out, key=lambda d: d.name)
    largest = max(documents, key=lambda d: len(d.content))
    head, tail = _cut(largest, min(wanted, len(largest.content) // 2))
    words = b" ".join(tail.content.split())
    return [head if d is largest else _without(d, words) for d in documents], [tail]


def _cut(document: Document, wanted: int) -> tuple[Document, Document]:
    """Cut off about the last `wanted` bytes, at the start of a line where one is near."""
    at = len(document.content) - wanted
    line = document.content.rfind(b"\n", max(1, at - wanted // 2), at) + 1
    at = line or at
    name = document.name
    return Document(name, document.content[:at]), Document(f"{name} (end)", document.content[at:])


def _without(document: Document, words: bytes) -> Document:
    """Take `words`, a text without its layout, out of another document: a copy, say, or one that has it as a part.

    Held-out text that was cut off begins within a paragraph, so that no paragraph need be the same.
    """
    content = document.content
    flat = b" ".join(content.split())
    at = flat.find(words)
    if at < 0 or not words:
        return document
    starts = [match.start() for match in re.finditer(rb"\S+", content)]
    kept, done = [], 0
    while at >= 0:
        kept.append(content[done : _offset(flat, starts, at)])
        done = _offset(flat, starts, at + len(words) - 1) + 1
        at = flat.find(words, at + len(words))
    return Document(document.name, b"".join([*kept, content[done:]]))


def _offset(flat: bytes, starts: list[int], at: int) -> int:
    """Return where the character at `at` of a text without its layout stands in the text, whose words have `starts`."""
    return starts[flat.count(b" ", 0, at)] + at - (flat.rfind(b" ", 0, at) + 1)


def _without_shared_paragraphs(training: list[Document], held_out: list[Document]) -> list[Document]:
    """Take paragraphs that held-out text repeats out of the training text.

    Python's topics quote each other whole ("with" stands in "compound" too); a held-out loss on text that was
    trained on would be too good.
    """
    paragraphs = (paragraph for document in held_out for paragraph in _BLANK_LINE.split(document.content)[::2])
    known = {key for paragraph in paragraphs if (key := _key(paragraph))}
    kept: list[Document] = []
    for document in training:
        fresh: list[bytes] = []
        between = b""
        for i, part in enumerate(_BLANK_LINE.split(document.content)):
            if i % 2:
                between = part
            elif _key(part) not in known:
                fresh += [between, part] if fresh else [part]
        if content := b"".join(fresh):
            kept.append(Document(document.name, content))
    return kept


def _key(paragraph: bytes) -> bytes | None:
    """The paragraph without its layout, or None when it is too short to tell texts apart."""
    words = b" ".join(paragraph.split())
    return words if len(words) >= SHARED_PARAGRAPH else None
