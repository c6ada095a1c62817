"""Tables of readings: header, units, missing values, and what is no reading."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest

from cityward import Record
from cityward.checks import check_collector
from collectors.energy.tables import Tables, looks_like_table

NOW = datetime(2026, 3, 1, tzinfo=UTC)
METER = [
    b"\xef\xbb\xbfZeitstempel;Meter;Flow [m3/h];Pressure (bar);Valve",
    b"31.12.2026 14:05;W-7;12,5;4,1;1",
    b"31.12.2026 14:06;W-7;;4,2;defect",
]


def _read(*lines: bytes, source: str = "w7"):
    return list(Tables()(Record(line, source, at, NOW) for at, line in enumerate(lines)))


def _file(path):
    return _read(*path.read_bytes().splitlines(), source=path.name)


def test_the_water_loop_is_a_reading_a_sensor_and_second_without_its_labels(data):
    found = _file(data / "energy/water_loop_valve_anomaly_labelled.csv")

    header, readings = found[0], found[1:]
    assert header.fields["event.action"] == "table_header"
    assert header.fields["ot.point.count"] == 8
    counted = Counter(event.fields["phys.quantity"] for event in readings)
    assert set(counted.values()) == {1_145}
    assert set(counted) == {
        "Accelerometer1RMS", "Accelerometer2RMS", "Current", "Pressure", "Temperature",
        "Thermocouple", "Voltage", "Volume Flow RateRMS",
    }  # fmt: skip
    assert readings[0].time == datetime(2020, 3, 9, 10, 34, 33, tzinfo=UTC)
    assert readings[3].fields["phys.reading"] == 0.054711
    assert readings[3].fields["phys.point"] == "water_loop_valve_anomaly_labelled.csv/Pressure"
    assert {event.fields["phys.quality"] for event in readings} == {"good"}
    assert readings[0].fields["event.original"].endswith(";244.091;32.0")
    assert not any("cw.vendor" in event.fields for event in readings)


@pytest.mark.parametrize(
    ("name", "rows", "first"),
    [
        ("transport/road_speed_7578.csv", 1_127, 73.0),
        ("city/ambient_temperature_failure.csv", 7_267, 69.88083514),
    ],
)
def test_a_table_of_one_sensor_is_a_reading_a_line(data, name, rows, first):
    found = _file(data / name)

    assert len(found) == rows + 1
    assert found[1].fields["phys.reading"] == first
    assert found[1].fields["phys.quantity"] == "value"


def test_units_decimal_commas_text_and_what_is_missing():
    _, *found = _read(*METER)

    readings = [
        (e.fields["phys.quantity"], e.fields.get("phys.reading"), e.fields.get("phys.unit"))
        for e in found
    ]
    assert readings == [
        ("Flow", 12.5, "m3/h"), ("Pressure", 4.1, "bar"), ("Valve", 1.0, None),
        ("Flow", None, "m3/h"), ("Pressure", 4.2, "bar"), ("Valve", None, None),
    ]  # fmt: skip
    assert found[0].fields["cw.vendor"] == {"Meter": "W-7"}
    assert found[0].time == datetime(2026, 12, 31, 14, 5, tzinfo=UTC)
    assert [event.fields.get("event.reason") for event in found[3:]] == [
        "no data", None, "no number: 'defect'",
    ]  # fmt: skip
    assert found[3].fields["phys.quality"] == "bad"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"31.12.2026 14:07;W-7;1", "3 values, the header has 5 columns"),
        (b"soon;W-7;1;2;3", "no time in Zeitstempel: 'soon'"),
        (b"31.13.2026 14:07;W-7;1;2;3", "no time in Zeitstempel: '31.13.2026 14:07'"),
        (b"31.12.2026 14:07;W-7;;;", "a line without a number"),
    ],
)
def test_a_line_that_does_not_fit_is_said(line, why):
    *_, event = _read(METER[0], line)

    assert event.is_malformed
    assert event.fields["event.reason"] == why


def test_values_before_a_header_are_said_and_a_second_header_counts():
    early, *_ = _read(METER[1])
    *_, late = _read(*METER, b"time,level", b"1772352000,2.5")

    assert early.fields["event.reason"] == "a line of values before any header"
    assert (late.fields["phys.quantity"], late.fields["phys.reading"]) == ("level", 2.5)
    assert late.time == datetime(2026, 3, 1, 8, tzinfo=UTC)


def test_the_header_outlives_a_restart():
    before, after = Tables(), Tables()
    list(before([Record(METER[0], "w7", 0, NOW)]))
    after.memory = before.memory

    found = list(after([Record(METER[1], "w7", 1, NOW)]))

    assert [event.fields["phys.reading"] for event in found] == [12.5, 4.1, 1.0]


def test_only_tables_with_times_and_numbers_are_recognised():
    assert looks_like_table(b"\n".join(METER))
    assert looks_like_table(b"timestamp,value\n2015-09-08 11:39:00,73\n2015-09")
    for strange in (
        b"timestamp,value\n",
        b"timestamp,user\n2015-09-08 11:39:00,ann\n2015-09-08 11:39:00,bob\n",
        b"a,b\n1,2\n3,4\n",
        b"time,value\nsoon,2\nlater,4\n",
        b"Time: 5, value\n2015-09-08 11:39:00,2\n",
        b"1,2\n2015-09-08 11:39:00,2\n",
        b'{"time": 1, "value": 2}\n{"time": 1, "value": 2}\n',
    ):
        assert not looks_like_table(strange)


def test_the_collector_keeps_its_promises():
    check_collector(Tables, METER)
