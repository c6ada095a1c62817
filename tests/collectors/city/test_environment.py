"""Weather and air: lines of stations and answers of SensorThings."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.city.environment import (
    OBSERVATIONS_MAX,
    looks_like_observations,
    looks_like_station,
    sensor_things,
    weather_station,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LINE = {
    "station": "w1",
    "time": "2026-02-01T10:00:00Z",
    "air_temperature_c": 21.5,
    "pm10_ug_m3": 18,
}
OBSERVATION = {
    "phenomenonTime": "2026-02-01T09:00:00Z/2026-02-01T10:00:00Z",
    "result": 18.2,
    "Datastream": {
        "name": "PM10 at the port",
        "unitOfMeasurement": {"symbol": "ug/m3"},
        "ObservedProperty": {"name": "pm10"},
    },
}


def _line(**more: object) -> list[Event]:
    data = json.dumps({**LINE, **more}).encode()
    return list(weather_station([Record(data, "s", 0, NOW)]))


def _answer(value: object) -> list[Event]:
    return list(sensor_things([Record(json.dumps(value).encode(), "s", 0, NOW)]))


def test_a_line_is_an_event_a_quantity():
    found = _line(latitude=40.6, longitude=22.9, battery=88)

    assert [(e.fields["phys.quantity"], e.fields["phys.reading"]) for e in found] == [
        *(("air_temperature", 21.5), ("pm10", 18.0))
    ]
    assert [event.number for event in found] == [0, 1]
    assert found[0].fields["phys.unit"] == "Cel"
    assert found[0].fields["phys.location"] == "40.600000,22.900000"
    assert found[0].fields["cw.vendor"] == {"battery": 88}


@pytest.mark.parametrize(
    ("value", "reason"),
    [(99, "outside the possible -90 to 60"), (None, "no data"), ("x", "no data")],
)
def test_what_cannot_be_is_bad(value, reason):
    fields = _line(air_temperature_c=value)[0].fields

    assert fields["phys.quality"] == "bad"
    assert fields["event.reason"] == reason


@pytest.mark.parametrize("line", [{"station": None}, {"time": "x"}])
def test_a_line_without_station_or_time_is_told(line):
    assert _line(**line)[0].is_malformed


def test_a_line_without_a_quantity_is_told():
    data = b'{"station": "w1", "time": "2026-02-01T10:00:00Z"}'
    (event,) = weather_station([Record(data, "s", 0, NOW)])

    assert event.fields["event.reason"] == "no quantity that is known"


@pytest.mark.parametrize(
    "answer", [{"value": [OBSERVATION]}, OBSERVATION, {"Observations": [OBSERVATION]}]
)
def test_an_observation_is_told_at_its_end(answer):
    (event,) = _answer(answer)

    assert event.time == datetime(2026, 2, 1, 10, tzinfo=UTC)
    assert event.fields["phys.reading"] == 18.2
    assert event.fields["phys.quantity"] == "pm10"
    assert event.fields["phys.point"] == "PM10 at the port"


@pytest.mark.parametrize("answer", [{"value": []}, {"value": 1}, {}, {"value": [1]}])
def test_what_is_no_observation_is_told(answer):
    (event,) = _answer(answer)

    assert event.is_malformed


def test_a_result_that_is_no_number_is_kept():
    (event,) = _answer({**OBSERVATION, "result": "wet"})

    assert event.fields["phys.quality"] == "bad"
    assert event.fields["cw.vendor"] == {"result": "wet"}


def test_observations_are_bounded_and_what_is_left_out_is_told():
    found = _answer({"value": [OBSERVATION] * (OBSERVATIONS_MAX + 5)})

    assert len(found) == OBSERVATIONS_MAX + 1
    assert "10,005 observations" in found[-1].fields["event.reason"]


def test_files_are_recognised():
    assert looks_like_station(json.dumps(LINE).encode())
    assert not looks_like_station(b'{"station": "x"}')
    assert looks_like_observations(json.dumps({"value": [OBSERVATION]}).encode())


def test_the_collectors_keep_their_promises():
    check_collector(weather_station, [json.dumps(LINE).encode()])
    check_collector(sensor_things, [json.dumps({"value": [OBSERVATION]}).encode()])
