"""Weather and air stations: lines of plain JSON, and observations of OGC SensorThings services.

Send: let a station or its gateway write a line a measurement (`reader = "file"`) or publish it
(`reader = "mqtt"`), with `collector = "weather-station"`:
`{"station": "W1", "time": "2026-03-01T10:00:00Z", "air_temperature_c": 8.5, "pm10_ug_m3": 21}`; or
let the node ask a SensorThings service for `/v1.1/Observations?$expand=Datastream`
(`reader = "http"`, `collector = "sensor-things"`).

Understood: temperature, humidity, pressure, wind, rain, fine dust, gases and noise, each value an
event with its unit (UCUM), time, place and quality; what is no number, or outside what the earth
has, is told as bad.

Not understood: values of SensorThings that are no number; units that a service gives are kept as
they are.

References:
    OGC 18-088, SensorThings API part 1: Sensing 1.1, 8.2.6 (Observation); UCUM 2.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.values import clean, moment, place, read_json, real, scalar, text, word

STATION = LogSource(category="sensor_reading", service="environment")

OBSERVATIONS_MAX = 10_000
QUANTITIES: dict[str, tuple[str, str, float, float]] = {
    "air_temperature_c": ("air_temperature", "Cel", -90, 60),
    "humidity_percent": ("humidity", "%", 0, 100),
    "pressure_hpa": ("air_pressure", "hPa", 850, 1_100),
    "wind_speed_m_s": ("wind_speed", "m/s", 0, 115),
    "wind_gust_m_s": ("wind_gust", "m/s", 0, 115),
    "wind_direction_deg": ("wind_direction", "deg", 0, 360),
    "rain_mm": ("precipitation", "mm", 0, 500),
    "radiation_w_m2": ("solar_radiation", "W/m2", 0, 1_500),
    "visibility_m": ("visibility", "m", 0, 100_000),
    "pm10_ug_m3": ("pm10", "ug/m3", 0, 10_000),
    "pm2_5_ug_m3": ("pm2_5", "ug/m3", 0, 10_000),
    "no2_ug_m3": ("no2", "ug/m3", 0, 10_000),
    "o3_ug_m3": ("o3", "ug/m3", 0, 2_000),
    "so2_ug_m3": ("so2", "ug/m3", 0, 50_000),
    "co_mg_m3": ("co", "mg/m3", 0, 1_000),
    "noise_db": ("noise", "dB", 0, 200),
    "road_temperature_c": ("road_temperature", "Cel", -60, 90),
}
"""Name in a line → quantity, unit, and least and most that is possible at the ground."""
OWN = frozenset(("station", "time", "latitude", "longitude", "quality"))
READING: dict[str, Any] = {
    "event.kind": "metric",
    "event.category": ["environment"],
    "event.action": "reading",
    "cw.domain": ["hazard"],
}


def looks_like_station(head: bytes) -> bool:
    """The first line is a JSON object with a station and a quantity that we know."""
    line = head.lstrip().partition(b"\n")[0]
    return (
        line[:1] == b"{"
        and b'"station"' in line
        and any(f'"{name}"'.encode() in line for name in QUANTITIES)
    )


@collector(STATION, looks_like=looks_like_station, strength=75)
def weather_station(records: Iterable[Record]) -> Iterator[Event]:
    """Read stations that send a line a measurement: one event a quantity.

    A line is `{"station": "…", "time": "…", "air_temperature_c": 21.5, …}` and may have `latitude`,
    `longitude`, `quality` (a word of `phys.quality`) and more, which is kept as it is.
    """
    for record in records:
        try:
            found = _line(read_json(record.data))
        except ValueError as error:
            yield Event.malformed(record, STATION, why=str(error))
            continue
        for number, (time, fields) in enumerate(found):
            yield Event(time, STATION, fields, record, number)


def _line(line: dict[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    station, time = text(line.get("station")), moment(line.get("time"))
    if station is None or time is None:
        said = f"{line.get('station')!r:.80}, {line.get('time')!r:.80}"
        raise ValueError(f"no station or no time: {said}")
    base: dict[str, Any] = {
        **READING,
        "event.dataset": "environment.station",
        "phys.point": station,
    }
    if spot := place(line.get("latitude"), line.get("longitude")):
        base["phys.location"] = spot
    rest = {
        clean(name): scalar(value)
        for name, value in line.items()
        if name not in OWN and name not in QUANTITIES
    }
    if rest:
        base["cw.vendor"] = rest
    quality = line.get("quality")
    quality = quality if quality in ("uncertain", "bad", "substituted") else "good"
    found = []
    for name, (quantity, unit, least, most) in QUANTITIES.items():
        if name in line:
            value = real(line[name])
            fields = {**base, "phys.quantity": quantity, "phys.unit": unit}
            found.append((time, {**fields, **_worth(value, least, most, quality)}))
    if not found:
        raise ValueError("no quantity that is known")
    return found


def _worth(value: float | None, least: float, most: float, quality: str) -> dict[str, Any]:
    if value is None:
        return {"phys.quality": "bad", "event.reason": "no data"}
    if not least <= value <= most:
        why = f"outside the possible {least:g} to {most:g}"
        return {"phys.reading": value, "phys.quality": "bad", "event.reason": why}
    return {"phys.reading": value, "phys.quality": quality}


def looks_like_observations(head: bytes) -> bool:
    """A SensorThings answer with observations."""
    start = head[:8_192].lstrip()
    return start[:1] == b"{" and b'"phenomenonTime"' in start and b'"result"' in start


@collector(STATION, framing="document", looks_like=looks_like_observations, strength=70)
def sensor_things(records: Iterable[Record]) -> Iterator[Event]:
    """Read answers of a SensorThings service: one event an observation."""
    for record in records:
        number = 0
        try:
            for one in _observations(read_json(record.data)):
                yield _observation(one, record, number)
                number += 1
        except ValueError as error:
            yield Event.malformed(record, STATION, why=str(error), number=number)
            continue
        if not number:
            yield Event.malformed(record, STATION, why="an answer without observations")


def _observations(answer: dict[str, Any]) -> Iterator[Any]:
    """Observations of a list, of one datastream or alone; the first `OBSERVATIONS_MAX`."""
    found = answer.get("value", answer.get("Observations"))
    if found is None and "result" in answer:
        found = [answer]
    if not isinstance(found, list):
        raise ValueError("no list of observations")
    yield from found[:OBSERVATIONS_MAX]
    if len(found) > OBSERVATIONS_MAX:
        raise ValueError(f"{len(found):,} observations; {OBSERVATIONS_MAX:,} are read")


def _observation(one: Any, record: Record, number: int) -> Event:
    one = one if isinstance(one, dict) else {}
    said = one.get("phenomenonTime") or one.get("resultTime")
    # An interval is `start/end`; what was measured is known at its end.
    time = moment(said.rpartition("/")[2]) if isinstance(said, str) else None
    if time is None:
        why = f"no time in phenomenonTime: {said!r:.80}"
        return Event.malformed(record, STATION, why=why, number=number)
    stream = one.get("Datastream")
    stream = stream if isinstance(stream, dict) else {}
    unit, about = stream.get("unitOfMeasurement"), stream.get("ObservedProperty")
    fields: dict[str, Any] = {
        **READING,
        "event.dataset": "environment.observation",
        "phys.quantity": (isinstance(about, dict) and text(about.get("name"))) or "other",
    }
    if point := text(stream.get("name")) or word(stream.get("@iot.id")):
        fields["phys.point"] = point
    if isinstance(unit, dict) and (symbol := text(unit.get("symbol"))):
        fields["phys.unit"] = symbol
    value = real(one.get("result"))
    fields |= _worth(value, float("-inf"), float("inf"), "good")
    if value is None:
        fields["cw.vendor"] = {"result": scalar(one.get("result"))}
    return Event(time, STATION, fields, record, number)
