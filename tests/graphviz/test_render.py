"""Pictures: goldens, escaping, formats, and what happens without Graphviz."""

import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from nsam.backends.graphviz import FORMATS, render, text
from nsam.backends.graphviz.cards import picture
from nsam.backends.graphviz.layout import caption, card_size, layout, text_width
from nsam.compiler.graph import build_graph
from nsam.dsl.diagnostics import ProgramError
from nsam.dsl.program import Program

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "hope_bytes": ("hope/hope.nsam", {}),
    "titans": ("hope/hope.nsam", {"dim": 64}),
    "cms": ("hope/hope.nsam", {"dim": 64}),
    "nested_cms": ("zoo/zoo.nsam", {"dim": 64}),
}
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


def graph(name: str) -> nx.MultiDiGraph:
    file, parameters = PROGRAMS[name]
    program = Program.loads((ROOT / "examples" / file).read_text(encoding="utf-8"))
    if name == "hope_bytes":
        train = program.train(name)
        return build_graph(train.model, train)
    return build_graph(program.instantiate(name, parameters))


@pytest.mark.parametrize("suffix", [".dot", ".mmd", ".json"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_golden(name: str, suffix: str) -> None:
    golden = GOLDENS / f"graph_{name}{suffix}"
    found = text(graph(name), suffix)
    if os.environ.get("NSAM_UPDATE_GOLDENS") == "1":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(found, encoding="utf-8")
    assert found == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_cards_overlap_and_all_lie_inside(name: str) -> None:
    placed = layout(picture(graph(name)))
    boxes = [(i.x - i.width / 2, i.y, i.x + i.width / 2, i.y + i.height) for i in placed.items]
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert right <= placed.width
        assert bottom <= placed.height
        for other in boxes[index + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


@pytest.mark.parametrize("name", PROGRAMS)
def test_levels_stack_fastest_on_top(name: str) -> None:
    placed = layout(picture(graph(name)))
    assert [band.level for band in placed.bands] == sorted(band.level for band in placed.bands)
    for above, below in zip(placed.bands, placed.bands[1:], strict=False):
        assert above.y + above.height < below.y


def test_a_long_frequency_keeps_its_place_beside_the_cards() -> None:
    source = """nsam 1
use std.rules (gd)
system slow(dim: int) {
  input x: [dim]
  memory m : linear(dim -> dim) {
    learn x -> x; minimize l2; by gd(lr = 0.1); every 16..65536 tokens when surprise > 1; init zeros
  }
  output m(x)
}
"""
    drawn = picture(build_graph(Program.loads(source).instantiate("slow", {"dim": 8})))
    placed = layout(drawn)
    widest = max(text_width(band.frequency) for band in drawn.bands)
    assert all(item.x - item.width / 2 >= 16 + widest for item in placed.items)


def test_every_memory_is_on_exactly_one_card() -> None:
    found = graph("hope_bytes")
    members = [path for card in picture(found).cards for path in card.members]
    assert sorted(members) == sorted(found.nodes)


def test_json_has_every_node_and_edge() -> None:
    found = graph("hope_bytes")
    data = json.loads(text(found, ".json"))
    assert data["version"] == 1
    assert [node["path"] for node in data["nodes"]] == list(found.nodes)
    assert len(data["edges"]) == found.number_of_edges()
    assert {level["level"] for level in data["levels"]} == {node["level"] for node in data["nodes"]}


def many(count: int, different: bool) -> nx.MultiDiGraph:
    """A system with many fast memories, alike or different, and as many weights of different sizes."""
    lines = ["nsam 1", "use std.rules (gd)", "system s(dim: int) {", "  input x: [dim]", "  let h0 = x"]
    for i in range(count):
        period = 2 if different else 1
        rate = 0.1 + (i if different else 0)
        lines.append(f"  memory w{i} : mlp(dim -> {i + 1} -> dim)")
        value = f"w{i}(x)" if different else "w0(x)"
        lines.append(
            f"  memory m{i} : linear(dim -> dim) {{ learn x -> {value}; minimize l2; by gd(lr = {rate}); "
            f"every {period} tokens }}"
        )
        lines.append(f"  let h{i + 1} = h{i} + m{i}(x)")
    return build_graph(Program.loads("\n".join([*lines, f"  output h{count}", "}"])).instantiate("s", {"dim": 4}))


@pytest.mark.parametrize("different", [False, True])
def test_wide_levels_wrap_and_long_lists_are_cut(different: bool) -> None:
    drawn = picture(many(40, different))
    placed = layout(drawn)
    assert placed.width < 1500
    assert all(len(card.rows) <= 14 for card in drawn.cards)
    titles = [card.title for card in drawn.cards if card.style == "memory"]
    assert titles == ([f"m{i}" for i in range(40)] if different else ["m0 … m39 (40)"])


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_system_without_memories_can_be_drawn(tmp_path: Path, suffix: str) -> None:
    if suffix in (".svg", ".png", ".pdf") and shutil.which("dot") is None:
        pytest.skip("Graphviz is not installed")
    unit = Program.loads("nsam 1\nsystem same(dim: int) {\n  input x: [dim]\n  output x\n}\n")
    drawn = build_graph(unit.instantiate("same", {"dim": 4}))
    assert list(drawn.nodes) == ["training"]
    assert render(drawn, tmp_path / f"same{suffix}").stat().st_size > 200


# --- hostile texts -------------------------------------------------------------------------------

EVIL = '</script><b onmouseover="x">&amp; "quoted" \\N {a|b} `c` ]];\n#35; -->'


def evil_graph() -> nx.MultiDiGraph:
    found = graph("nested_cms")
    for _, node in found.nodes(data=True):
        for name in ("context", "objective", "rule", "unit", "structure_text", "initial"):
            node[name] = EVIL
    found.graph["name"] = EVIL
    found.graph["levels"] = dict.fromkeys(found.graph["levels"], EVIL)
    return found


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_html_escapes_every_text() -> None:
    page = text(evil_graph(), ".html")
    tags = Tags()
    tags.feed(page)
    assert tags.tags.count("script") == 2
    assert page.count("</script>") == 2
    assert "onmouseover" not in tags.attributes
    data = re.search(r'<script type="application/json" id="about">(.*?)</script>', page, re.S)
    assert data is not None
    assert any(EVIL in about for texts in json.loads(data[1]).values() for about in texts)


def test_html_stands_alone_and_its_drawing_is_well_formed() -> None:
    page = text(graph("hope_bytes"), ".html")
    assert not re.search(r"(src|href)\s*=|@import|url\((?!#)", page)
    drawing = re.search(r"<main>(<svg.*?</svg>)</main>", page, re.S)
    assert drawing is not None
    root = ET.fromstring(drawing[1])
    cards = [g for g in root.iter("{http://www.w3.org/2000/svg}g") if g.get("class", "").startswith("card")]
    assert {card.get("id") for card in cards} == {card.id for card in picture(graph("hope_bytes")).cards}


@pytest.mark.parametrize("name", PROGRAMS)
def test_mermaid_goes_down_the_levels_first_and_styles_transfers_only(name: str) -> None:
    drawn = picture(graph(name))
    lines = [line.strip() for line in text(graph(name), ".mmd").splitlines()]
    links = [line for line in lines if re.match(r"n\d+ (~~~|-->|-\.->|==>)", line)]
    cards = [card.id for card in drawn.cards]
    assert links[: len(cards) - 1] == [f"{above} ~~~ {below}" for above, below in pairwise(cards)]
    assert not any("~~~" in line for line in links[len(cards) - 1 :])
    styled = [int(i) for line in lines if line.startswith("linkStyle") for i in line.split()[1].split(",")]
    assert sorted(styled) == list(range(len(cards) - 1, len(links)))


def test_mermaid_escapes_every_text() -> None:
    for line in text(evil_graph(), ".mmd").splitlines()[3:]:
        if '["' in line:
            inner = line[line.index('["') + 2 : line.rindex('"]')]
            assert not set(re.sub(r"#\d+;|</?b>|<br>", "", inner)) & set('"#;<>&`{}[]()|\\')


@needs_dot
def test_dot_takes_hostile_texts(tmp_path: Path) -> None:
    written = render(evil_graph(), tmp_path / "evil.svg")
    root = ET.fromstring(written.read_text(encoding="utf-8"))
    drawn = "".join(root.itertext())
    assert "</script><b onmouseover" in drawn


def test_long_captions_are_cut_in_the_middle() -> None:
    path = "s.a_system_with_a_name_that_is_much_too_long_for_a_card.repeat.*.w"
    card = replace(picture(graph("titans")).cards[0], caption=f"serves {path}")
    assert caption(card) == "serves s.a_sys…oo_long_for_a_card.repeat.*.w"
    assert card_size(card) == card_size(replace(card, caption=card.caption.replace("much", "very much")))


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".dot", ".mmd", ".json", ".html"])
def test_text_formats_need_no_graphviz(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = graph("titans")
    written = render(found, tmp_path / f"picture{suffix}")
    assert written.read_text(encoding="utf-8") == text(found, suffix)


@needs_dot
@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_images(tmp_path: Path, suffix: str, magic: bytes) -> None:
    assert render(graph("titans"), tmp_path / f"picture{suffix}").read_bytes().startswith(magic)


@needs_dot
def test_dot_draws_the_text_without_our_positions(tmp_path: Path) -> None:
    import graphviz

    drawn = graphviz.Source(text(graph("hope_bytes"), ".dot")).pipe(format="svg", quiet=True)
    assert b"m3 for matrices" in drawn


def test_without_graphviz_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramError) as caught:
        render(graph("titans"), tmp_path / "picture.png")
    (found,) = caught.value.diagnostics
    assert found.code == "N0392"
    said = " ".join((*found.notes, found.help or ""))
    for word in ("apt install graphviz", "brew install graphviz", "conda", ".html", ".mmd", ".dot", ".json"):
        assert word in said
    assert not (tmp_path / "picture.png").exists()


def test_a_graphviz_without_our_layout_is_told_from_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer Debians have `neato` in a package of its own."""
    dot = tmp_path / "dot"
    dot.write_text("#!/bin/sh\necho 'There is no layout engine support for \"neato\"' >&2\nexit 1\n")
    dot.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramError) as caught:
        render(graph("titans"), tmp_path / "picture.svg")
    (found,) = caught.value.diagnostics
    assert found.code == "N0392"
    assert "neato" in found.message
    assert "libgvplugin-neato-layout" in found.notes[0]


@pytest.mark.parametrize("name", ["picture.gif", "picture", "picture.dot.txt"])
def test_an_unknown_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProgramError) as caught:
        render(graph("titans"), tmp_path / name)
    assert caught.value.diagnostics[0].code == "N0391"
    assert all(suffix in str(caught.value.diagnostics[0].help) for suffix in FORMATS)


def test_a_place_that_cannot_be_written_is_a_diagnostic(tmp_path: Path) -> None:
    with pytest.raises(ProgramError) as caught:
        render(graph("titans"), tmp_path / "missing" / "picture.dot")
    assert caught.value.diagnostics[0].code == "N0394"
