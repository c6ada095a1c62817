"""The city: its services and its districts, as its own two files say.

The services file is YAML: what people rest on, which operator runs it, how many it serves in each
district, and which shared findings touch it – in the `when` language (`cityward/when.py`):

    city: Saltmere
    services:
      - id: district-heating
        name: District heating
        sector: energy.district_heating
        operator: op-grid
        unit: homes
        districts: {northbank: 4100, high-meadow: 3800}
        touched_by:
          - when: {cw.asset.type: [plc, heat_station]}
          - when: {cw.asset.type: heat_meter}
            districts: [northbank]
        sources: [tap]

The map is GeoJSON (RFC 7946): polygons with `id` and `name` are districts; lines and polygons with
`kind: water` are drawn beneath them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from cityward.errors import ConfigError
from cityward.when import When, compile_when

BYTES_MAX = 4 << 20
DISTRICTS_MAX, SERVICES_MAX, POINTS_MAX = 200, 500, 20_000

Ring = Sequence[tuple[float, float]]
"""Places as longitude and latitude."""


class District(msgspec.Struct, frozen=True):
    """A part of the city."""

    id: str
    name: str
    rings: Sequence[Ring]
    """Outer ring of each of its polygons."""
    label: tuple[float, float] | None = None
    """Where its name stands; None: in the middle."""

    def holds(self, longitude: float, latitude: float) -> bool:
        """Whether a place is in it."""
        return any(_inside(ring, longitude, latitude) for ring in self.rings)


class Water(msgspec.Struct, frozen=True):
    """A river (a line) or a bay (a polygon)."""

    name: str
    rings: Sequence[Ring]
    is_area: bool
    label: tuple[float, float] | None = None


class Touch(msgspec.Struct, frozen=True):
    """Which shared findings of its operator touch a service, and where."""

    said: Mapping[str, Any]
    holds: When
    districts: Sequence[str] = ()
    """Empty: in all of the service's, unless the finding says where it was."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """Something that people rest on."""

    id: str
    name: str
    sector: str
    operator: str
    unit: str = ""
    """What is counted: `homes`, `chargers`."""
    districts: Mapping[str, int] = {}
    """Where it serves, and how many of the unit."""
    touched_by: Sequence[Touch] = ()
    """Which shared findings touch it; none: all of its operator."""
    sources: Sequence[str] = ()
    """Sources of the operator that show its state: with all of them lost it is blind."""
    short: str = ""
    """For the map."""

    @property
    def amount(self) -> int:
        """How many it serves in all."""
        return sum(self.districts.values())

    @property
    def query(self) -> str:
        """Which shared findings touch it, in words of the query bar."""
        ways = [_query(one.said) for one in self.touched_by]
        touched = (
            f" and ({' or '.join(ways)})"
            if len(ways) > 1
            else "".join(f" and {one}" for one in ways)
        )
        return f"cw.operator:{self.operator}{touched}"


class Town(msgspec.Struct, frozen=True):
    """The whole of it."""

    name: str = "City"
    services: Sequence[Service] = ()
    districts: Sequence[District] = ()
    waters: Sequence[Water] = ()

    def district_of(self, longitude: float, latitude: float) -> District | None:
        """The district of a place."""
        return next((one for one in self.districts if one.holds(longitude, latitude)), None)


class _Touch(msgspec.Struct, forbid_unknown_fields=True):
    when: dict[str, Any]
    districts: list[str] = []


class _Service(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    name: str
    sector: str
    operator: str
    unit: str = ""
    districts: dict[str, int] = {}
    touched_by: list[_Touch] = []
    sources: list[str] = []
    short: str = ""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    city: str
    services: list[_Service]


def read(services: Path | None, places: Path | None = None) -> Town:
    """A city from its files; without them it has no services and no map.

    Raises:
        ConfigError: a file cannot be read, or says what cannot be.
    """
    districts, waters = _read_map(places) if places else ((), ())
    if services is None:
        return Town(districts=districts, waters=waters)
    text = _text(services)
    try:
        file = msgspec.convert(yaml.safe_load(text), _File)
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigError(
            f"no services file: {str(error)[:300]}", str(services), "See docs/hub.md."
        ) from error
    if len(file.services) > SERVICES_MAX:
        raise ConfigError(
            f"{len(file.services):,} services", str(services), f"At most {SERVICES_MAX}."
        )
    ids = [one.id for one in file.services]
    if twice := next((one for one in ids if ids.count(one) > 1), ""):
        raise ConfigError(f"two services are called {twice}", str(services), "Rename one.")
    known = {one.id for one in districts}
    made = [_service(one, str(services), known if places else None) for one in file.services]
    return Town(file.city, made, districts, waters)


def _service(said: _Service, where: str, known: set[str] | None) -> Service:
    where = f"{where}, {said.id}"
    named = [*said.districts, *(name for one in said.touched_by for name in one.districts)]
    if unknown := [name for name in named if known is not None and name not in known]:
        raise ConfigError(f"no district is called {unknown[0]}", where, "See the ids of the map.")
    touches = [
        Touch(one.when, compile_when(one.when, f"{where}, touched_by"), one.districts)
        for one in said.touched_by
    ]
    fields = {name: getattr(said, name) for name in said.__struct_fields__}
    return Service(**fields | {"touched_by": touches, "short": said.short or said.name.lower()})


def _query(condition: Mapping[str, Any]) -> str:
    said = []
    for name, wanted in condition.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        words = [f'"{one}"' if not str(one).isalnum() else str(one) for one in values]
        said.append(f"{name}:({' or '.join(words)})" if len(words) > 1 else f"{name}:{words[0]}")
    return f"({' and '.join(said)})" if len(said) > 1 else "".join(said)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > BYTES_MAX:
            raise ConfigError(f"a file of more than {BYTES_MAX:,} bytes", str(path), "Shorten it.")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", str(path), "Name a file of text.") from error


def _read_map(path: Path) -> tuple[Sequence[District], Sequence[Water]]:
    districts: list[District] = []
    waters: list[Water] = []
    text = _text(path)
    try:
        for feature in json.loads(text)["features"]:
            said = feature.get("properties") or {}
            kind = feature["geometry"]["type"]
            lines = [list(line) for line in _rings(feature["geometry"])]
            label = _label(said.get("label"))
            if said.get("kind") == "water":
                waters.append(
                    Water(str(said.get("name", "")), lines, kind.endswith("Polygon"), label)
                )
            elif kind.endswith("Polygon"):
                name = str(said["name"])
                districts.append(District(str(said.get("id") or name), name, lines, label))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"no GeoJSON of districts: {error!r}"[:300], str(path), "See RFC 7946."
        ) from error
    rings = [ring for one in districts for ring in one.rings]
    rings += [ring for one in waters for ring in one.rings]
    points = sum(map(len, rings))
    if len(districts) > DISTRICTS_MAX or points > POINTS_MAX:
        raise ConfigError(
            f"{len(districts):,} districts with {points:,} points", str(path), "Simplify the map."
        )
    return districts, waters


def _rings(geometry: Mapping[str, Any]) -> Iterator[Iterator[tuple[float, float]]]:
    """Outer rings of polygons, or lines."""
    kind, nested = geometry["type"], geometry["coordinates"]
    polygons = nested if kind == "MultiPolygon" else [nested] if kind == "Polygon" else ()
    lines = nested if kind == "MultiLineString" else [nested] if kind == "LineString" else ()
    for line in (*lines, *(polygon[0] for polygon in polygons)):
        yield (_place(place) for place in line)


def _place(said: Any) -> tuple[float, float]:
    longitude, latitude = float(said[0]), float(said[1])
    if not (abs(longitude) <= 180 and abs(latitude) <= 90):
        raise ValueError(f"{longitude}, {latitude} is no place")
    return longitude, latitude


def _label(said: Any) -> tuple[float, float] | None:
    return _place(said) if said else None


def _inside(ring: Ring, x: float, y: float) -> bool:
    """Whether a place is inside a ring: a ray to the east crosses it an odd number of times."""
    inside = False
    for number, (x1, y1) in enumerate(ring):
        x2, y2 = ring[number - 1]
        if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
            inside = not inside
    return inside
