"""A self-contained HTML page: inline SVG, hover details, legend that filters, light and dark. No network, no `dot`."""

from __future__ import annotations

import json
from html import escape
from importlib import resources

from nsam.backends.graphviz.cards import KINDS, Picture
from nsam.backends.graphviz.layout import (
    HEAD,
    LINE,
    BandBox,
    Item,
    Layout,
    Route,
    caption,
    layout,
    shown,
    word_width,
)


def html_page(picture: Picture) -> str:
    """Return the page. Every text of the program is escaped; the page loads nothing."""
    placed = layout(picture)
    folder = resources.files("nsam.backends.graphviz")
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_safe(picture.title)}: levels</title>",
            f"<style>\n{_colours()}\n{style}</style>",
            "</head>",
            "<body>",
            f"<header><h1>{_safe(picture.title)}</h1><p>{_safe(picture.subtitle)}</p></header>",
            _legend(picture),
            f"<main>{svg(placed)}</main>",
            '<aside id="details" aria-live="polite"><p>Point at a memory or an arrow for its details.</p></aside>',
            f'<script type="application/json" id="about">{_data(picture)}</script>',
            f"<script>\n{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def svg(placed: Layout) -> str:
    """Return the inline SVG of a layout."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {placed.width:.0f} {placed.height:.0f}" '
        f'width="{placed.width:.0f}" height="{placed.height:.0f}" role="img" aria-label="level graph">',
        "<defs>",
        *(_marker(kind) for kind in KINDS),
        "</defs>",
        *(_band(band, placed.width) for band in placed.bands),
        *(_arrow(route) for route in placed.routes),
        *(_card(item) for item in placed.items),
        "</svg>",
    ]
    return "\n".join(lines)


def _band(band: BandBox, width: float) -> str:
    return (
        f'<g class="band"><rect x="4" y="{band.y:.1f}" width="{width - 8:.1f}" height="{band.height:.1f}" rx="10"/>'
        f'<text class="level" x="16" y="{band.y + 20:.1f}">level {band.level}</text>'
        f'<text x="16" y="{band.y + 37:.1f}">{_safe(band.frequency)}</text></g>'
    )


def _marker(kind: str) -> str:
    shape = {
        "backprop": '<path d="M0,0 L9,4 L0,8 z"/>',
        "direct": '<path d="M0,0 L9,4 L0,8 L3,4 z"/>',
        "init": '<path class="open" d="M1,1 L8,4 L1,7 z"/>',
        "generate": '<path d="M0,4 L4.5,0.5 L9,4 L4.5,7.5 z"/>',
    }[kind]
    return (
        f'<marker id="head-{kind}" class="{kind}" viewBox="0 0 9 8" refX="8" refY="4" markerWidth="9" markerHeight="8" '
        f'markerUnits="userSpaceOnUse" orient="auto">{shape}</marker>'
    )


def _arrow(route: Route) -> str:
    link = route.link
    now = " now" if link.same_time else ""
    said = " (declared)" if link.declared else ""
    note = f"{link.kind}{said}: {', '.join(link.uses)}"
    path = _path(route)
    return (
        f'<g class="link {link.kind}{now}" data-from="{link.source}" data-to="{link.target}" data-kind="{link.kind}" '
        f'data-note="{_safe(note)}"><path class="reach" fill="none" d="{path}"/>'
        f'<path class="line" fill="none" d="{path}" marker-end="url(#head-{link.kind})"/>'
        f"<title>{_safe(note)}</title></g>"
    )


def _path(route: Route) -> str:
    start, *rest = [f"{x:.1f},{y:.1f}" for x, y in route.points]
    return f"M{start} C{' '.join(rest)}"


def _card(item: Item) -> str:
    card = item.card
    if card is None:
        return ""
    left, top = item.x - item.width / 2, item.y
    badge = f'<tspan class="badge" dx="6">{_safe(card.badge)}</tspan>' if card.badge else ""
    lines = [
        f'<g class="card {card.style}" id="{card.id}" tabindex="0" transform="translate({left:.1f},{top:.1f})">',
        f'<rect width="{item.width:.1f}" height="{item.height:.1f}" rx="7"/>',
        f'<text x="11" y="18"><tspan class="title">{_safe(shown(card.title))}</tspan>{badge}</text>',
    ]
    if card.caption:
        lines.append(f'<text class="caption" x="{item.width - 11:.1f}" y="18">{_safe(caption(card))}</text>')
    column = 11 + word_width(card)
    for index, (word, text) in enumerate(card.rows):
        y = HEAD + LINE * index + 12
        if word:
            lines.append(f'<text class="word" x="11" y="{y}">{_safe(shown(word))}</text>')
        lines.append(f'<text class="text" x="{column if word else 11:.1f}" y="{y}">{_safe(shown(text))}</text>')
    return "".join([*lines, "</g>"])


def _legend(picture: Picture) -> str:
    if not picture.kinds:
        return ""
    entries = "".join(
        f'<label class="{kind}"><input type="checkbox" checked data-kind="{kind}">'
        f'<svg width="46" height="10" aria-hidden="true"><path class="line {kind}" d="M2,5 L38,5" '
        f'marker-end="url(#head-{kind})"/></svg><b>{kind}</b><span>{_safe(KINDS[kind].meaning)}</span></label>'
        for kind in picture.kinds
    )
    note = f"<p>{_safe(picture.note)}</p>" if picture.note else ""
    return f'<nav id="legend">{entries}{note}</nav>'


def _colours() -> str:
    light = "".join(f"--{kind}:{style.light};" for kind, style in KINDS.items())
    dark = "".join(f"--{kind}:{style.dark};" for kind, style in KINDS.items())
    rules = "\n".join(f".{kind}{{--kind:var(--{kind});--dash:{style.dash or 'none'}}}" for kind, style in KINDS.items())
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{rules}"


def _data(picture: Picture) -> str:
    cards = {card.id: [picture.about[path] for path in card.members] for card in picture.cards}
    # `<` is written as an escape, so that no text of a program can close the script element.
    return json.dumps(cards, ensure_ascii=False, sort_keys=True).replace("<", "\\u003c").replace("&", "\\u0026")


def _safe(text: str) -> str:
    return escape("".join(c if c.isprintable() else " " for c in text), quote=True)
