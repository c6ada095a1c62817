"""River gauges: readings in SI units, with their quality."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from cityward import Record
from collectors.city.river import river, river_readings

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def _answer(value: object, qualifiers: object = ("A",), unit: str = "ft") -> bytes:
    one = {"value": value, "qualifiers": qualifiers, "dateTime": "2026-03-01T10:00:00.000-05:00"}
    series = {
        "sourceInfo": {"siteCode": [{"value": "G1"}]},
        "variable": {"variableCode": [{"value": "00065"}], "unit": {"unitCode": unit}},
        "values": [{"value": [one]}],
    }
    return json.dumps({"value": {"timeSeries": [series]}}).encode()


def _read(data: bytes):
    return list(river([Record(data, "s", 0, NOW)]))


def test_the_answer_of_the_service_is_twenty_readings_in_si_units(data):
    found = _read((data / "city/river_usgs_instantaneous_values.json").read_bytes())

    readings = [
        (e.fields["phys.point"], e.fields["phys.quantity"], e.fields["phys.reading"]) for e in found
    ]
    assert len(found) == 20
    assert [event.number for event in found] == list(range(20))
    assert readings[0] == ("01491000", "discharge", 27.580609)  # 974 ft³/s
    assert readings[4] == ("01491000", "discharge", 27.042588)  # 955 ft³/s
    assert readings[5] == ("01491000", "water_level", 1.975104)  # 6.48 ft
    assert readings[9] == ("01491000", "water_level", 1.959864)  # 6.43 ft
    assert readings[15][2] == 0.954024  # 3.13 ft
    assert found[0].time.isoformat() == "2019-02-14T05:00:00+00:00"
    assert found[0].fields["phys.location"] == "38.997194,-75.785806"
    assert {event.fields["phys.quality"] for event in found} == {"good"}
    assert found[0].fields["cw.vendor"]["value"] == "974"


@pytest.mark.parametrize(
    ("value", "qualifiers", "quality"),
    [
        ("6.48", ["P"], "uncertain"),
        ("6.48", ["P", "e"], "substituted"),
        ("6.48", ["P", "Ice"], "bad"),
        ("-999999", ["A"], "bad"),
        ("x", ["A"], "bad"),
        (None, ["A"], "bad"),
        ("1e400", ["A"], "bad"),
        ("6.48", "A", "good"),
    ],
)
def test_the_quality_follows_the_remarks_and_the_value(value, qualifiers, quality):
    (event,) = _read(_answer(value, qualifiers))

    assert event.fields["phys.quality"] == quality
    assert ("phys.reading" in event.fields) is (value == "6.48")


def test_a_unit_nobody_knows_stays_as_it_is():
    (event,) = _read(_answer("7", unit="NTU"))

    assert (event.fields["phys.reading"], event.fields["phys.unit"]) == (7.0, "NTU")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"{}", b'{"value":{"timeSeries":[]}}', b'{"value":{"timeSeries":[1]}}'],
)
def test_an_answer_without_values_is_reported(data):
    (event,) = _read(data)

    assert event.is_malformed


def test_one_bad_value_of_an_answer_is_reported_and_the_next_is_read():
    answer = json.loads(_answer("6.48"))
    values = answer["value"]["timeSeries"][0]["values"][0]["value"]
    values[:0] = [{"value": "6.4", "dateTime": "yesterday"}, 7]

    found = _read(json.dumps(answer).encode())

    assert [event.is_malformed for event in found] == [True, True, False]
    assert [event.number for event in found] == [0, 1, 2]


def test_a_line_is_a_reading():
    lines = [
        b'{"gauge": "G7", "time": "2026-03-01T10:00:00Z", "water_level_m": 2.41, "battery_v": 3.6}',
        b'{"gauge": "G7", "time": "2026-03-01T10:15:00Z", "water_level_m": null}',
        b'{"gauge": "G7", "water_level_m": 2.5}',
    ]

    good, empty, broken = river_readings(Record(line, "s", 0, NOW) for line in lines)

    assert (good.fields["phys.point"], good.fields["phys.reading"]) == ("G7", 2.41)
    assert good.fields["cw.vendor"] == {"battery_v": 3.6}
    assert (empty.fields["phys.quality"], empty.fields["event.reason"]) == ("bad", "no data")
    assert broken.is_malformed
