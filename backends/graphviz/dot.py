"""DOT text: one cluster a level, fastest on top; wide levels wrap; transfers styled by kind."""

from __future__ import annotations

from html import escape
from itertools import pairwise

from nsam.backends.graphviz.cards import KINDS, Band, Card, Link, Picture

FONT = "Helvetica"
ROW = 4
"""Cards side by side before a level wraps."""

FILLS = {
    "memory": ("#E3F0FA", "#0072B2"),
    "attention": ("#E0F3EE", "#00755A"),
    "generated": ("#F7E8F1", "#A0457A"),
    "weights": ("#F3F4F6", "#7B8794"),
    "rule": ("#FDF1DC", "#B85C00"),
    "training": ("#FFFFFF", "#1F2933"),
}


def dot_text(picture: Picture) -> str:
    """Return the picture as DOT. Deterministic: the same graph gives the same text."""
    lines = [
        "digraph levels {",
        f"  graph [rankdir=TB, newrank=true, compound=true, fontname={_quoted(FONT)}, fontsize=11, nodesep=0.3,",
        "         ranksep=0.45, splines=true, labelloc=t, pad=0.2, bgcolor=white,",
        f"         label=<{_heading(picture)}>];",
        f"  node [shape=plain, fontname={_quoted(FONT)}, fontsize=10];",
        f"  edge [fontname={_quoted(FONT)}, fontsize=8, arrowsize=0.7, penwidth=1.3];",
    ]
    lines += [line for band in picture.bands for line in _band(band)]
    lines += _stack(picture)
    lines += [_edge(link, picture) for link in picture.links]
    lines += [_legend(picture), "}"]
    return "\n".join(line for line in lines if line) + "\n"


def wrapped(cards: tuple[Card, ...]) -> list[tuple[Card, ...]]:
    """Cut a level's cards into rows of nearly equal length, at most `ROW` each."""
    rows = max(1, -(-len(cards) // ROW))
    each = -(-len(cards) // rows)
    return [cards[i : i + each] for i in range(0, len(cards), each)]


def _heading(picture: Picture) -> str:
    return (
        f'<font point-size="18"><b>{_html(picture.title)}</b></font><br/>'
        f'<font point-size="10" color="#52606D">{_html(picture.subtitle)}</font><br/> '
    )


def _band(band: Band) -> list[str]:
    label = f'<font point-size="11"><b>level {band.level}</b>   {_html(band.frequency)}</font>'
    lines = [
        f"  subgraph cluster_level_{band.level} {{",
        f'    label=<{label}>; labeljust=l; style="rounded,filled"; color="#D9DEE4"; fillcolor="#FBFCFD"; margin=10;',
    ]
    for row in wrapped(band.cards):
        lines += [f"    {card.id} [label=<{_table(card)}>, tooltip={_quoted(card.title)}];" for card in row]
        lines.append(f"    {{ rank=same; {' '.join(card.id + ';' for card in row)} }}")
    return [*lines, "  }"]


def _stack(picture: Picture) -> list[str]:
    """Hold the rows of all levels one under the other with invisible edges between their first cards."""
    rows = [row for band in picture.bands for row in wrapped(band.cards)]
    return [f"  {above[0].id} -> {below[0].id} [style=invis, weight=1];" for above, below in pairwise(rows)]


def _table(card: Card) -> str:
    fill, line = FILLS[card.style]
    badge = f'  <font color="{line}">{_html(card.badge)}</font>' if card.badge else ""
    caption = f'  <font point-size="8" color="#52606D">{_html(card.caption)}</font>' if card.caption else ""
    rows = "".join(_row(word, text) for word, text in card.rows)
    return (
        f'<table border="1" cellborder="0" cellspacing="0" cellpadding="2" bgcolor="{fill}" color="{line}" '
        'style="rounded">'
        f'<tr><td colspan="2" align="left"><b>{_html(_cut(card.title, 40))}</b>{badge}{caption}</td></tr>{rows}</table>'
    )


def _row(word: str, text: str) -> str:
    shown = f'<font point-size="8">{_html(_cut(text, 46))}</font>'
    if not word:
        return f'<tr><td colspan="2" align="left">{shown}</td></tr>'
    return (
        f'<tr><td align="left"><font point-size="8" color="#52606D">{_html(_cut(word, 28))}</font></td>'
        f'<td align="left">{shown}</td></tr>'
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _edge(link: Link, picture: Picture) -> str:
    style = KINDS[link.kind]
    width = 2.0 if link.same_time else 1.2
    label = f"{link.kind}: {', '.join(link.uses)}" + (" (declared)" if link.declared else "")
    attributes = (
        f'color="{style.light}", style={style.dot}, arrowhead={style.head}, penwidth={width}, constraint=false, '
        f"tooltip={_quoted(label)}"
    )
    return f"  {link.source} -> {link.target} [{attributes}];"


def _legend(picture: Picture) -> str:
    if not picture.kinds:
        return ""
    cells = "".join(
        f'<tr><td align="left"><font color="{KINDS[kind].light}"><b>{_SAMPLE[KINDS[kind].dot]}</b></font></td>'
        f'<td align="left"><font point-size="9"><b>{kind}</b></font></td>'
        f'<td align="left"><font point-size="9" color="#52606D">{_html(KINDS[kind].meaning)}</font></td></tr>'
        for kind in picture.kinds
    )
    last = picture.bands[-1].cards[0].id if picture.bands and picture.bands[-1].cards else ""
    table = f'<table border="0" cellborder="0" cellspacing="2" cellpadding="1">{cells}</table>'
    return f"  legend [label=<{table}>];" + (f"\n  {last} -> legend [style=invis];" if last else "")


_SAMPLE = {"solid": "━━━▶", "dotted": "·····&gt;", "dashed": "╍╍╍▷"}


def _html(text: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text)
    return escape(printable.replace(" -> ", " → "), quote=True)


def _quoted(text: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
