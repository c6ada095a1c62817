"""Tank farms: one JSON line a tank, as a gauging system or its gateway exports it.

Send: let the gauging system write a line a tank and minute (`reader = "file"`, or MQTT with
`reader = "mqtt"`), with `collector = "tank-readings"`:
`{"tank": "T1", "time": "2026-03-01T10:00:00Z", "level_m": 8.2, "alarms": ["high_level"]}`, and
maybe `water_m`, `temperature_c`, `volume_m3`, `product`; gauges that are asked over the network are
decoded from the wire.

Understood: level, water at the bottom, temperature and volume of a tank, in SI units, each value an
event; alarms by name, each an event of its own, as long as they last.

Not understood: exports of single makers; bring them to this form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.values import clean, moment, read_json, real, scalar, text, word

TANKS = LogSource(category="sensor_reading", service="tank_gauge")

ALARMS_MAX = 32
QUANTITIES: dict[str, tuple[str, str, float, float]] = {
    "level_m": ("product_level", "m", 0, 40),
    "water_m": ("water_level", "m", 0, 40),
    "temperature_c": ("product_temperature", "Cel", -170, 400),
    "volume_m3": ("product_volume", "m3", 0, 250_000),
}
"""Name in a line → quantity, unit, and least and most that a tank can have."""
ALARM = {"event.kind": "alert", "event.action": "tank_alarm"}
OWN = frozenset(("tank", "time", "product", "alarms", *QUANTITIES))


def looks_like_tanks(head: bytes) -> bool:
    """The first line is a JSON object with a tank and its level."""
    line = head.lstrip().partition(b"\n")[0]
    return line[:1] == b"{" and b'"tank"' in line and b'"level_m"' in line


@collector(TANKS, looks_like=looks_like_tanks, strength=75)
def tank_readings(records: Iterable[Record]) -> Iterator[Event]:
    """Read tanks: one event a quantity and one an alarm.

    A line is `{"tank": "T1", "time": "…", "level_m": 8.2, "water_m": 0.02, "temperature_c": 14.5,
    "volume_m3": 812.4, "product": "diesel", "alarms": ["high_level"]}`; more is kept as it is.
    """
    for record in records:
        try:
            time, found = _line(read_json(record.data))
        except ValueError as error:
            yield Event.malformed(record, TANKS, why=str(error))
            continue
        for number, fields in enumerate(found):
            yield Event(time, TANKS, fields, record, number)


def _line(line: dict[str, Any]) -> tuple[datetime, list[dict[str, Any]]]:
    tank, time = word(line.get("tank")), moment(line.get("time"))
    if tank is None or time is None:
        said = f"{line.get('tank')!r:.80}, {line.get('time')!r:.80}"
        raise ValueError(f"no tank or no time: {said}")
    vendor = {clean(name): scalar(value) for name, value in line.items() if name not in OWN}
    if product := text(line.get("product")):
        vendor["product"] = product
    base: dict[str, Any] = {
        "event.category": ["environment"],
        "event.dataset": "tank_gauge.reading",
        "cw.domain": ["physical"],
        "phys.point": tank,
    }
    if vendor:
        base["cw.vendor"] = vendor
    found = [
        {**base, **_reading(line[name], *about)}
        for name, about in QUANTITIES.items()
        if name in line
    ]
    alarms = line.get("alarms")
    for alarm in alarms[:ALARMS_MAX] if isinstance(alarms, list) else ():
        if state := text(alarm):
            found.append({**base, **ALARM, "phys.state": state})
    if not found:
        raise ValueError("a tank without a reading or an alarm")
    return time, found


def _reading(said: Any, quantity: str, unit: str, least: float, most: float) -> dict[str, Any]:
    value = real(said)
    fields: dict[str, Any] = {
        "event.kind": "metric",
        "event.action": "reading",
        "phys.quantity": quantity,
        "phys.unit": unit,
        "phys.quality": "good",
    }
    if value is None:
        return {**fields, "phys.quality": "bad", "event.reason": "no data"}
    fields["phys.reading"] = value
    if not least <= value <= most:
        why = f"outside the possible {least:g} to {most:g}"
        return {**fields, "phys.quality": "bad", "event.reason": why}
    return fields
