"""Tank farms: lines of tanks."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.port.tank_gauge import looks_like_tanks, tank_readings

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LINE = {
    **{"tank": "T1", "time": "2026-02-01T10:00:00Z", "level_m": 8.2, "water_m": 0.02},
    **{"temperature_c": 14.5, "volume_m3": 812.4, "product": "diesel", "alarms": ["high_level"]},
}


def _read(**more: object) -> list[Event]:
    data = json.dumps({**LINE, **more}).encode()
    return list(tank_readings([Record(data, "s", 0, NOW)]))


def test_a_tank_is_an_event_a_quantity_and_one_an_alarm():
    found = _read()

    assert [(e.fields.get("phys.quantity"), e.fields.get("phys.reading")) for e in found] == [
        *(("product_level", 8.2), ("water_level", 0.02), ("product_temperature", 14.5)),
        *(("product_volume", 812.4), (None, None)),
    ]
    assert found[4].fields["event.action"] == "tank_alarm"
    assert found[4].fields["phys.state"] == "high_level"
    assert {event.fields["phys.point"] for event in found} == {"T1"}
    assert found[0].fields["cw.vendor"] == {"product": "diesel"}


@pytest.mark.parametrize(
    ("value", "reason"), [(-3, "outside the possible 0 to 40"), (None, "no data")]
)
def test_what_cannot_be_is_bad(value, reason):
    fields = _read(level_m=value)[0].fields

    assert fields["phys.quality"] == "bad"
    assert fields["event.reason"] == reason


@pytest.mark.parametrize("line", [{"tank": ""}, {"time": "x"}])
def test_a_line_without_tank_or_time_is_told(line):
    assert _read(**line)[0].is_malformed


def test_lines_are_recognised():
    assert looks_like_tanks(json.dumps(LINE).encode())
    assert not looks_like_tanks(b'{"tank": "T1"}')


def test_the_collector_keeps_its_promises():
    check_collector(tank_readings, [json.dumps(LINE).encode()])
