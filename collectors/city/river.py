"""River gauges: answers of the USGS water service, and lines of a plain gauge.

Send: let the node ask the service (`reader = "http"`, its `url`, `collector = "river"`), or read
lines that a gauge writes (`reader = "file"`) or publishes (`reader = "mqtt"`), with
`collector = "river-readings"`:
`{"gauge": "G7", "time": "2026-03-01T10:00:00Z", "water_level_m": 2.41}`.

Understood: water level, discharge, precipitation, temperature and further USGS parameters, in
SI units, with time, place and quality.

Not understood: daily values and statistics of the service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.values import clean, moment, place, read_json, real, scalar, text

RIVER = LogSource(category="sensor_reading", service="river_gauge")

QUANTITIES = {
    "00010": "water_temperature",
    "00045": "precipitation",
    "00060": "discharge",
    "00065": "water_level",
    "00095": "conductance",
    "00300": "dissolved_oxygen",
    "00400": "ph",
    "63680": "turbidity",
}
"""USGS parameter codes; help.waterdata.usgs.gov/codes-and-parameters/parameters."""

UNITS = {
    "ft": ("m", 0.3048),
    "ft3/s": ("m3/s", 0.028316846592),
    "in": ("mm", 25.4),
    "m": ("m", 1.0),
    "m3/s": ("m3/s", 1.0),
    "deg C": ("Cel", 1.0),
}
"""Unit of the source → unit (UCUM) and exact factor; others stay as they are."""

BAD = frozenset(("***", "--", "Bkw", "Dis", "Dry", "Eqp", "Fld", "Ice", "Mnt", "Rat", "Ssn", "ZFL"))
"""Remark codes that stand for a missing or impaired value; USGS uv_rmk_cd."""
QUALITIES = {"A": "good", "P": "uncertain", "e": "substituted", "E": "substituted"}
"""Approved, provisional, estimated."""
NO_DATA = -999_999.0
READING = {
    "event.kind": "metric",
    "event.category": ["environment"],
    "event.action": "reading",
    "event.dataset": "river.gauge",
    "cw.domain": ["hazard"],
}


def looks_like_river(head: bytes) -> bool:
    """WaterML in JSON."""
    start = head.lstrip()[:4_096]
    return start[:1] == b"{" and (
        b"TimeSeriesResponseType" in start or b"timeSeriesResponse" in start
    )


@collector(RIVER, framing="document", looks_like=looks_like_river, strength=80)
def river(records: Iterable[Record]) -> Iterator[Event]:
    """Read answers of the instantaneous values service: one event a value, in SI units.

    References:
        waterservices.usgs.gov, "Instantaneous Values Service", WaterML 1.1 as JSON.
    """
    for record in records:
        number = 0
        try:
            value = read_json(record.data).get("value")
            series = value.get("timeSeries") if isinstance(value, dict) else None
            if not isinstance(series, list):
                raise ValueError("no value.timeSeries")
            for number, event in enumerate(_of_answer(series, record), start=1):
                yield Event(event.time, RIVER, event.fields, record, number - 1)
            if not number:
                yield Event.malformed(record, RIVER, why="an answer without a series of values")
        except ValueError as error:
            yield Event.malformed(record, RIVER, why=str(error), number=number)


def _of_answer(series: list[Any], record: Record) -> Iterator[Event]:
    for at, one in enumerate(series):
        part = f"timeSeries[{at}]"
        if not isinstance(one, dict):
            yield Event.malformed(record, RIVER, why=f"{part} is no object")
            continue
        gauge = _gauge(one)
        found = False
        for values in _listed(one, "values"):
            for value in _listed(values, "value"):
                found = True
                yield _reading(gauge, value, record)
        if not found:
            yield Event.malformed(record, RIVER, why=f"{part} has no values", fields=gauge.fields)


class _Gauge:
    """What all values of a series share."""

    def __init__(self, fields: dict[str, Any], vendor: dict[str, Any], no_data: float) -> None:
        self.fields = fields
        self.vendor = vendor
        self.no_data = no_data


def _gauge(series: dict[str, Any]) -> _Gauge:
    site, variable = _object(series, "sourceInfo"), _object(series, "variable")
    code = _first(variable, "variableCode").get("value")
    fields: dict[str, Any] = {"phys.quantity": QUANTITIES.get(str(code)[:16], "other")}
    if point := text(_first(site, "siteCode").get("value")):
        fields["phys.point"] = point
    where = _object(_object(site, "geoLocation"), "geogLocation")
    if spot := place(where.get("latitude"), where.get("longitude")):
        fields["phys.location"] = spot
    vendor = {
        "site_name": site.get("siteName"),
        "parameter": code,
        "unit": _object(variable, "unit").get("unitCode"),
        "series": series.get("name"),
    }
    no_data = real(variable.get("noDataValue"))
    return _Gauge(
        fields,
        {name: scalar(value) for name, value in vendor.items() if value is not None},
        NO_DATA if no_data is None else no_data,
    )


def _reading(gauge: _Gauge, value: dict[str, Any], record: Record) -> Event:
    time = moment(value.get("dateTime"))
    if time is None:
        why = f"no time in dateTime: {value.get('dateTime')!r}"
        return Event.malformed(record, RIVER, why=why, fields=gauge.fields)
    said = value.get("value")
    codes = value.get("qualifiers")
    codes = [code for code in codes if isinstance(code, str)] if isinstance(codes, list) else []
    vendor = {**gauge.vendor, "value": scalar(said), "qualifiers": clean(" ".join(codes))}
    fields = {**READING, **gauge.fields, "phys.quality": _quality(codes), "cw.vendor": vendor}
    reading = real(said)
    if reading is None or reading in (gauge.no_data, NO_DATA):
        fields["phys.quality"] = "bad"
        fields["event.reason"] = "no data"
    else:
        fields.update(_in_si(reading, vendor.get("unit")))
    return Event(time, RIVER, fields, record)


def _quality(codes: list[str]) -> str:
    if any(code in BAD for code in codes):
        return "bad"
    found = [QUALITIES[code] for code in codes if code in QUALITIES]
    return next((worst for worst in ("substituted", "uncertain") if worst in found), "good")


def _in_si(reading: float, unit: Any) -> dict[str, Any]:
    known, factor = UNITS.get(str(unit), (clean(str(unit or "")), 1.0))
    in_si = real(round(reading * factor, 6))
    if in_si is None:
        return {"phys.quality": "bad", "event.reason": "reading out of range"}
    return {"phys.reading": in_si, "phys.unit": known}


def _object(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = part.get(name)
    return found if isinstance(found, dict) else {}


def _listed(part: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    found = part.get(name)
    if isinstance(found, list):
        yield from (one if isinstance(one, dict) else {} for one in found)


def _first(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(_listed(part, name), {})


def looks_like_readings(head: bytes) -> bool:
    """The first line is a JSON object with a gauge and a water level."""
    line = head.lstrip().partition(b"\n")[0]
    return line[:1] == b"{" and b'"gauge"' in line and b'"water_level_m"' in line


@collector(RIVER, looks_like=looks_like_readings, strength=80)
def river_readings(records: Iterable[Record]) -> Iterator[Event]:
    """Read gauges that send a line a reading.

    A line is `{"gauge": "…", "time": "…", "water_level_m": 2.41}`, and may have `latitude`,
    `longitude`, `quality` (a word of `phys.quality`) and more, which is kept as it is.
    """
    for record in records:
        try:
            yield _line(read_json(record.data), record)
        except ValueError as error:
            yield Event.malformed(record, RIVER, why=str(error))


_LINE = frozenset(("gauge", "time", "latitude", "longitude", "water_level_m", "quality"))


def _line(line: dict[str, Any], record: Record) -> Event:
    gauge, time = text(line.get("gauge")), moment(line.get("time"))
    if gauge is None or time is None:
        raise ValueError(f"no gauge or no time: {line.get('gauge')!r}, {line.get('time')!r}")
    level = real(line.get("water_level_m"))
    quality = line.get("quality")
    fields = {
        **READING,
        "phys.point": gauge,
        "phys.quantity": "water_level",
        "phys.unit": "m",
        "phys.quality": quality if quality in ("uncertain", "bad", "substituted") else "good",
    }
    if level is None or level == NO_DATA:
        fields.update({"phys.quality": "bad", "event.reason": "no data"})
    else:
        fields["phys.reading"] = level
    if spot := place(line.get("latitude"), line.get("longitude")):
        fields["phys.location"] = spot
    rest = {clean(name): scalar(value) for name, value in line.items() if name not in _LINE}
    if rest:
        fields["cw.vendor"] = rest
    return Event(time, RIVER, fields, record)
