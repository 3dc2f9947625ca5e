"""What every picture shows: levels as bands, cards in them, transfers between cards.

A card is one memory, several that are alike in every clause, or the plain parameters of one system. Grouping
belongs to the picture: the graph keeps a node for each memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import networkx as nx


@dataclass(frozen=True, slots=True)
class Card:
    """One box: `title` over `rows` of (name, text); `style` is one of `STYLES`."""

    id: str
    level: int
    style: str
    title: str
    badge: str
    caption: str
    rows: tuple[tuple[str, str], ...]
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """One arrow between cards: all transfers of one kind between their members. `same_time` when any is."""

    source: str
    target: str
    kind: str
    declared: bool
    same_time: bool
    uses: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Band:
    """One level: its number, its frequency, its cards."""

    level: int
    frequency: str
    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything a renderer needs. `about` describes every memory by path, for hover texts."""

    title: str
    subtitle: str
    bands: tuple[Band, ...]
    links: tuple[Link, ...]
    about: dict[str, str] = field(default_factory=dict)

    @property
    def cards(self) -> tuple[Card, ...]:
        """All cards, fastest level first."""
        return tuple(card for band in self.bands for card in band.cards)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of transfer that occur, in the order of the legend."""
        return tuple(kind for kind in KINDS if any(link.kind == kind for link in self.links))

    @property
    def note(self) -> str:
        """What the width of an arrow means, where there are two."""
        return SAME_TIME if any(link.same_time for link in self.links) else ""


@dataclass(frozen=True, slots=True)
class KindStyle:
    """How a kind of transfer is drawn: colours for light and dark grounds, dash pattern, arrow head, meaning."""

    light: str
    dark: str
    dash: str
    dot: str
    head: str
    meaning: str


# Okabe and Ito's colour-blind-safe palette; the dash tells the kinds apart where colour does not.
KINDS: dict[str, KindStyle] = {
    "backprop": KindStyle("#0072B2", "#56B4E9", "", "solid", "normal", "one gradient flow through both"),
    "direct": KindStyle("#52606D", "#9AA5B1", "2 3", "dotted", "vee", "forward only, no gradient crosses"),
    "init": KindStyle("#B85C00", "#E69F00", "7 4", "dashed", "onormal", "the slow level learns the start"),
    "generate": KindStyle("#A0457A", "#CC79A7", "9 3 2 3", "dashed", "diamond", "writes the other's state or context"),
}

SAME_TIME = "Thick arrows show the state after the current token or update; thin ones the last boundary."

MOST_ROWS = 14
"""Lines on one card; the rest is in the hover text and in the JSON."""

STYLES = ("memory", "attention", "generated", "weights", "rule", "training")


def picture(graph: nx.MultiDiGraph) -> Picture:
    """Return the picture of a level graph: cards grouped, transfers merged."""
    groups: dict[Hashable, list[str]] = {}
    for path, node in graph.nodes(data=True):
        groups.setdefault(_group(path, node), []).append(path)
    cards = [_card(f"n{i}", paths, graph) for i, paths in enumerate(groups.values())]
    home = {path: card.id for card in cards for path in card.members}
    frequencies: dict[int, str] = graph.graph["levels"]
    bands = tuple(
        Band(level, text, tuple(sorted((c for c in cards if c.level == level), key=_order)))
        for level, text in frequencies.items()
    )
    name = str(graph.graph.get("name", ""))
    return Picture(name, _subtitle(graph), bands, tuple(_links(graph, home)), _about(graph))


def _order(card: Card) -> int:
    return STYLES.index(card.style)


def _group(path: str, node: dict[str, Any]) -> Hashable:
    if node["role"] == "weight":
        return ("weights", node["system"], node["level"])
    if node["role"] in ("rule-memory", "rule-state"):
        return ("rule", path.rsplit(".", 1)[0], node["level"])
    if node["role"] == "memory":
        return ("memory", node["system"], node["level"], node["frequency_text"], node["summed"], *_clauses(node))
    return path


def _card(id_: str, paths: list[str], graph: nx.MultiDiGraph) -> Card:
    nodes = [graph.nodes[path] for path in paths]
    first = nodes[0]
    role = first["role"]
    style = {"weight": "weights", "rule-memory": "rule", "rule-state": "rule"}.get(role, role)
    names = [_short(path, node["system"]) for path, node in zip(paths, nodes, strict=True)]
    badge = f"×{first['count']}" if first["count"] != 1 else ""
    if style == "weights":
        title, caption, rows = first["unit"], "weights", _weight_rows(names, nodes)
    elif style == "rule":
        title, caption, rows = _rule_title(paths[0], graph), _served(first), _rule_rows(names, nodes)
    elif style == "training":
        title, caption, rows = paths[0], "the level that trains", _clauses(first)
    else:
        title, caption, rows = _names(names), str(first["unit"]), _clauses(first)
    if len(rows) > MOST_ROWS:
        rows = [*rows[: MOST_ROWS - 1], ("", f"… and {len(rows) - MOST_ROWS + 1} more")]
    return Card(id_, first["level"], style, title, badge, caption, tuple(rows), tuple(paths))


def _short(path: str, system: str) -> str:
    return path.removeprefix(f"{system}.") if system else path


def _names(names: list[str]) -> str:
    """List names; of many, the first and the last with their number."""
    return ", ".join(names) if len(names) <= 6 else f"{names[0]} … {names[-1]} ({len(names)})"


def _served(node: dict[str, Any]) -> str:
    hosts = node["hosts"]
    return f"serves {hosts[0]}" if len(hosts) == 1 else f"serves {len(hosts)} memories"


def _rule_title(path: str, graph: nx.MultiDiGraph) -> str:
    prefix = path.rsplit(".", 1)[0]
    node = graph.nodes[path]
    if node["system"] == graph.graph["training"]:
        group = prefix.removeprefix(f"{node['system']}.").split(".", 1)[0]
        return f"{node['unit']} for {group}" if group in ("matrices", "others") else str(node["unit"])
    return f"inside {prefix.rsplit('.*.', 1)[-1]}"


def _weight_rows(names: list[str], nodes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    alike: dict[str, list[str]] = {}
    for name, node in zip(names, nodes, strict=True):
        alike.setdefault(compact(node["structure_text"]), []).append(name)
    return [(_names(members), text) for text, members in alike.items()]


def _rule_rows(names: list[str], nodes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    rows = []
    for name, node in zip(names, nodes, strict=True):
        text = f"learn {node['context']}, minimize {node['objective']}" if node["objective"] else node["rule"]
        rows.append((name.rsplit(".", 1)[-1], text))
    return rows


def _clauses(node: dict[str, Any]) -> list[tuple[str, str]]:
    clauses = [
        ("", compact(node["structure_text"])),
        ("learn" if node["role"] != "training" or node["context"] == "data" else "data", node["context"]),
        ("minimize", node["objective"]),
        ("by", node["rule"]),
        ("init", node["initial"] if node["initial"] not in ("learned", "empty") else ""),
        ("reads", "running" if node["reads"] == "running" and node["role"] == "memory" else ""),
        ("reset", node["reset"] if node["reset"] != "per sequence" else ""),
    ]
    return [(word, text) for word, text in clauses if text]


def compact(structure: str) -> str:
    """Shorten a structure's text for a card: `mlp(64 -> 64, silu, 4 heads)`."""
    return re.sub(r"(kv_)?heads = (\d+)", r"\2 \1heads", structure).replace("act = ", "")


def _links(graph: nx.MultiDiGraph, home: dict[str, str]) -> Iterable[Link]:
    merged: dict[tuple[str, str, str], list[tuple[str, str, dict[str, Any]]]] = {}
    drawn = _drawn_at(graph, home)
    for source, target, data in graph.edges(data=True):
        ends = (drawn(source, target), drawn(target, source))
        merged.setdefault((*ends, data["kind"]), []).append((source, target, data))
    for (source, target, kind), edges in merged.items():
        if source == target and kind in ("backprop", "direct") and graph.nodes[edges[0][0]]["role"] == "weight":
            continue  # plain parameters that feed each other: nothing a picture would add
        yield Link(
            source,
            target,
            kind,
            any(data["declared"] for _, _, data in edges),
            any(data["shows"] == "same-time" for _, _, data in edges),
            tuple(dict.fromkeys(use for _, _, data in edges for use in data["uses"])),
            tuple((a, b) for a, b, _ in edges),
        )


def _drawn_at(graph: nx.MultiDiGraph, home: dict[str, str]) -> Callable[[str, str], str]:
    """Return where to draw an edge's end at `path` when the other end is `other`.

    It is the card of `path`, but the training level's card when `other` is an optimizer's memory that serves several
    cards: its gradients come from that level, and the card says how many memories it serves.
    """
    training = graph.graph["training"]
    served: dict[str, set[str]] = {}
    for path, node in graph.nodes(data=True):
        if node["role"] in ("rule-memory", "rule-state") and node["system"] == training:
            served.setdefault(home[path], set()).update(home[host] for host in node["hosts"])

    def place(path: str, other: str) -> str:
        wide = len(served.get(home[other], ())) > 1 and home[path] not in served
        return home[training] if wide else home[path]

    return place


def _subtitle(graph: nx.MultiDiGraph) -> str:
    levels = len(graph.graph["levels"])
    memories = sum(node["role"] != "training" for _, node in graph.nodes(data=True))
    counts = [(node["parameters"], node["count"]) for _, node in graph.nodes(data=True)]
    text = f"{memories} memor{'ies' if memories != 1 else 'y'} on {levels} level{'s' if levels != 1 else ''}"
    if all(isinstance(size, int) and isinstance(count, int) for size, count in counts):
        text += f", {sum(size * count for size, count in counts):,} parameters"
    training = str(graph.graph["training"])
    return f"{text}; {training}" if training != "training" else text


def _about(graph: nx.MultiDiGraph) -> dict[str, str]:
    about = {}
    for path, node in graph.nodes(data=True):
        lines = [f"{path}: level {node['level']}, {node['frequency_text']}"]
        lines += [f"{word} {text}".strip() for word, text in _clauses(node)]
        if node["parameters"]:
            lines.append(f"{node['parameters']:,} parameters" + (f" × {node['count']}" if node["count"] != 1 else ""))
        if node["hosts"]:
            lines.append("serves " + ", ".join(node["hosts"]))
        about[path] = "\n".join(lines)
    return about
