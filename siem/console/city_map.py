"""The map of the districts as numbers for an SVG: no tile server, nothing is fetched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from siem.city.picture import Picture, State
from siem.city.town import Ring, Town

WIDTH = 520.0
HEIGHT_MAX = 620.0
GLYPHS: Mapping[str, str] = {
    "at risk": "risk",
    "degraded": "degraded",
    "blind": "blind",
    "running": "running",
}
"""Glyph and pattern of a state."""
LETTER_PX = 7.4
"""How wide a letter of a label may be."""
NAMED = 2
"""Services that stand in a label; more are counted."""
LINE_CHARS = 22


@dataclass(frozen=True, slots=True)
class Tile:
    """A district as it is drawn."""

    id: str
    name: str
    state: State
    glyph: str
    paths: Sequence[str]
    x: float
    y: float
    sub: str
    """Which services are touched."""
    back: tuple[float, float, float, float] | None
    """Ground of the label: x, y, width, height."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A river or a bay as it is drawn."""

    name: str
    is_area: bool
    paths: Sequence[str]
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Map:
    """The whole map."""

    width: int
    height: int
    tiles: Sequence[Tile]
    waters: Sequence[Stream]
    said: str
    """The map in words."""


def draw(town: Town, picture: Picture) -> Map | None:
    """The map of a city; None if it has no districts."""
    if not town.districts:
        return None
    project, height = _projection(town)
    tiles = []
    for district in town.districts:
        state = picture.districts.get(district.id, "running")
        x, y = _label(project, district.label, district.rings)
        sub = _services(picture, district.id) if state != "running" else ""
        width = max(len(sub) * 6.6 + 14, len(district.name) * LETTER_PX + 36)
        x = min(max(x, width / 2), WIDTH - width / 2)
        back = (x - width / 2, y - 16, width, 37.0) if sub else None
        paths = [_path(project, ring, close=True) for ring in district.rings]
        tiles.append(Tile(district.id, district.name, state, GLYPHS[state], paths, x, y, sub, back))
    waters = [
        Stream(
            one.name,
            one.is_area,
            [_path(project, ring, close=one.is_area) for ring in one.rings],
            *_label(project, one.label, one.rings),
        )
        for one in town.waters
    ]
    return Map(int(WIDTH), round(height), tiles, waters, _words(town, picture))


class _Projection:
    """Equirectangular, about the middle of the city: true enough for a town."""

    def __init__(self, west: float, north: float, squeeze: float, scale: float) -> None:
        self.west, self.north, self.squeeze, self.scale = west, north, squeeze, scale

    def __call__(self, longitude: float, latitude: float) -> tuple[float, float]:
        x = (longitude - self.west) * self.squeeze * self.scale
        return x, (self.north - latitude) * self.scale


def _projection(town: Town) -> tuple[_Projection, float]:
    places = [place for one in town.districts for ring in one.rings for place in ring]
    west, east = min(x for x, _ in places), max(x for x, _ in places)
    south, north = min(y for _, y in places), max(y for _, y in places)
    squeeze = max(math.cos(math.radians((south + north) / 2)), 0.05)
    scale = WIDTH / max((east - west) * squeeze, 1e-9)
    scale = min(scale, HEIGHT_MAX / max(north - south, 1e-9))
    return _Projection(west, north, squeeze, scale), (north - south) * scale


def _path(project: _Projection, ring: Ring, *, close: bool) -> str:
    points = " ".join("{:.1f} {:.1f}".format(*project(*place)) for place in ring)
    return f"M{points}{'z' if close else ''}"


def _label(
    project: _Projection, label: tuple[float, float] | None, rings: Sequence[Ring]
) -> tuple[float, float]:
    if label:
        return project(*label)
    longest = max(rings, key=len, default=())
    if not longest:
        return 0.0, 0.0
    points = [project(*place) for place in longest]
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _services(picture: Picture, district: str) -> str:
    """The troubled services of a district; a single one with its number."""
    found = [
        one
        for one in picture.standings
        if one.state != "running" and any(place.id == district for place in one.places)
    ]
    names = [one.service.short or one.service.name for one in found]
    if len(found) == 1:
        amount, unit = found[0].service.districts.get(district, 0), found[0].service.unit
        said = f"{amount:,} {unit}" if unit in names[0] else f"{names[0]}, {amount:,} {unit}"
        return said if unit and amount > 1 and len(said) <= LINE_CHARS else names[0][:LINE_CHARS]
    said = ", ".join(names[:NAMED])
    if len(names) > NAMED or len(said) > LINE_CHARS:
        return f"{len(names)} services"
    return said


def _words(town: Town, picture: Picture) -> str:
    said = []
    for state in GLYPHS:
        names = [
            one.name for one in town.districts if picture.districts.get(one.id, "running") == state
        ]
        if names:
            word = state if picture.is_whole or state != "running" else "nothing given"
            said.append(f"{word[:1].upper()}{word[1:]}: {', '.join(names)}.")
    return f"Map of {town.name}. {' '.join(said)}"
