"""Mermaid text: renders in Markdown on most forges. Levels are subgraphs, transfers are link styles.

An invisible path through all cards comes before the transfers: Mermaid's layout follows the first links first and turns
those around that lead back, so the fastest level stays on top.
"""

from __future__ import annotations

from itertools import pairwise

from nsam.backends.graphviz.cards import KINDS, Card, Link, Picture

_ARROWS = {"backprop": "-->", "direct": "-.->", "init": "-.->", "generate": "==>"}
_CLASSES = {
    "memory": "fill:#E3F0FA,stroke:#0072B2,color:#1F2933",
    "attention": "fill:#E0F3EE,stroke:#00755A,color:#1F2933",
    "generated": "fill:#F7E8F1,stroke:#A0457A,color:#1F2933",
    "weights": "fill:#F3F4F6,stroke:#7B8794,color:#1F2933",
    "rule": "fill:#FDF1DC,stroke:#B85C00,color:#1F2933",
    "training": "fill:#FFFFFF,stroke:#1F2933,color:#1F2933",
}


def mermaid_text(picture: Picture) -> str:
    """Return the picture as a Mermaid flowchart."""
    lines = ["---", f"title: {_yaml(picture.title)}", "---", "flowchart TB"]
    for band in picture.bands:
        lines.append(f'  subgraph level_{band.level}["level {band.level}: {_safe(band.frequency)}"]')
        lines += [f'    {card.id}["{_label(card)}"]:::{card.style}' for card in band.cards]
        lines.append("  end")
    path = list(pairwise(card.id for card in picture.cards))
    lines += [f"  {above} ~~~ {below}" for above, below in path]
    lines += [f"  {link.source} {_arrow(link)} {link.target}" for link in picture.links]
    lines += [
        f"  linkStyle {','.join(str(i) for i, link in enumerate(picture.links, len(path)) if link.kind == kind)} "
        f"stroke:{KINDS[kind].light}"
        for kind in picture.kinds
    ]
    used = dict.fromkeys(card.style for card in picture.cards)
    lines += [f"  classDef {style} {_CLASSES[style]}" for style in used]
    lines += ["  classDef level fill:#F8F9FB,stroke:#D9DEE4,color:#1F2933"]
    lines += [f"  class {','.join(f'level_{band.level}' for band in picture.bands)} level"]
    return "\n".join(lines) + "\n"


def _arrow(link: Link) -> str:
    return f"{_ARROWS[link.kind]}|{link.kind}|" if link.kind != "backprop" else _ARROWS[link.kind]


def _label(card: Card) -> str:
    badge = f" {card.badge}" if card.badge else ""
    head = f"<b>{_safe(card.title)}</b>{_safe(badge)}"
    return "<br>".join([head, *(_safe(f"{word}: {text}" if word else text) for word, text in card.rows)])


def _safe(text: str) -> str:
    """Write a text so that Mermaid shows it as it is: its own entity codes for everything with a meaning."""
    text = "".join(c if c.isprintable() else " " for c in text).replace(" -> ", " → ")
    return "".join(f"#{ord(c)};" if c in '"#;<>&`{}[]()|\\*_~:' else c for c in text)


def _yaml(text: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
