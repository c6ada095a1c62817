"""A picture of the zones: boxes by Purdue level, lines for what goes between them.

References:
    IEC 62443-3-2, zones and conduits; ISA-95 for the levels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from siem.console.view import brief
from siem.store.protocol import AssetRow, Conduit, ZoneRow

LEVELS = {
    "external": 5.0,
    "enterprise": 4.0,
    "dmz": 3.5,
    "remote_access": 3.5,
    "supervisory": 2.0,
    "physical_security": 2.0,
    "control": 1.0,
    "safety": 1.0,
    "iot": 1.0,
    "field": 0.0,
}
"""Level of a zone that says none, by its type."""
ROW_PX = 112
BOX_PX = 46
TOP_PX = 10
LABEL_X = 7.0
"""Per cent of the width that the names of the levels take."""
ZONES_MOST = 60
LINES_MOST = 200


@dataclass(frozen=True, slots=True)
class Box:
    """One zone; x and width in per cent, y in px, so that no text is stretched."""

    zone: ZoneRow
    name: str
    said: str
    x: float
    width: float
    y: int

    @property
    def middle(self) -> float:
        """Where lines end."""
        return self.x + self.width / 2


@dataclass(frozen=True, slots=True)
class Line:
    """What goes from one zone to another, one or more conduits."""

    number: int
    x1: float
    y1: int
    x2: float
    y2: int
    label_x: float
    label_y: int
    label: str
    is_approved: bool
    conduits: Sequence[Conduit]


@dataclass(frozen=True, slots=True)
class Picture:
    """All of it, ready to be drawn by a template."""

    boxes: Sequence[Box]
    lines: Sequence[Line]
    levels: Sequence[tuple[int, str]]
    """Place and words of each level."""
    height: int


def picture(
    zones: Sequence[ZoneRow], conduits: Sequence[Conduit], assets: Sequence[AssetRow]
) -> Picture:
    """Place zones and draw what goes between them; a zone nobody declared is outside."""
    named = {zone.id for zone in zones}
    ends = dict.fromkeys(end for one in conduits for end in (one.source, one.destination))
    shown = [*zones, *(ZoneRow(end, "external") for end in ends if end not in named)][:ZONES_MOST]
    rows: dict[float, list[ZoneRow]] = {}
    for zone in shown:
        rows.setdefault(_level(zone), []).append(zone)
    counts = Counter(_zone(row) for row in assets)
    new = Counter(_zone(row) for row in assets if row.state == "observed")
    boxes: dict[str, Box] = {}
    levels = []
    for place, level in enumerate(sorted(rows, reverse=True)):
        y = TOP_PX + place * ROW_PX
        levels.append((y + BOX_PX // 2, f"Level {level:g}"))
        slot = (100 - LABEL_X) / len(rows[level])
        width = min(slot * 0.86, 24.0)
        for column, zone in enumerate(rows[level]):
            said = f"{counts[zone.id]:,} assets" if counts[zone.id] != 1 else "1 asset"
            said += f", {new[zone.id]:,} new" if new[zone.id] else ""
            # Rows stand a little aside of each other, so that a line does not hide behind a box.
            shift = (place % 3 - 1) * 0.4 * min(slot - width, 40.0)
            x = LABEL_X + slot * column + (slot - width) / 2 + shift
            boxes[zone.id] = Box(zone, brief(zone.id, 22), said, x, width, y)
    height = TOP_PX + (len(levels) - 1) * ROW_PX + BOX_PX + 34
    return Picture([*boxes.values()], _lines(boxes, conduits), levels, max(height, BOX_PX))


def _lines(boxes: dict[str, Box], conduits: Sequence[Conduit]) -> list[Line]:
    pairs: dict[tuple[str, str], list[Conduit]] = {}
    for one in conduits:
        if one.source in boxes and one.destination in boxes and one.state != "retired":
            pairs.setdefault((one.source, one.destination), []).append(one)
    return [
        _line(number, boxes[source], boxes[destination], members)
        for number, ((source, destination), members) in enumerate(pairs.items(), 1)
    ][:LINES_MOST]


def _line(number: int, source: Box, destination: Box, members: Sequence[Conduit]) -> Line:
    """From edge to edge; lines of one box leave it side by side."""
    aside = (number * 37 % 7 - 3) / 9
    x1, x2 = source.middle + aside * source.width, destination.middle + aside * destination.width
    if source.y == destination.y:
        y1 = y2 = source.y + BOX_PX // 2
        to_right = source.x < destination.x
        x1 = source.x + source.width if to_right else source.x
        x2 = destination.x if to_right else destination.x + destination.width
        y1 = y2 = y1 + (6 if to_right else -6)
    else:
        down = source.y < destination.y
        y1 = source.y + BOX_PX if down else source.y
        y2 = destination.y - 2 if down else destination.y + BOX_PX + 2
    protocols = list(dict.fromkeys(_word(one) for one in members))
    more = f" +{len(protocols) - 2}" if len(protocols) > 2 else ""
    # Where several lines leave one box, their labels stand at different heights.
    part = (0.36, 0.5, 0.64)[number % 3]
    return Line(
        number,
        x1,
        y1,
        x2,
        y2,
        x1 + (x2 - x1) * part,
        round(y1 + (y2 - y1) * part) + 4,
        brief(f"{number}  {', '.join(protocols[:2])}{more}", 34),
        all(one.state == "approved" for one in members),
        members,
    )


def _word(conduit: Conduit) -> str:
    """A decoded protocol by name; else transport and port."""
    is_transport = conduit.protocol in ("tcp", "udp", "sctp") and conduit.port
    return f"{conduit.protocol}/{conduit.port}" if is_transport else conduit.protocol


def _level(zone: ZoneRow) -> float:
    return zone.purdue if zone.purdue is not None else LEVELS.get(zone.type, 1.0)


def _zone(row: AssetRow) -> str:
    return row.asset.zone or (row.seen.zone if row.seen else "")
