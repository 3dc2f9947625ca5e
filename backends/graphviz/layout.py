"""A layered layout of our own, for pages that must not need Graphviz: rows of cards, arrows routed between them.

The usual four steps (Sugiyama, Tagawa and Toda 1981), with the layers given by the levels: wide levels wrap into rows,
arrows that pass a row get a place of their own in it, rows are ordered by barycentres, and positions minimise the
squared distance to the neighbours' mean under the order (pool adjacent violators). Everything is in CSS pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

from nsam.backends.graphviz.cards import Card, Link, Picture

WIDEST = 1040
GAP = 30
LANE = 12
ROW_GAP = 46
BAND_PAD = 14
GUTTER = 118
LINE = 16
HEAD = 24
CUT = 64
CAPTION = 44

BUS = 3
"""So many arrows of one kind from or to one card share a way."""

Point: TypeAlias = "tuple[float, float]"
Trunk: TypeAlias = "tuple[str, str, str, int]"
Lanes: TypeAlias = "dict[tuple[Trunk, int], Item]"


@dataclass(slots=True)
class Item:
    """A card, or (card None) the lane of an arrow passing through a row. `x` is the centre, `y` the top."""

    width: float
    height: float
    row: int
    card: Card | None = None
    x: float = 0.0
    y: float = 0.0
    near: list[Item] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Route:
    """One arrow, as the 3n + 1 points of n cubic Bézier curves from source to target (the tip of its head)."""

    link: Link
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class BandBox:
    """The frame of one level."""

    level: int
    frequency: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Layout:
    """The finished layout: size of the whole, frames of the levels, cards and arrows."""

    width: float
    height: float
    bands: tuple[BandBox, ...]
    items: tuple[Item, ...]
    routes: tuple[Route, ...]


def text_width(text: str, size: float = 12.0, bold: bool = False) -> float:
    """Estimate the width of sans-serif text; errs on the wide side, for wide faces such as DejaVu Sans too."""
    narrow = sum(c in "iljtfr.,:;|!'()[]{} " for c in text)
    wide = sum(c in "mwMW→∞—@%=+<>×" for c in text)
    units = 0.38 * narrow + 0.9 * wide + 0.62 * (len(text) - narrow - wide)
    return units * size * (1.12 if bold else 1.0)


def shown(text: str) -> str:
    """Return a text as a card shows it: arrows as arrows, cut where it is very long."""
    text = text.replace(" -> ", " → ")
    return text if len(text) <= CUT else text[: CUT - 1] + "…"


def caption(card: Card) -> str:
    """Return a card's caption as it is shown: a long path is cut in the middle, as its end says most."""
    text = card.caption
    return text if len(text) <= CAPTION else f"{text[: CAPTION // 3]}…{text[-(CAPTION - CAPTION // 3 - 1) :]}"


def word_width(card: Card) -> float:
    """Return the width of the first column of a card's rows."""
    words = [text_width(shown(word), 11) for word, _ in card.rows if word]
    return max(words) + 10 if words else 0.0


def card_size(card: Card) -> tuple[float, float]:
    """Return a card's width and height."""
    head = (
        text_width(shown(card.title), 13, True) + text_width(card.badge, 12, True) + text_width(caption(card), 11) + 26
    )
    column = word_width(card)
    rows = [text_width(shown(text), 11) + (column if word else 0.0) for word, text in card.rows]
    return max([head, *rows, 90]) + 22, HEAD + LINE * len(card.rows) + 12


def layout(picture: Picture) -> Layout:
    """Place every card and route every arrow."""
    rows, starts = _rows(picture)
    items = {item.card.id: item for row in rows for item in row if item.card is not None}
    trunks = _trunks(picture.links, items)
    made: Lanes = {}
    lanes = [_lanes(link, trunk, items, rows, made) for link, trunk in zip(picture.links, trunks, strict=True)]
    _order(rows)
    _across(rows)
    bands, height = _down(rows, starts, picture)
    left = min((item.x - item.width / 2 for row in rows for item in row), default=0.0)
    right = max((item.x + item.width / 2 for row in rows for item in row), default=0.0)
    gutter = max([GUTTER, *(text_width(band.frequency) + 28 for band in picture.bands)])
    for row in rows:
        for item in row:
            item.x += gutter - left
    routes = _routes(picture.links, trunks, items, lanes)
    return Layout(gutter + right - left + 36, height, bands, tuple(items.values()), routes)


def _rows(picture: Picture) -> tuple[list[list[Item]], list[int]]:
    """Cut the levels into rows that fit; return them and, for each row, the index of its band."""
    rows: list[list[Item]] = []
    starts: list[int] = []
    for index, band in enumerate(picture.bands):
        sizes = [card_size(card) for card in band.cards]
        count = max(1, -(-int(sum(width + GAP for width, _ in sizes)) // WIDEST))
        target = sum(width + GAP for width, _ in sizes) / count
        row: list[Item] = []
        used = 0.0
        for card, (width, height) in zip(band.cards, sizes, strict=True):
            if row and used + width / 2 > target:
                rows.append(row)
                starts.append(index)
                row, used = [], 0.0
            row.append(Item(width, height, len(rows), card))
            used += width + GAP
        rows.append(row)
        starts.append(index)
    return rows, starts


def _trunks(links: Sequence[Link], items: dict[str, Item]) -> list[Trunk]:
    """Return what each arrow shares its way with: many arrows of a kind at one card run together like a bus."""
    leaving: Counter[Trunk] = Counter()
    arriving: Counter[Trunk] = Counter()
    ways: list[tuple[Trunk, Trunk]] = []
    for link in links:
        rise = items[link.target].row - items[link.source].row
        way = (rise > 0) - (rise < 0)
        ways.append((("from", link.source, link.kind, way), ("to", link.target, link.kind, way)))
        if way:
            leaving[ways[-1][0]] += 1
            arriving[ways[-1][1]] += 1
    return [
        out if leaving[out] >= BUS else into if arriving[into] >= BUS else ("own", str(index), "", 0)
        for index, (out, into) in enumerate(ways)
    ]


def _lanes(link: Link, trunk: Trunk, items: dict[str, Item], rows: list[list[Item]], made: Lanes) -> list[Item]:
    """Return an arrow's lanes in the rows between its ends, from source to target; add those that are not there yet."""
    source, target = items[link.source], items[link.target]
    step = 1 if target.row > source.row else -1
    lanes: list[Item] = []
    for row in range(source.row + step, target.row, step) if source.row != target.row else ():
        lane = made.get((trunk, row))
        if lane is None:
            lane = made[trunk, row] = Item(LANE, 0.0, row)
            rows[row].append(lane)
        lanes.append(lane)
    for a, b in pairwise([source, *lanes, target] if source is not target else []):
        if not any(near is b for near in a.near) or trunk[0] == "own":
            a.near.append(b)
            b.near.append(a)
    return lanes


def _order(rows: list[list[Item]]) -> None:
    for row in rows:
        for index, item in enumerate(row):
            item.x = index - len(row) / 2
    for sweep in range(12):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            row.sort(key=_barycentre)
            for index, item in enumerate(row):
                item.x = (index - len(row) / 2) * (8 / max(8, len(row)))


def _barycentre(item: Item) -> float:
    others = [near.x for near in item.near if near.row != item.row]
    return sum(others) / len(others) if others else item.x


def _across(rows: list[list[Item]]) -> None:
    for row in rows:
        _spread(row, [0.0] * len(row), [1.0] * len(row))
    for sweep in range(24):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = [_barycentre(item) for item in row]
            weights = [3.0 if item.card is None else 1.0 for item in row]
            _spread(row, wanted, weights)
        _centre(rows)


def _centre(rows: list[list[Item]]) -> None:
    """Hold the rows over each other: no row may wander further than half the widest one from the middle."""
    half = max((sum(item.width + GAP for item in row) for row in rows), default=0.0) / 2
    for row in rows:
        if not row:
            continue
        low, high = row[0].x - row[0].width / 2, row[-1].x + row[-1].width / 2
        shift = max(-half - low, 0.0) - max(high - half, 0.0)
        for item in row:
            item.x += shift


def _spread(row: Sequence[Item], wanted: Sequence[float], weights: Sequence[float]) -> None:
    """Move a row's items as near to where they want to be as their order and widths allow (least squares)."""
    blocks: list[list[float]] = []  # weight, mean of (wanted - offset), number of items
    offsets: list[float] = []
    offset = 0.0
    for index, item in enumerate(row):
        if index:
            before = row[index - 1]
            gap = GAP if item.card is not None and before.card is not None else GAP / 2
            offset += before.width / 2 + gap + item.width / 2
        offsets.append(offset)
        blocks.append([weights[index], wanted[index] - offset, 1])
        while len(blocks) > 1 and blocks[-2][1] > blocks[-1][1]:
            w, mean, n = blocks.pop()
            last = blocks[-1]
            last[1] = (last[0] * last[1] + w * mean) / (last[0] + w)
            last[0] += w
            last[2] += n
    index = 0
    for _, mean, n in blocks:
        for _ in range(int(n)):
            row[index].x = mean + offsets[index]
            index += 1


def _down(rows: list[list[Item]], starts: list[int], picture: Picture) -> tuple[tuple[BandBox, ...], float]:
    bands: list[BandBox] = []
    y = 8.0
    for index, band in enumerate(picture.bands):
        top = y
        y += BAND_PAD
        mine = [row for row, start in zip(rows, starts, strict=True) if start == index]
        for number, row in enumerate(mine):
            height = max((item.height for item in row), default=0.0)
            loops = any(near.row == item.row for item in row for near in item.near)
            y += 18 if loops else 0
            for item in row:
                item.y = y
                if item.card is None:
                    item.height = height
            y += height + (ROW_GAP if number < len(mine) - 1 else 0)
        y += BAND_PAD
        bands.append(BandBox(band.level, band.frequency, top, y - top))
        y += ROW_GAP - BAND_PAD
    return tuple(bands), y - ROW_GAP + BAND_PAD + 8


# --- arrows --------------------------------------------------------------------------------------


def _routes(
    links: Sequence[Link], trunks: Sequence[Trunk], items: dict[str, Item], lanes: Sequence[list[Item]]
) -> tuple[Route, ...]:
    """Route every arrow; what meets one side of a card is spread along it in the order of where it goes."""
    ends: dict[tuple[str, str], dict[object, list[float]]] = {}
    sides: dict[tuple[int, bool], tuple[tuple[str, str], object]] = {}
    for index, link in enumerate(links):
        source, target = items[link.source], items[link.target]
        if source is target:
            continue
        chain = [source, *lanes[index], target]
        down = target.row > source.row
        level = target.row == source.row
        for start, card, there in ((True, link.source, chain[1]), (False, link.target, chain[-2])):
            side = (card, "top" if level or down != start else "bottom")
            shared = trunks[index][0] == ("from" if start else "to")
            spot: object = trunks[index] if shared else (index, start)
            sides[index, start] = (side, spot)
            ends.setdefault(side, {}).setdefault(spot, []).append(there.x)
    spots: dict[tuple[tuple[str, str], object], float] = {}
    for side, found in ends.items():
        item = items[side[0]]
        room = item.width - 28
        ordered = sorted(found, key=lambda spot: sum(found[spot]) / len(found[spot]))
        for place, spot in enumerate(ordered, 1):
            spots[side, spot] = item.x - room / 2 + room * place / (len(found) + 1)
    return tuple(
        Route(
            link,
            _points(
                link,
                [(sides[index, start][0][1], spots[sides[index, start]]) for start in (True, False)]
                if link.source != link.target
                else [],
                items,
                lanes[index],
            ),
        )
        for index, link in enumerate(links)
    )


def _points(
    link: Link, ends: Sequence[tuple[str, float]], items: dict[str, Item], lanes: Sequence[Item]
) -> tuple[Point, ...]:
    """Return an arrow's curve; `ends` are (side of the card, x) at the source and at the target."""
    source, target = items[link.source], items[link.target]
    if source is target:
        x, y = source.x + source.width / 2, source.y + HEAD / 2
        return ((x, y), (x + 30, y - 8), (x + 30, y + 32), (x + 2, y + 24))
    (leaves, x0), (enters, x1) = ends
    y0 = source.y if leaves == "top" else source.y + source.height
    y1 = target.y - 2 if enters == "top" else target.y + target.height + 2
    if source.row == target.row:
        lift = min(source.y, target.y) - min(34.0, 14 + abs(x1 - x0) / 14)
        return ((x0, y0), (x0, lift), (x1, lift), (x1, y1))
    points: list[Point] = [(x0, y0)]
    for lane in lanes:
        bottom = lane.y + lane.height
        near, far = (lane.y, bottom) if target.row > source.row else (bottom, lane.y)
        points += _bend(points[-1], (lane.x, near))
        points += [(lane.x, near + (far - near) / 3), (lane.x, far - (far - near) / 3), (lane.x, far)]
    return (*points, *_bend(points[-1], (x1, y1)))


def _bend(start: Point, end: Point) -> list[Point]:
    middle = (start[1] + end[1]) / 2
    return [(start[0], middle), (end[0], middle), end]
