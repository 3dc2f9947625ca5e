"""DOT text: a cluster for each level, fastest on top, transfers styled by kind.

Positions from our own layout come along, in points: `dot` makes its own, `neato -n2` takes these. Images are drawn the
second way, so that they look like the page.
"""

from __future__ import annotations

from html import escape
from itertools import pairwise

from nsam.backends.graphviz.cards import KINDS, Card, Link, Picture
from nsam.backends.graphviz.layout import BandBox, Item, Layout, Point, Route, caption, layout, shown, text_width

FILLS = {
    "memory": ("#E3F0FA", "#0072B2"),
    "attention": ("#E0F3EE", "#00755A"),
    "generated": ("#F7E8F1", "#A0457A"),
    "weights": ("#F3F4F6", "#7B8794"),
    "rule": ("#FDF1DC", "#B85C00"),
    "training": ("#FFFFFF", "#1F2933"),
}
HEAD_LENGTH = 8.0
_TOP = 56.0
_LEGEND = 18.0
_MUTED = "#52606D"


def dot_text(picture: Picture) -> str:
    """Return the picture as DOT. Deterministic: the same graph gives the same text."""
    placed = layout(picture)
    height = placed.height + _LEGEND * (1 + len(picture.kinds) + bool(picture.note))
    down = _Down(height)
    lines = [
        "digraph levels {",
        "  graph [rankdir=TB, newrank=true, fontname=Helvetica, nodesep=0.3, ranksep=0.45, bgcolor=white, pad=0.15,",
        f'         labelloc=t, bb="0,0,{placed.width:.0f},{height + _TOP:.0f}",',
        f'         lp="{placed.width / 2:.0f},{height + _TOP / 2:.0f}", label=<{_heading(picture)}>];',
        "  node [shape=none, margin=0, fontname=Helvetica, fontsize=10];",
        "  edge [fontname=Helvetica, fontsize=8, arrowsize=0.7];",
    ]
    for band in placed.bands:
        lines += _band(band, placed, down)
    lines += _stack(placed)
    rows = {item.card.id: item.row for item in placed.items if item.card is not None}
    lines += [_edge(route, rows, down) for route in placed.routes]
    return "\n".join([*lines, *_legend(picture, placed, down), "}"]) + "\n"


class _Down:
    """Turns page coordinates (y down) into Graphviz's (y up)."""

    def __init__(self, height: float) -> None:
        self.height = height

    def at(self, point: Point) -> str:
        return f"{point[0]:.1f},{self.height - point[1]:.1f}"


def _heading(picture: Picture) -> str:
    # Rows of a table, because lines of a label touch: an underscore of the title would strike the subtitle.
    return (
        '<table border="0" cellborder="0" cellspacing="0" cellpadding="0">'
        f'<tr><td><font point-size="18"><b>{_html(picture.title)}</b></font></td></tr><tr><td height="5"></td></tr>'
        f'<tr><td><font point-size="10" color="{_MUTED}">{_html(picture.subtitle)}</font></td></tr></table>'
    )


def _band(band: BandBox, placed: Layout, down: _Down) -> list[str]:
    title = f"level {band.level}"
    width = max(text_width(title, 11, True), text_width(band.frequency, 10))
    label = (
        f'<table border="0" cellborder="0" cellspacing="0" cellpadding="1" width="{width:.0f}"><tr><td align="left">'
        f'<font point-size="11"><b>{title}</b></font></td></tr><tr><td align="left">'
        f'<font point-size="10" color="{_MUTED}">{_html(band.frequency)}</font></td></tr></table>'
    )
    bottom, top = down.at((4, band.y + band.height)), down.at((placed.width - 4, band.y))
    lines = [
        f"  subgraph cluster_level_{band.level} {{",
        f'    graph [style="rounded,filled", color="#D9DEE4", fillcolor="#F8F9FB", labeljust=l, bb="{bottom},{top}",',
        f'           lp="{down.at((14 + width / 2, band.y + 22))}", label=<{label}>];',
    ]
    rows: dict[int, list[str]] = {}
    for item in placed.items:
        if item.card is not None and item.card.level == band.level:
            lines.append(_node(item, item.card, down))
            rows.setdefault(item.row, []).append(item.card.id)
    lines += [f"    {{ rank=same; {'; '.join(row)}; }}" for row in rows.values()]
    return [*lines, "  }"]


def _stack(placed: Layout) -> list[str]:
    """Hold the rows of all levels one under the other, for `dot`, with invisible edges between their first cards."""
    first: dict[int, str] = {}
    for item in placed.items:
        if item.card is not None:
            first.setdefault(item.row, item.card.id)
    cards = [first[row] for row in sorted(first)]
    return [f"  {above} -> {below} [style=invis];" for above, below in pairwise(cards)]


def _node(item: Item, card: Card, down: _Down) -> str:
    centre = down.at((item.x, item.y + item.height / 2))
    size = f"width={item.width / 72:.3f}, height={item.height / 72:.3f}, fixedsize=true"
    return f'    {card.id} [pos="{centre}", {size}, tooltip={_quoted(card.title)}, label=<{_table(card, item)}>];'


def _table(card: Card, item: Item) -> str:
    fill, line = FILLS[card.style]
    badge = f'&#160;&#160;<font color="{line}">{_html(card.badge)}</font>' if card.badge else ""
    says = f'<font point-size="8.5" color="{_MUTED}">{_html(caption(card))}</font>'
    head = (
        f'<tr><td align="left"><font point-size="11"><b>{_html(shown(card.title))}</b></font>{badge}</td>'
        f'<td width="14"></td><td align="right">{says}</td></tr>'
    )
    size = f'width="{item.width:.0f}" height="{item.height:.0f}" fixedsize="true"'
    return (
        f'<table border="1" cellborder="0" cellspacing="0" cellpadding="5" bgcolor="{fill}" color="{line}" '
        f'style="rounded" {size}><tr><td><table border="0" cellborder="0" cellspacing="0" cellpadding="1" '
        f'width="{item.width - 14:.0f}">{head}</table></td></tr>{_rows(card, item)}</table>'
    )


def _rows(card: Card, item: Item) -> str:
    if not card.rows:
        return ""
    rows = "".join(_row(word, text) for word, text in card.rows)
    return (
        '<tr><td align="left"><table border="0" cellborder="0" cellspacing="0" cellpadding="2" '
        f'width="{item.width - 14:.0f}">{rows}</table></td></tr>'
    )


def _row(word: str, text: str) -> str:
    said = f'<font point-size="9">{_html(shown(text))}</font>'
    if not word:
        return f'<tr><td align="left" colspan="2">{said}</td></tr>'
    name = f'<font point-size="9" color="{_MUTED}">{_html(shown(word))}&#160;&#160;</font>'
    return f'<tr><td align="left">{name}</td><td align="left">{said}</td></tr>'


def _edge(route: Route, rows: dict[str, int], down: _Down) -> str:
    link = route.link
    style = KINDS[link.kind]
    upward = rows[link.source] > rows[link.target]
    head = f"arrowtail={style.head}, dir=back" if upward else f"arrowhead={style.head}"
    ends = f"{link.target} -> {link.source}" if upward else f"{link.source} -> {link.target}"
    width = 2.2 if link.same_time else 1.2
    # Graphviz ranks tails above heads: an arrow that points up is declared downwards and drawn backwards.
    return (
        f'  {ends} [color="{style.light}", style={style.dot}, {head}, penwidth={width}, '
        f'tooltip={_quoted(_note(link))}, pos="{_spline(route.points, upward, down)}"];'
    )


def _note(link: Link) -> str:
    return f"{link.kind}: {', '.join(link.uses)}" + (" (declared)" if link.declared else "")


def _spline(points: tuple[Point, ...], upward: bool, down: _Down) -> str:
    """Return a Graphviz spline; its last point stands back from the tip by the length of the head."""
    tip, before = points[-1], points[-2]
    length = max(1e-6, ((tip[0] - before[0]) ** 2 + (tip[1] - before[1]) ** 2) ** 0.5)
    back = min(HEAD_LENGTH, 0.8 * length) / length
    base = (tip[0] + (before[0] - tip[0]) * back, tip[1] + (before[1] - tip[1]) * back)
    curve = (*points[:-1], base)
    if upward:
        return f"s,{down.at(tip)} " + " ".join(down.at(point) for point in reversed(curve))
    return f"e,{down.at(tip)} " + " ".join(down.at(point) for point in curve)


def _legend(picture: Picture, placed: Layout, down: _Down) -> list[str]:
    """Return one small sample arrow with its meaning for each kind of transfer."""
    lines: list[str] = []
    above = picture.cards[-1].id
    for index, kind in enumerate(picture.kinds):
        style = KINDS[kind]
        y = placed.height + _LEGEND * (index + 0.9)
        text = f'<font point-size="10"><b>{kind}</b>&#160; <font color="{_MUTED}">{_html(style.meaning)}</font></font>'
        route = ((20.0, y), (35.0, y), (50.0, y), (66.0, y))
        lines += [
            f'  legend_{kind}_a [label="", width=0.01, height=0.01, pos="{down.at((20, y))}"];',
            f'  legend_{kind}_b [label=<<table border="0" width="300"><tr><td align="left" width="290">{text}</td></tr>'
            f'</table>>, width=4.2, height=0.25, fixedsize=true, pos="{down.at((226, y))}"];',
            f'  legend_{kind}_a -> legend_{kind}_b [color="{style.light}", style={style.dot}, arrowhead={style.head}, '
            f'penwidth=1.5, pos="{_spline(route, False, down)}"];',
            f"  {{ rank=same; legend_{kind}_a; legend_{kind}_b; }}",
            f"  {above} -> legend_{kind}_a [style=invis];",
        ]
        above = f"legend_{kind}_a"
    if picture.note:
        y = placed.height + _LEGEND * (len(picture.kinds) + 0.9)
        width = text_width(picture.note, 10)
        text = f'<font point-size="10" color="{_MUTED}">{_html(picture.note)}</font>'
        row = f'<tr><td align="left">{text}</td></tr>'
        lines += [
            f'  legend_note [label=<<table border="0" width="{width:.0f}">{row}</table>>, '
            f'width={width / 72:.2f}, height=0.25, fixedsize=true, pos="{down.at((18 + width / 2, y))}"];',
            f"  {above} -> legend_note [style=invis];",
        ]
    return lines


def _html(text: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text)
    return escape(printable.replace(" -> ", " → "), quote=True)


def _quoted(text: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
