"""Write a level graph to a file, in the format that the file's ending asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networkx as nx

from nsam.backends.graphviz.cards import picture
from nsam.backends.graphviz.data import json_text
from nsam.backends.graphviz.dot import dot_text
from nsam.backends.graphviz.mermaid import mermaid_text
from nsam.backends.graphviz.page import html_page
from nsam.dsl.diagnostics import ProgramError, fail

TEXTS: dict[str, Callable[[nx.MultiDiGraph], str]] = {
    ".dot": lambda graph: dot_text(picture(graph)),
    ".mmd": lambda graph: mermaid_text(picture(graph)),
    ".json": json_text,
    ".html": lambda graph: html_page(picture(graph)),
}
IMAGES = (".svg", ".png", ".pdf")
FORMATS = (*TEXTS, *IMAGES)


def text(graph: nx.MultiDiGraph, suffix: str) -> str:
    """Return the graph as text in the format of `suffix` (`.dot`, `.mmd`, `.json`, `.html`)."""
    return TEXTS[suffix](graph)


def render(graph: nx.MultiDiGraph, path: str | Path) -> Path:
    """Write `graph` to `path` and return the path; the ending chooses the format (see `FORMATS`).

    `.svg`, `.png` and `.pdf` are drawn by Graphviz's `dot`. Raises `ProgramError`: N0391 for an ending that is not
    known, N0392 when `dot` or its layout `neato` is not installed, N0393 when it fails, N0394 when the file cannot be
    written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise fail(
            "N0391", f"no picture format is called `{suffix or target.name}`", help=f"end the name in one of {known}"
        )
    if suffix in TEXTS:
        data = TEXTS[suffix](graph).encode("utf-8")
    else:
        data = drawn(dot_text(picture(graph)), suffix.removeprefix("."))
    try:
        target.write_bytes(data)
    except OSError as error:
        raise fail("N0394", f"cannot write `{target}`: {error.strerror}") from error
    return target


def drawn(source: str, kind: str) -> bytes:
    """Return DOT text drawn by `dot` as `kind` ("svg", "png", "pdf")."""
    import graphviz
    import graphviz.backend

    try:
        return bytes(graphviz.pipe("neato", kind, source.encode(), neato_no_op=2, quiet=True))
    except graphviz.backend.ExecutableNotFound as error:
        raise _missing(kind) from error
    except graphviz.backend.CalledProcessError as error:
        said = (error.stderr or b"").decode("utf-8", "replace").strip().splitlines()
        if any("no layout engine support" in line for line in said):
            raise _without_layout(kind) from error
        raise fail(
            "N0393",
            f"Graphviz could not draw the {kind}: {said[0] if said else 'no reason given'}",
            help="write a .dot file and report it with the program; .html works without Graphviz",
        ) from error


def _missing(kind: str) -> ProgramError:
    return fail(
        "N0392",
        f"drawing a .{kind} needs Graphviz, and its program `dot` was not found",
        notes=[
            "Debian, Ubuntu: sudo apt install graphviz",
            "macOS: brew install graphviz",
            "conda: conda install -c conda-forge graphviz",
        ],
        help="or choose .html, .mmd, .dot or .json, which need nothing",
    )


def _without_layout(kind: str) -> ProgramError:
    """The positions are ours, and of Graphviz's layouts `neato` alone takes them; newer Debians package it apart."""
    return fail(
        "N0392",
        f"drawing a .{kind} needs Graphviz's layout `neato`, which this Graphviz was installed without",
        notes=["Debian, Ubuntu: sudo apt install '^libgvplugin-neato-layout[0-9]+$'"],
        help="or choose .html, .mmd, .dot or .json, which need nothing",
    )
